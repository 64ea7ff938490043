r"""Closed-form weights between items."""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor
from torch_geometric.utils import coalesce

from crane_pyg._check import check_positive
from crane_pyg._rows import CompressedRows

DOUBLE_ITEMS: Final = 8_000
BLOCK: Final = 1 << 24
PART_SIZE: Final = 1 << 14


def ease_weights(
    edge_index: Tensor, size: tuple[int, int], l2: float
) -> Tensor:
    r"""Returns the weights of the `"Embarrassingly Shallow Autoencoders for
    Sparse Data" <https://arxiv.org/abs/1905.03257>`_ paper, those of the linear
    model that best tells each item of a user from the others.

    .. math::
        \mathbf{P} = \left( \mathbf{X}^{\top} \mathbf{X} + \lambda \mathbf{I}
        \right)^{-1}, \qquad b_{ji} = -\frac{p_{ji}}{p_{ii}}, \qquad b_{ii} = 0

    Up to 8,000 items are solved in double precision, more in single, in a
    matrix or two of all items by all items.

    Args:
        edge_index (torch.Tensor): The users above the items of the training
            pairs :math:`(2, E)`; repeated pairs count once.
        size (tuple[int, int]): The number of users and of items.
        l2 (float): The strength :math:`\lambda` of the regularization.

    Shapes:
        - **output:** :math:`(I, I)` in single precision, a row for each
          source :math:`j`

    Raises:
        ValueError: If :obj:`l2` is not positive.
    """
    check_positive(l2, 'l2')
    edge_index = coalesce(edge_index, num_nodes=max(size))
    return solve(gram_matrix(edge_index, size), l2)


def solve(gram: Tensor, l2: float) -> Tensor:
    r"""Returns the weights of a Gram matrix, which is overwritten."""
    gram.diagonal().add_(l2)
    factor = torch.linalg.cholesky(gram, out=gram)
    # It is symmetric, and comes column by column:
    inverse = torch.cholesky_inverse(factor).mT.contiguous()
    inverse /= -inverse.diagonal().clone()  # Of the columns.
    inverse.fill_diagonal_(0.0)
    return inverse.float()


def gram_matrix(edge_index: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Returns the numbers of users that any two items share
    :math:`\mathbf{X}^{\top} \mathbf{X}`, in double precision for up to 8,000
    items.
    """
    num_items = size[1]
    dtype = torch.double if num_items <= DOUBLE_ITEMS else torch.float
    device = edge_index.device
    out = torch.empty(num_items, num_items, dtype=dtype, device=device)
    for items, count in shared_users(edge_index, size, dtype):
        out[items] = count
    return out


def shared_users(
    edge_index: Tensor, size: tuple[int, int], dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor]]:
    r"""Yields blocks of items :math:`(B)` and the numbers of users that they
    share with all items :math:`(B, I)`; of distinct pairs.
    """
    num_items, device = size[1], edge_index.device
    rows = CompressedRows(edge_index, *size, 'edge_index')
    columns = CompressedRows(edge_index.flip(0), *size[::-1], 'edge_index')
    items = torch.arange(num_items, device=device)
    for block in items.split(max(1, BLOCK // max(1, num_items))):
        out = torch.zeros(block.numel(), num_items, dtype=dtype, device=device)
        row, user, _ = columns[block]
        start = row * num_items
        for first, part in zip(
            start.split(PART_SIZE), user.split(PART_SIZE), strict=True
        ):
            index, other, _ = rows[part]
            index = first.index_select(0, index) + other
            one = out.new_ones(1).expand(index.numel())
            out.view(-1).index_add_(0, index, one)
        yield block, out


def prune(weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Returns the edges of the :obj:`k` entries of each row that are largest
    by absolute value, and these entries.
    """
    num_items = weights.size(0)
    k = min(k, num_items)
    index = torch.cat(
        [block.abs().topk(k, dim=1)[1] for block in weights.split(1024)]
    )
    value = weights.gather(1, index).view(-1)
    row = torch.arange(num_items, device=weights.device).repeat_interleave(k)
    keep = value != 0
    return torch.stack([row, index.view(-1)])[:, keep], value[keep]
