r"""Metrics of a full ranking, in blocks of users."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import torch
from torch import Tensor
from torch_geometric.metrics import (
    LinkPredCoverage,
    LinkPredF1,
    LinkPredHitRatio,
    LinkPredMAP,
    LinkPredMetric,
    LinkPredMetricCollection,
    LinkPredMRR,
    LinkPredNDCG,
    LinkPredPrecision,
    LinkPredRecall,
)
from torch_geometric.utils import coalesce

from crane_pyg._check import check_option
from crane_pyg._held_out import SEEN, are_among, leave_out
from crane_pyg._rows import (
    CompressedRows,
    as_integers,
    as_pairs,
    as_positive,
    check_candidates,
)
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.top_k import Barred, as_k, blocks, mask_top_k

__all__ = ['evaluate']


class Coverage(LinkPredCoverage):
    r"""The share of items in any list, where a last one stands for none."""

    def compute(self) -> Tensor:
        r"""Returns the share."""
        return self.mask[:-1].to(torch.get_default_dtype()).mean()


METRICS: Final[dict[str, Callable[..., LinkPredMetric]]] = {
    'recall': LinkPredRecall,
    'ndcg': LinkPredNDCG,
    'precision': LinkPredPrecision,
    'f1': LinkPredF1,
    'map': LinkPredMAP,
    'mrr': LinkPredMRR,
    'hit_ratio': LinkPredHitRatio,
    'coverage': Coverage,
}


@torch.no_grad()
def evaluate(
    user_emb: Tensor,
    item_emb: Tensor,
    edge_label_index: object,
    exclude: object = None,
    metrics: Sequence[str] = ('recall', 'ndcg'),
    ks: object = (10, 20),
    block_size: int = 1024,
    neighbors: Neighborhood | None = None,
    candidates: object = None,
    edge_label: object = None,
) -> dict[str, float]:
    r"""Ranks all items for every user that has a held-out item, see
    :func:`top_k`, and computes metrics of :obj:`torch_geometric.metrics`.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
        item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
        edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`. One
            that stands twice counts once.
        exclude (torch.Tensor, optional): The pairs left out of the ranking,
            as a rule those of training :math:`(2, E)`. A held-out pair among
            them could never be found, and is left out as well, which a
            :class:`UserWarning` counts. (default: :obj:`None`)
        metrics (list[str], optional): Any of :obj:`"recall"`, :obj:`"ndcg"`,
            :obj:`"precision"`, :obj:`"f1"`, :obj:`"map"`, :obj:`"mrr"`,
            :obj:`"hit_ratio"` and :obj:`"coverage"`.
            (default: :obj:`('recall', 'ndcg')`)
        ks (list[int], optional): The lengths of the lists, or the only one.
            (default: :obj:`(10, 20)`)
        block_size (int, optional): Number of users scored at a time.
            (default: :obj:`1024`)
        neighbors (Neighborhood, optional): Adds to the inner products, see
            :class:`~crane_pyg.ranking.Neighborhood`.
            (default: :obj:`None`)
        candidates (torch.Tensor, optional): If given, the only items that may
            be ranked :math:`(C)`. (default: :obj:`None`)
        edge_label (torch.Tensor, optional): Marks each of the pairs
            :math:`(P)`: those marked zero, the negative ones of
            :class:`~torch_geometric.transforms.RandomLinkSplit`, are left out.
            (default: :obj:`None`)

    Returns:
        dict[str, float]: :obj:`"recall@10"` and so on, the mean over all users
        with held-out items.

    Raises:
        ValueError: If there is no held-out pair, or one of an item that is no
            candidate, if a metric is unknown, if an argument is out of its
            range, or if the embeddings are not finite or not those of
            :obj:`neighbors`.
    """
    size, device = (user_emb.size(0), item_emb.size(0)), user_emb.device
    pairs = held_out_pairs(edge_label_index, edge_label, size, device)
    barred = Barred(exclude, candidates, size, device)
    if barred.candidates is not None:
        name = 'edge_label_index[1]'
        check_candidates(name, pairs[1], barred.candidates)
    pairs = without_seen(pairs, barred.rows.get_edge_index(), SEEN, size)
    ranking = RankingMetrics(size, pairs, metrics, ks)
    users = pairs[0].unique()
    for index, score in blocks(
        user_emb, item_emb, users, block_size, neighbors
    ):
        ranking.update(index, mask_top_k(index, score, ranking.k, barred).index)
    return ranking.compute()


class RankingMetrics:
    r"""The metrics of lists of items, which come in blocks of users."""

    def __init__(
        self,
        size: tuple[int, int],
        edge_label_index: Tensor,
        metrics: Sequence[str],
        ks: object,
    ) -> None:
        metrics, ks = check_metrics(metrics), check_ks(ks, size[1])
        self.k, self.num_items = max(ks), size[1]
        self.labels = CompressedRows(
            edge_label_index, *size, 'edge_label_index'
        )
        makers = METRICS | {
            'coverage': partial(Coverage, num_dst_nodes=size[1] + 1)
        }
        self.device = edge_label_index.device
        with self.device:  # PyG makes tensors on the default device.
            self.metrics = LinkPredMetricCollection(
                {
                    f'{name}@{k}': makers[name](k=k)
                    for k in ks
                    for name in metrics
                }
            )

    def update(self, users: Tensor, index: Tensor) -> None:
        r"""Takes the lists of one block of users, :obj:`-1` where they end."""
        # The metrics know no padding; this index is no item's:
        index = index.masked_fill(index < 0, self.num_items)
        pairs = coalesce(torch.stack(self.labels[users][:2]))
        with self.device:
            self.metrics.update(index, pairs)

    def compute(self) -> dict[str, float]:
        r"""Returns the means over all users so far."""
        with self.device:
            values = self.metrics.compute()
        return {name: float(x) for name, x in values.items()}


def held_out_pairs(
    edge_label_index: object,
    edge_label: object,
    size: tuple[int, int],
    device: torch.device,
) -> Tensor:
    r"""Returns the checked pairs that are not marked as negative ones."""
    name = 'edge_label_index'
    pairs = as_pairs(name, edge_label_index, size, device)
    if edge_label is not None:
        mark = as_positive('edge_label', edge_label, pairs.size(1), device)
        pairs = pairs[:, mark]
    check_any(name, pairs)
    return pairs


def without_seen(
    pairs: Tensor, seen: Tensor, reason: str, size: tuple[int, int]
) -> Tensor:
    r"""Returns the held-out pairs that lists may hold, at least one, and warns
    of the others. To be called by what a user calls without gradients.
    """
    name = 'edge_label_index'
    reasons = {reason: are_among(pairs, seen, size[1])}
    pairs = leave_out(name, pairs, reasons, stacklevel=4)
    check_any(name, pairs)
    return pairs


def check_any(name: str, pairs: Tensor) -> None:
    r"""Refuses no pairs."""
    if pairs.size(1) == 0:
        raise ValueError(
            f"'{name}' needs to hold at least one pair to evaluate against "
            f'(got shape {list(pairs.shape)})'
        )


def check_metrics(metrics: Sequence[str]) -> list[str]:
    r"""Returns the names of metrics, all of which are known."""
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    for name in names:
        check_option('metrics', name, list(METRICS))
    return names


def check_ks(ks: object, num_items: int) -> list[int]:
    r"""Returns the lengths of lists, all of which are in range."""
    out = ks if isinstance(ks, (list, tuple)) else as_integers('ks', ks)
    out = out.view(-1).tolist() if isinstance(out, Tensor) else out
    if len(out) == 0:
        raise ValueError(f"'ks' needs to hold at least one length (got {ks})")
    return [as_k(k, num_items, 'ks') for k in out]
