r"""Metrics of a full ranking, in blocks of users."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.metrics import (
    LinkPredMetricCollection,
    LinkPredNDCG,
    LinkPredRecall,
)
from torch_geometric.utils import coalesce

from crane_pyg._rows import CompressedRows, check_candidates
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.top_k import (
    Barred,
    Scores,
    check_k,
    check_neighbors,
    mask_top_k,
    score_blocks,
)


def evaluate(
    user_emb: Tensor,
    item_emb: Tensor,
    edge_label_index: Tensor,
    exclude: Tensor | None = None,
    ks: Sequence[int] = (10, 20),
    block_size: int = 1024,
    neighbors: Neighborhood | None = None,
    candidates: Tensor | Sequence[int] | None = None,
) -> dict[str, float]:
    r"""Ranks all items for every user that has a held-out item, see
    :func:`top_k`.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
        item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
        edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`. One
            that stands twice counts once.
        exclude (torch.Tensor, optional): The pairs left out of the ranking,
            as a rule those of training :math:`(2, E)`. A held-out pair among
            them is never found. (default: :obj:`None`)
        ks (list[int], optional): The lengths of the lists.
            (default: :obj:`(10, 20)`)
        block_size (int, optional): Number of users scored at a time.
            (default: :obj:`1024`)
        neighbors (Neighborhood, optional): Adds to the inner products, see
            :class:`~crane_pyg.ranking.Neighborhood`.
            (default: :obj:`None`)
        candidates (torch.Tensor, optional): If given, the only items that may
            be ranked :math:`(C)`. (default: :obj:`None`)

    Returns:
        dict[str, float]: :obj:`"recall@k"` and :obj:`"ndcg@k"` for each
        :math:`k`, the mean over all users with held-out items.

    Raises:
        ValueError: If there is no held-out pair, or one of an item that is no
            candidate, if an argument is out of its range, or if the embeddings
            are not finite or not those of :obj:`neighbors`.
    """
    scores = score_blocks(
        user_emb, item_emb, edge_label_index[0].unique(), block_size, neighbors
    )
    size = (user_emb.size(0), item_emb.size(0))
    return evaluate_scores(
        scores, size, edge_label_index, exclude, ks, candidates
    )


@torch.no_grad()
def evaluate_scores(
    scores: Scores,
    size: tuple[int, int],
    edge_label_index: Tensor,
    exclude: Tensor | None = None,
    ks: Sequence[int] = (10, 20),
    candidates: Tensor | Sequence[int] | None = None,
) -> dict[str, float]:
    r"""The same as :meth:`evaluate` for a model that is no inner product.

    Args:
        scores (iterator): Yields blocks of users :math:`(B)` and their scores
            of all items :math:`(B, I)`, which are overwritten.
        size (tuple[int, int]): The number of users and of items.
        edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`.
        exclude (torch.Tensor, optional): The pairs left out of the ranking
            :math:`(2, E)`. (default: :obj:`None`)
        ks (list[int], optional): The lengths of the lists.
            (default: :obj:`(10, 20)`)
        candidates (torch.Tensor, optional): If given, the only items that may
            be ranked :math:`(C)`. (default: :obj:`None`)
    """
    metrics = RankingMetrics(size, edge_label_index, exclude, ks, candidates)
    for users, score in scores:
        metrics.update(users, score)
    return metrics.compute()


@torch.no_grad()
def evaluate_each(
    user_emb: Tensor,
    item_emb: Tensor,
    edge_label_index: Tensor,
    exclude: Tensor | None,
    ks: Sequence[int],
    neighbors: Sequence[Neighborhood | None],
    block_size: int = 1024,
) -> list[dict[str, float]]:
    r"""The same as :meth:`evaluate` with each of some neighborhoods, for which
    the inner products are computed once.
    """
    size = (user_emb.size(0), item_emb.size(0))
    for near in neighbors:
        check_neighbors(near, size)
    args = (size, edge_label_index, exclude, ks)
    metrics = [RankingMetrics(*args) for _ in neighbors]
    index, copy = edge_label_index[0].unique(), None
    for users, score in score_blocks(user_emb, item_emb, index, block_size):
        # No block is larger than the first one:
        copy = torch.empty_like(score) if copy is None else copy
        for near, metric in zip(neighbors, metrics, strict=True):
            block = score
            if near is not None:
                block = copy[: users.numel()].copy_(score)
                block = near.add_to(block, users)
            metric.update(users, block)
    return [metric.compute() for metric in metrics]


class RankingMetrics:
    r"""The metrics of blocks of users, whose scores :math:`(B, I)` lose those
    of barred items.
    """

    def __init__(
        self,
        size: tuple[int, int],
        edge_label_index: Tensor,
        exclude: Tensor | None,
        ks: Sequence[int],
        candidates: Tensor | Sequence[int] | None = None,
    ) -> None:
        self.ks, self.num_items = ks, size[1]
        if len(ks) == 0:
            raise ValueError(
                f"'ks' needs to hold at least one length (got {ks})"
            )
        for k in ks:
            check_k(k, self.num_items)
        self.labels = CompressedRows(
            edge_label_index, *size, 'edge_label_index'
        )
        if edge_label_index.size(1) == 0:
            raise ValueError(
                "'edge_label_index' needs to hold at least one pair to "
                'evaluate against '
                f'(got shape {list(edge_label_index.size())})'
            )
        device = edge_label_index.device
        self.barred = Barred(exclude, candidates, size, device)
        if self.barred.candidates is not None:
            items = edge_label_index[1]
            name = 'edge_label_index[1]'
            check_candidates(name, items, self.barred.candidates)
        self.metrics = LinkPredMetricCollection(
            {
                f'{name}@{k}': metric(k=k)
                for k in ks
                for name, metric in (
                    ('recall', LinkPredRecall),
                    ('ndcg', LinkPredNDCG),
                )
            }
        ).to(device)

    def update(self, users: Tensor, score: Tensor) -> None:
        r"""Ranks the items of one block of users."""
        top = mask_top_k(users, score, max(self.ks), self.barred)
        # The metrics know no padding; this index is no item's:
        top = top.masked_fill(top < 0, self.num_items)
        pairs = coalesce(torch.stack(self.labels[users][:2]))
        self.metrics.update(top, pairs)

    def compute(self) -> dict[str, float]:
        r"""Returns the means over all users so far."""
        return {name: float(x) for name, x in self.metrics.compute().items()}
