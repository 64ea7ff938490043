from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric import EdgeIndex

from crane_pyg._rows import check_shape

__all__ = ['spmm']


def _sum_bags(
    indptr: Tensor, index: Tensor, value: Tensor, x: Tensor
) -> Tensor:
    # Twice as fast as a sparse product, as it neither fills the output with
    # zeros nor comes back to it:
    if index.numel() == 0:
        return x.new_zeros(indptr.numel() - 1, x.size(1))
    return F.embedding_bag(
        index,
        x.contiguous(),
        indptr,
        mode='sum',
        per_sample_weights=value,
        include_last_offset=True,
    )


def _sparse_mm(
    indptr: Tensor,
    index: Tensor,
    value: Tensor,
    x: Tensor,
    size: tuple[int, ...],
) -> Tensor:
    adj = torch.sparse_csr_tensor(
        indptr, index, value, size=size, check_invariants=False
    )
    # On a CPU, only the reducing kernel knows half precision:
    reduce = ('sum',) if x.device.type == 'cpu' else ()
    out: Tensor = torch.sparse.mm(adj, x, *reduce)
    return out


class _SPMM(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        edge_index: EdgeIndex,
        edge_weight: Tensor | None,
        transpose: bool,
    ) -> Tensor:
        # An attribute, since unpacking a saved tensor may lose its caches:
        ctx.edge_index, ctx.transpose = edge_index, transpose
        ctx.save_for_backward(edge_weight)

        size = edge_index.get_sparse_size()
        if transpose:
            (indptr, index), perm = edge_index.get_csc()
            size = size[::-1]
        else:
            (indptr, index), perm = edge_index.get_csr()

        if edge_weight is None:
            value = x.new_ones(edge_index.size(1))
        else:
            value = edge_weight.detach().to(x.dtype)
            value = value if perm is None else value[perm]

        if indptr.numel() != size[0] + 1:  # The kernels read out of bounds.
            raise ValueError(
                f"'edge_index' needs to have {size[0] + 1} cached pointers "
                f'(got {indptr.numel()}), please build it anew'
            )

        with torch.autocast(x.device.type, enabled=False):
            if x.dtype == torch.float and x.device.type == 'cpu':
                return _sum_bags(indptr, index, value, x)
            return _sparse_mm(indptr, index, value, x, size)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor, None, None, None]:
        (edge_weight,) = ctx.saved_tensors
        out = _apply(grad, ctx.edge_index, edge_weight, not ctx.transpose)
        return out, None, None, None


# PyTorch leaves `Function.apply` untyped:
_apply: Callable[[Tensor, EdgeIndex, Tensor | None, bool], Tensor] = _SPMM.apply


def spmm(
    edge_index: EdgeIndex,
    x: Tensor,
    edge_weight: Tensor | None = None,
) -> Tensor:
    r"""Multiplies the transposed adjacency matrix of a graph, square or
    bipartite, with a dense matrix.

    .. math::
        \mathbf{X}^{\prime} = \mathbf{A}^{\top} \mathbf{X}, \qquad
        \frac{\partial \mathcal{L}}{\partial \mathbf{X}} = \mathbf{A}
        \frac{\partial \mathcal{L}}{\partial \mathbf{X}^{\prime}}

    Both products run on compressed rows, which
    :meth:`torch_geometric.EdgeIndex.fill_cache_` prepares once for all steps.
    The product is differentiable, any number of times, with respect to
    :obj:`x` only.

    Args:
        edge_index (torch_geometric.EdgeIndex): The edges, sorted by row or by
            column, of a matrix of size :obj:`(num_src, num_dst)`.
        x (torch.Tensor): The dense matrix.
        edge_weight (torch.Tensor, optional): The values of the edges, in the
            order of :obj:`edge_index`. (default: :obj:`None`, all ones)

    Shapes:
        - **input:**
          edge indices :math:`(2, |\mathcal{E}|)`,
          dense matrix :math:`(|\mathcal{V}_s|, F)`,
          edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** dense matrix :math:`(|\mathcal{V}_t|, F)`

    Raises:
        ValueError: If :obj:`edge_index` is not sorted or its cache does not
            fit its size, if the shape of :obj:`x` or :obj:`edge_weight` does
            not, or if :obj:`edge_weight` requires a gradient.
    """
    if not edge_index.is_sorted:
        raise ValueError(
            f"'edge_index' needs to be sorted by row or column "
            f"(got sort order '{edge_index.sort_order}')"
        )
    if edge_weight is not None and needs_grad(edge_weight):
        raise ValueError(
            f"'edge_weight' must not require a gradient (got "
            f"'requires_grad={edge_weight.requires_grad}')"
        )
    check_shape('x', x, edge_index.get_sparse_size(0), x.size(-1))
    check_shape('edge_weight', edge_weight, edge_index.size(1))
    return _apply(x, edge_index, edge_weight, True)


def needs_grad(value: Tensor) -> bool:
    r"""Whether the running computation has to differentiate a tensor."""
    return value.requires_grad and torch.is_grad_enabled()
