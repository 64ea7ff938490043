from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, Size
from torch_geometric.utils import is_sparse

from crane_pyg._rows import check_shape
from crane_pyg.nn.spmm import needs_grad, spmm


class CRANEConv(MessagePassing):
    r"""The parameter-free graph propagation of the `"Cross-Modal Attention
    Network with Dual Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper, which is the one of the
    `"LightGCN: Simplifying and Powering Graph Convolution Network for
    Recommendation" <https://arxiv.org/abs/2002.02126>`_ paper, for square and
    for bipartite graphs.

    .. math::
        \mathbf{x}^{\prime}_i = \sum_{j \in \mathcal{N}(i)}
        \frac{e_{j,i}}{\sqrt{d_i} \sqrt{d_j}} \mathbf{x}_j, \qquad
        d_i = \sum_{j \in \mathcal{N}(i)} e_{j,i}, \qquad
        d_j = \sum_{i : j \in \mathcal{N}(i)} e_{j,i}

    where :math:`e_{j,i}` denotes the edge weight from source node :obj:`j` to
    target node :obj:`i` (default: :obj:`1`).
    Target nodes without edges get zeros. There is no root weight: what a node
    keeps of itself is up to the model, which adds :obj:`x`, a mean over layers
    or self-loops. There are no channels to choose either: the output is as
    wide as the input.

    The adjacency is an :obj:`edge_index` tensor, an
    :class:`~torch_geometric.EdgeIndex`, or, transposed, a
    :class:`torch_sparse.SparseTensor` or a :class:`torch.sparse.Tensor` whose
    values are the edge weights. All give the same result.
    The fastest is an :class:`~torch_geometric.EdgeIndex` that is sorted by
    column, knows its size and has its cache filled. It, and any sparse
    matrix, materializes no message, unless edge weights require a gradient, a
    model is being explained or :obj:`aggr` is not a sum.

    .. note::
        Degrees are those of the given edges. A sampled subgraph that has to
        use the degrees of the full graph needs the normalized weights of the
        full graph as :obj:`edge_weight`, and :obj:`normalize=False`. Since a
        loader samples only :math:`k_i` of the :math:`n_i` edges of a target
        node, their sum needs to be multiplied by :math:`n_i / k_i`. This is
        what a mean over edges does whose weights are multiplied by
        :math:`n_i` beforehand, in the full graph:

        .. code-block:: python

            col = data.edge_index[1]
            data.edge_weight *= degree(col, data.num_nodes)[col]
            conv = CRANEConv(normalize=False, aggr='mean')

        With all neighbors, this is the sum over the full graph. With a
        uniform sample, it is an unbiased estimate of it, for one layer as well
        as for two without self-loops; the paths of further layers may come
        back to a node, whose neighbors are sampled only once. Loaders that
        use :obj:`torch_sparse` need :obj:`replace=True` to sample uniformly,
        see `<https://github.com/rusty1s/pytorch_sparse/issues/385>`_.

    .. note::
        With :obj:`normalize=True`, edge weights need to be non-negative. This
        is not checked, since a check stalls the GPU: a node whose degree is
        not positive counts as isolated, so the output is finite regardless.

    Args:
        normalize (bool, optional): If set to :obj:`False`, will propagate
            with the edge weights as given, *e.g.*, as normalized by a
            transform. Takes a keyword, as do all arguments.
            (default: :obj:`True`)
        **kwargs (optional): Additional arguments of
            :class:`torch_geometric.nn.conv.MessagePassing`.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F)` or
          :math:`((|\mathcal{V}_s|, F), (|\mathcal{V}_t|, *))` if bipartite,
          where the second tensor (or :obj:`None`) only counts nodes,
          edge indices :math:`(2, |\mathcal{E}|)`,
          edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F)` or
          :math:`(|\mathcal{V}_t|, F)` if bipartite

    Raises:
        ValueError: If source features are missing or not floating-point, if
            sizes disagree, if :obj:`edge_weight` does not hold one value per
            edge, or if it comes with a sparse matrix, which has its own.
    """

    # PyG's own way to opt in, although its base class declares it final:
    SUPPORTS_FUSED_EDGE_INDEX: Final[bool] = True  # type: ignore[misc]

    def __init__(
        self,
        *,
        normalize: bool = True,
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        kwargs.setdefault('aggr', 'add')
        super().__init__(**kwargs)
        self.normalize = normalize

    def forward(
        self,
        x: Tensor | OptPairTensor,
        edge_index: Adj,
        edge_weight: OptTensor = None,
        size: Size = None,
    ) -> Tensor:
        r"""Propagates the features of the source nodes along the edges."""
        i, j = (1, 0) if self.flow == 'source_to_target' else (0, 1)
        pair: tuple[OptTensor, OptTensor]
        if isinstance(x, Tensor):
            pair = (x, None) if j == 0 else (None, x)
        else:
            pair = x
        x_src = _check_features(pair[j])
        size = self._infer_size(x_src, pair, edge_index, size)

        _check_weight(edge_weight)
        edge_index, edge_weight = _unpack(edge_index, edge_weight)
        coo = edge_index
        if isinstance(edge_index, EdgeIndex):
            coo = edge_index.as_tensor()
            if not self._is_fusable(x_src, edge_index, edge_weight):
                edge_index = coo
        if not isinstance(edge_index, EdgeIndex):
            # PyTorch 2.13 has wrong gradients along indices of 32 bits:
            edge_index = edge_index.long()

        if self.normalize:
            # Half-precision counts would stop growing at 256 or 2048:
            dtype = torch.promote_types(x_src.dtype, torch.float)
            if edge_weight is None:
                value = torch.ones(coo.size(1), dtype=dtype, device=coo.device)
            else:
                value = edge_weight.to(dtype)
            x_src = self._rescale(x_src, coo[j], value)

        if edge_weight is not None:
            edge_weight = edge_weight.to(x_src.dtype)

        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        out = self.propagate(
            edge_index, x=x_src, edge_weight=edge_weight, size=size
        )
        return self._rescale(out, coo[i], value) if self.normalize else out

    def _infer_size(
        self,
        x_src: Tensor,
        pair: tuple[OptTensor, OptTensor],
        edge_index: Adj,
        size: Size,
    ) -> Size:
        out = self._check_input(edge_index, size)
        for dim, x in enumerate(pair):
            given = None if size is None else size[dim]
            if out[dim] is None:
                out[dim] = given
            elif given not in (None, out[dim]):
                raise ValueError(
                    f"'size' needs to be that of 'edge_index', {out} "
                    f'(got {size})'
                )
            if x is not None:
                self._set_size(out, dim, x)
        # As everywhere in PyG, a graph of unknown size is a square one:
        num_src = x_src.size(self.node_dim)
        num_rows, num_cols = [num_src if n is None else n for n in out]
        return num_rows, num_cols

    def _is_fusable(
        self,
        x: Tensor,
        edge_index: EdgeIndex,
        edge_weight: OptTensor,
    ) -> bool:
        return (
            self.fuse
            and not self.explain
            and edge_index.is_sorted_by_col
            and self.flow == 'source_to_target'
            and self.aggr in {'add', 'sum'}
            and x.dim() == 2
            and self.node_dim in {-2, 0}
            and None not in edge_index.sparse_size()
            and not (edge_weight is not None and needs_grad(edge_weight))
        )

    def _rescale(self, x: Tensor, index: Tensor, value: Tensor) -> Tensor:
        deg = value.new_zeros(x.size(self.node_dim))
        deg = deg.index_add(0, index, value)
        # As `inf` has a zero for its gradient, too:
        scale = deg.masked_fill(deg <= 0, float('inf')).rsqrt()
        return self._expand(scale.to(x.dtype), x) * x

    def _expand(self, value: Tensor, x: Tensor) -> Tensor:
        size = [1] * x.dim()
        size[self.node_dim] = -1
        return value.view(size)

    def message(  # type: ignore[override]
        self,
        x_j: Tensor,
        edge_weight: OptTensor,
    ) -> Tensor:
        r"""Weighs the features that travel along each edge."""
        if edge_weight is None:
            return x_j
        return self._expand(edge_weight, x_j) * x_j

    def message_and_aggregate(  # type: ignore[override]
        self,
        edge_index: EdgeIndex,
        x: Tensor,
        edge_weight: OptTensor,
    ) -> Tensor:
        r"""Sums the weighted features without materializing any message."""
        return spmm(edge_index, x, edge_weight)

    def __repr__(self) -> str:
        normalize = '' if self.normalize else 'normalize=False'
        return f'{self.__class__.__name__}({normalize})'


def _check_features(x: OptTensor) -> Tensor:
    if x is None or not x.is_floating_point():
        raise ValueError(
            f"'x' needs to hold floating-point features of the source nodes "
            f"(got '{None if x is None else x.dtype}')"
        )
    return x


def _check_weight(edge_weight: object) -> None:
    # A name without 'edge' makes `to_hetero` pass one weight per node type:
    if edge_weight is not None and not isinstance(edge_weight, Tensor):
        raise ValueError(
            f"'edge_weight' needs to be a tensor "
            f"(got '{type(edge_weight).__name__}')"
        )


def _unpack(adj: Adj, edge_weight: OptTensor) -> tuple[Tensor, OptTensor]:
    if not is_sparse(adj):
        check_shape('edge_weight', edge_weight, adj.size(1))
        return adj, edge_weight

    if edge_weight is not None:
        raise ValueError(
            f"'edge_weight' needs to be given as the values of the sparse "
            f"matrix (got 'edge_weight' of size {list(edge_weight.size())} "
            f'next to a matrix of size {[adj.size(0), adj.size(1)]})'
        )

    if isinstance(adj, Tensor):
        adj = adj.to_sparse_csr()
        edge_index = EdgeIndex(adj).as_tensor().flip(0)
        value = adj.values()
    else:
        row, col, value = adj.coo()
        edge_index = torch.stack([col, row])

    size = (adj.size(1), adj.size(0))
    return EdgeIndex(edge_index, sparse_size=size, sort_order='col'), value
