r"""Top-:math:`k` lists, in blocks of users."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from crane_pyg._check import check_integer, check_size
from crane_pyg._groups import Products, group_top_k
from crane_pyg._rows import (
    CompressedRows,
    as_index,
    as_pairs,
    check_all_finite,
    check_shape,
)
from crane_pyg.ranking.neighborhood import Neighborhood

__all__ = ['TopK', 'top_k']

Scores = Iterator[tuple[Tensor, Tensor]]
BARRED = float('-inf')  # No item has this score, see `check_embeddings`.


class TopK(NamedTuple):
    r"""The items of highest score.

    Args:
        index (torch.Tensor): Item indices :math:`(B, k)` in descending order
            of score, :obj:`-1` where a user has fewer than :math:`k` items.
        score (torch.Tensor): Their scores :math:`(B, k)`, :math:`-\infty`
            where there is no item.
    """

    index: Tensor  # type: ignore[assignment]  # As PyG's search calls it.
    score: Tensor


@torch.no_grad()
def top_k(
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    user_index: object = None,
    exclude: object = None,
    block_size: int = 1024,
    neighbors: Neighborhood | None = None,
    candidates: object = None,
) -> TopK:
    r"""Returns the :math:`k` items of highest score for each user: the inner
    product of their embeddings, plus what :obj:`neighbors` adds to it.

    Scores are computed in single precision, or in double if the embeddings
    are. Indices and pairs may be tensors, arrays, columns or lists.

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
        neighbors (Neighborhood, optional): Adds to the inner products, see
            :class:`~crane_pyg.ranking.Neighborhood`. The embeddings need
            to be those of all users and items. (default: :obj:`None`)
        candidates (torch.Tensor, optional): If given, the only items that may
            be returned :math:`(C)`. (default: :obj:`None`)

    Raises:
        ValueError: If :math:`k` or :obj:`block_size` is out of its range, or
            an index is beyond the embeddings, or these are not finite, too
            large for their products to be, or not those of :obj:`neighbors`.
    """
    size, device = (user_emb.size(0), item_emb.size(0)), user_emb.device
    k = as_k(k, size[1])
    if user_index is None:
        user_index = torch.arange(size[0], device=device)
    users = as_index('user_index', user_index, size[0], device)
    barred = Barred(exclude, candidates, size, device)
    scores = blocks(user_emb, item_emb, users, block_size, neighbors)
    return join(mask_top_k(*score, k, barred) for score in scores)


def blocks(
    user_emb: Tensor,
    item_emb: Tensor,
    user_index: Tensor,
    block_size: int,
    neighbors: Neighborhood | None = None,
) -> Scores:
    r"""Yields blocks of users and their scores of all items, filled up with
    :math:`-\infty` to whole groups; the next block overwrites them. No users
    are one empty block.
    """
    check_size(1, block_size=block_size)
    check_embeddings(user_emb, item_emb)
    check_neighbors(neighbors, (user_emb.size(0), item_emb.size(0)))
    # Half precision adds up too few digits, and has no large numbers:
    dtype = torch.promote_types(item_emb.dtype, torch.float)
    items = item_emb.to(dtype)
    num_rows = min(block_size, user_index.numel())
    products = Products(num_rows, items.size(0), items)
    for users in user_index.split(block_size):
        score = products(user_emb[users].to(dtype), items)[: users.numel()]
        yield (
            users,
            score if neighbors is None else neighbors.add_to(score, users),
        )


class Barred:
    r"""The items that are never to be ranked: those excluded for a user, and
    those that are no candidates, if candidates are given.
    """

    def __init__(
        self,
        exclude: object,
        candidates: object,
        size: tuple[int, int],
        device: torch.device,
    ) -> None:
        if exclude is None:
            exclude = torch.empty(2, 0, dtype=torch.long, device=device)
        pairs = as_pairs('exclude', exclude, size, device)
        self.rows = CompressedRows(pairs, *size, 'exclude')
        self.candidates, self.others = None, None
        if candidates is not None:
            index = as_index(
                'candidates', candidates, size[1], device, ordered=False
            )
            self.candidates = index
            self.others = torch.ones(size[1], dtype=torch.bool, device=device)
            self.others[index] = False

    def mask_(self, users: Tensor, score: Tensor) -> None:
        r"""Overwrites the scores :math:`(B, I)` of barred items."""
        row, col, _ = self.rows[users]
        score[row, col] = BARRED
        if self.others is not None:  # Scores may be filled up.
            items = score[:, : self.others.numel()]
            items.masked_fill_(self.others, BARRED)


def mask_top_k(users: Tensor, score: Tensor, k: int, barred: Barred) -> TopK:
    r"""Returns the best items that are not barred; overwrites the scores."""
    barred.mask_(users, score)
    value, index = group_top_k(score, k)
    return TopK(index.masked_fill(value == BARRED, -1), value)


def join(tops: Iterator[TopK]) -> TopK:
    r"""Returns the lists of all blocks as one."""
    index, score = zip(*tops, strict=True)
    return TopK(torch.cat(index), torch.cat(score))


def check_embeddings(user_emb: Tensor, item_emb: Tensor) -> None:
    r"""Refuses what has no inner products, or none that are finite: a score
    of :math:`-\infty` is that of a barred item.
    """
    if user_emb.dtype != item_emb.dtype or not user_emb.is_floating_point():
        raise ValueError(
            f"'user_emb' and 'item_emb' need to be floating and of the same "
            f'type (got {user_emb.dtype} and {item_emb.dtype})'
        )
    check_shape('item_emb', item_emb, item_emb.size(0), user_emb.size(1))
    check_all_finite('user_emb', user_emb)
    check_all_finite('item_emb', item_emb)
    dtype = torch.promote_types(item_emb.dtype, torch.float)
    bound = user_emb.size(1) * math.prod(map(_largest, (user_emb, item_emb)))
    if bound > torch.finfo(dtype).max:
        raise ValueError(
            "'user_emb' and 'item_emb' need to have finite inner products "
            f'(got entries up to {_largest(user_emb):.3g} and '
            f'{_largest(item_emb):.3g})'
        )


def _largest(x: Tensor) -> float:
    return max(map(abs, map(float, x.aminmax()))) if x.numel() > 0 else 0.0


def check_neighbors(
    neighbors: Neighborhood | None, size: tuple[int, int]
) -> None:
    r"""Refuses a neighborhood of other users or items."""
    if neighbors is not None and neighbors.size != size:
        raise ValueError(
            f"'user_emb' and 'item_emb' need to hold all {neighbors.size} "
            f"users and items of 'neighbors' (got {size})"
        )


def as_k(k: object, num_items: int, name: str = 'k') -> int:
    r"""Returns the length of a list, no longer than the catalogue."""
    if isinstance(k, (Tensor, np.ndarray)) and k.ndim == 0:
        k = k.item()
    check_integer(**{name: k})
    out: int = int(k)  # type: ignore[call-overload]
    if not 0 < out <= num_items:
        raise ValueError(
            f"'{name}' needs to be between 1 and the number of items "
            f'{num_items} (got {out})'
        )
    return out
