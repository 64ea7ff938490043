r"""Products of many rows and their largest entries, found group by group."""

from typing import Final

import torch
from torch import Tensor

GROUP: Final = 64


class Products:
    r"""The inner products of all rows of two matrices.

    They share one buffer, as fresh memory costs as much as a product, and are
    filled up with :math:`-\infty` to whole groups in both directions, as rows
    that begin at odd addresses are slow to write.
    """

    def __init__(self, num_rows: int, num_cols: int, like: Tensor) -> None:
        self.buffer = like.new_empty(fill_up(num_rows) * fill_up(num_cols))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        r"""Returns the products :math:`\mathbf{X} \mathbf{Y}^{\top}`; the next
        call overwrites them.
        """
        num_rows, num_cols = x.size(0), y.size(0)
        size = (fill_up(num_rows), fill_up(num_cols))
        out = self.buffer[: size[0] * size[1]].view(size)
        out[num_rows:] = float('-inf')
        out[:, num_cols:] = float('-inf')
        torch.mm(x, y.t(), out=out[:num_rows, :num_cols])
        return out


def fill_up(num: int) -> int:
    r"""Returns the next multiple of the size of a group."""
    return -(-num // GROUP) * GROUP


def group_top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Equals :func:`torch.topk` of a matrix, in less time if it has many
    whole groups.

    The :math:`k` largest entries of a row are in the :math:`k` groups of
    largest maximum, as any other group leaves :math:`k` larger ones.
    """
    num_groups = x.size(1) // GROUP
    if x.size(1) % GROUP > 0 or num_groups < 2 * k:
        return x.topk(k, dim=1)
    groups = x.reshape(-1, GROUP)
    best = groups.amax(dim=1).view(-1, num_groups).topk(k, sorted=False)[1]
    first = torch.arange(x.size(0), device=x.device).unsqueeze(1) * num_groups
    value = groups.index_select(0, (first + best).view(-1))
    value, place = value.view(-1, k * GROUP).topk(k, dim=1)
    index = best.gather(1, place // GROUP) * GROUP + place % GROUP
    return value, index
