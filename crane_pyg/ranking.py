r"""Full ranking in blocks of users: top-:math:`k` lists and their metrics."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch_geometric.index import index2ptr
from torch_geometric.metrics import (
    LinkPredMetricCollection,
    LinkPredNDCG,
    LinkPredRecall,
)

__all__ = ['evaluate', 'evaluate_scores', 'top_k']

Scores = Iterator[tuple[Tensor, Tensor]]


@torch.no_grad()
def top_k(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    user_index: Tensor | None = None,
    exclude: Tensor | None = None,
    block_size: int = 1024,
) -> Tensor:
    r"""Returns the :math:`k` items of highest inner product for each user.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
        item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
        k (int): Number of items a user.
        user_index (torch.Tensor, optional): The users :math:`(B)`, or all.
            (default: :obj:`None`)
        exclude (torch.Tensor, optional): The (user, item) pairs never to be
            returned :math:`(2, E)`. (default: :obj:`None`)
        block_size (int, optional): Number of users scored at a time; the peak
            memory is :obj:`block_size` times :math:`I` scores.
            (default: :obj:`1024`)

    Returns:
        torch.Tensor: Item indices :math:`(B, k)` in descending order of
        score, :obj:`-1` where a user has fewer than :math:`k` items left.

    Raises:
        ValueError: If :math:`k` or :obj:`block_size` is out of its range, or
            an index is beyond the embeddings.
    """
    num_users, num_items = user_emb.size(0), item_emb.size(0)
    _check_k(k, num_items)
    if user_index is None:
        user_index = torch.arange(num_users, device=user_emb.device)
    _check_index('user_index', user_index, num_users)
    item_emb_t = item_emb.t().contiguous()
    scores = (
        (users, user_emb[users] @ item_emb_t)
        for users in _split(user_index, block_size)
    )
    rows = Exclusion(exclude, num_users, num_items, user_emb.device)
    outs = [_top_k(score, k, rows, users) for users, score in scores]
    return torch.cat(outs)


def evaluate(
    user_emb: Tensor,
    item_emb: Tensor,
    edge_label_index: Tensor,
    exclude: Tensor | None = None,
    ks: Sequence[int] = (10, 20),
    block_size: int = 1024,
) -> dict[str, float]:
    r"""Ranks all items for every user that has a held-out item.

    Args:
        user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
        item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
        edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`.
        exclude (torch.Tensor, optional): The pairs left out of the ranking,
            as a rule those of training :math:`(2, E)`.
            (default: :obj:`None`)
        ks (list[int], optional): The lengths of the lists.
            (default: :obj:`(10, 20)`)
        block_size (int, optional): Number of users scored at a time.
            (default: :obj:`1024`)

    Returns:
        dict[str, float]: :obj:`"recall@k"` and :obj:`"ndcg@k"` for each
        :math:`k`, the mean over all users with held-out items.

    Raises:
        ValueError: If there is no held-out pair, or an argument is out of
            its range.
    """
    item_emb_t = item_emb.t().contiguous()
    users = edge_label_index[0].unique()
    scores = (
        (block, user_emb[block] @ item_emb_t)
        for block in _split(users, block_size)
    )
    size = (user_emb.size(0), item_emb.size(0))
    return evaluate_scores(scores, size, edge_label_index, exclude, ks)


@torch.no_grad()
def evaluate_scores(
    scores: Scores,
    size: tuple[int, int],
    edge_label_index: Tensor,
    exclude: Tensor | None = None,
    ks: Sequence[int] = (10, 20),
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
    """
    num_users, num_items = size
    for k in ks:
        _check_k(k, num_items)
    if edge_label_index.size(1) == 0:
        raise ValueError(
            "'edge_label_index' needs to hold at least one pair to evaluate "
            f'against (got shape {list(edge_label_index.size())})'
        )
    _check_index('edge_label_index[0]', edge_label_index[0], num_users)
    _check_index('edge_label_index[1]', edge_label_index[1], num_items)

    device = edge_label_index.device
    excluded = Exclusion(exclude, num_users, num_items, device)
    labels = Exclusion(edge_label_index, num_users, num_items, device)
    metrics = LinkPredMetricCollection(
        {
            f'{name}@{k}': metric(k=k)
            for k in ks
            for name, metric in (
                ('recall', LinkPredRecall),
                ('ndcg', LinkPredNDCG),
            )
        }
    ).to(device)
    for users, score in scores:
        top = _top_k(score, max(ks), excluded, users)
        # The metrics know no padding; this index is no item's:
        metrics.update(top.masked_fill(top < 0, num_items), labels[users])
    return {name: float(value) for name, value in metrics.compute().items()}


class Exclusion:
    r"""The items of each user, in compressed rows."""

    def __init__(
        self,
        edge_index: Tensor | None,
        num_users: int,
        num_items: int,
        device: torch.device,
    ) -> None:
        if edge_index is None:
            edge_index = torch.empty(2, 0, dtype=torch.long, device=device)
        _check_index('exclude[0]', edge_index[0], num_users)
        _check_index('exclude[1]', edge_index[1], num_items)
        user, perm = edge_index[0].sort()
        self.ptr: Tensor = index2ptr(user, num_users)
        self.item = edge_index[1][perm]

    def __getitem__(self, users: Tensor) -> Tensor:
        r"""Returns the pairs of :obj:`users`, numbered by their position."""
        start, count = self.ptr[users], self.ptr.diff()[users]
        row = torch.arange(users.size(0), device=users.device)
        row = row.repeat_interleave(count)
        offset = (start - count.cumsum(0) + count)[row]
        position = torch.arange(row.size(0), device=users.device) + offset
        return torch.stack([row, self.item[position]])


def _top_k(
    score: Tensor,
    k: int,
    exclude: Exclusion,
    users: Tensor,
) -> Tensor:
    row, col = exclude[users]
    score[row, col] = float('-inf')
    value, index = score.topk(k, dim=-1)
    return index.masked_fill(value == float('-inf'), -1)


def _split(index: Tensor, block_size: int) -> tuple[Tensor, ...]:
    if block_size <= 0:
        raise ValueError(
            f"'block_size' needs to be positive (got {block_size})"
        )
    return torch.split(index, block_size)


def _check_k(k: int, num_items: int) -> None:
    if not 0 < k <= num_items:
        raise ValueError(
            f"'k' needs to be between 1 and the number of items {num_items} "
            f'(got {k})'
        )


def _check_index(name: str, index: Tensor, size: int) -> None:
    if index.numel() == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"'{name}' needs to be between 0 and {size - 1} "
            f'(got {low if low < 0 else high})'
        )
