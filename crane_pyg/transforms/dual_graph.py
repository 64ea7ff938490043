from collections.abc import Mapping
from typing import Literal

from torch import Tensor
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.data.hetero_data import HeteroData
from torch_geometric.transforms.base_transform import BaseTransform
from torch_geometric.utils import to_undirected

from crane_pyg._check import check_size
from crane_pyg._edges import (
    EdgeType,
    check_edge_type,
    get_edges,
    get_num_nodes,
    rev_edge_type,
)
from crane_pyg.transforms._utils import (
    check_no_inf,
    check_weights,
    edge_attrs,
    from_lists,
    get_modalities,
    set_edges,
    sort_by_col,
    take_attrs,
    to_lists,
    warn_partly_missing,
)
from crane_pyg.transforms.co_rated import co_rated_graph
from crane_pyg.transforms.knn import merge_item_graphs, nearest
from crane_pyg.transforms.norm import row_norm, symmetric_norm


@functional_transform('build_dual_graph')
class BuildDualGraph(BaseTransform):
    r"""Adds the two graphs of the `"Cross-Modal Attention Network with Dual
    Graph Learning in Multimodal Recommendation"
    <https://arxiv.org/abs/2601.11151>`_ paper: the user-item graph in both
    directions, and an item graph of nearest neighbors in every modality
    (functional name: :obj:`build_dual_graph`).

    .. math::
        \mathbf{S} = \sum_m w_m \, \mathbf{D}_m^{-1} \mathbf{S}_m, \qquad
        \hat{\mathbf{A}} = \mathbf{D}_1^{-1/2} \mathbf{A} \mathbf{D}_2^{-1/2}

    :math:`\mathbf{S}_m` holds the edges of
    :func:`~crane_pyg.transforms.knn_item_graph`, and all three graphs
    are normalized by :func:`~crane_pyg.transforms.norm.symmetric_norm`.
    An undirected item graph is :math:`\mathbf{S} + \mathbf{S}^{\top}`.
    Items that the same users had are connected as well, by edges of a type of
    their own, see :func:`~crane_pyg.transforms.co_rated.co_rated_graph`.
    Modalities are the attributes :obj:`x_<name>` of the item nodes. A row
    that holds a NaN or only zeros lacks the modality: its other modalities
    take the share, see :func:`~crane_pyg.transforms.knn.merge_item_graphs`. A
    :class:`UserWarning` counts rows that hold a NaN next to numbers.

    The neighbors of the items in each modality, the nearest first, are kept
    next to their features, as :obj:`neighbor_<name>` (filled up with
    :obj:`-1`) and :obj:`similarity_<name>`: they are all that
    :func:`~crane_pyg.transforms.attach_items` needs to know of the items to
    place new ones among them.

    Every :obj:`edge_index` becomes a plain tensor, sorted by its second row,
    next to its :obj:`edge_weight`, which replaces an earlier one. Whatever
    else is as long as the training pairs (tensors, arrays, lists) is sorted
    along and copied to the reverse edge type. Only the :obj:`edge_index` of
    :obj:`edge_type` is read: held-out pairs in :obj:`*_edge_label_index` enter
    no graph, and are left as they are with their :obj:`*_edge_label`. An
    :obj:`edge_label` without such pairs, *e.g.*, of ratings, belongs to the
    training pairs.

    .. note::
        Apply PyG's :class:`~torch_geometric.transforms.RandomLinkSplit`
        *before* it, for held-out pairs to enter no graph.
        :class:`~torch_geometric.transforms.ToUndirected` is not needed. PyG's
        :meth:`coalesce` belongs there, too: it sorts edges, and leaves an
        :obj:`edge_weight` as it was.

    Args:
        k (int, optional): The number of neighbors of an item in each
            modality; all others if there are fewer. (default: :obj:`10`)
        modality_weights (dict, optional): The weight :math:`w_m` of each
            modality; one that is not named is left out. All weights are equal
            if not given. (default: :obj:`None`)
        weighting (str, optional): Whether the edges into an item in one
            modality have equal weights (:obj:`"uniform"`), or weights
            proportional to the non-negative part of their similarity
            (:obj:`"cosine"`). (default: :obj:`"cosine"`)
        undirected (bool, optional): If set to :obj:`False`, items receive from
            their own neighbors only, and not also from the items whose
            neighbors they are. (default: :obj:`True`)
        block_size (int, optional): The number of items compared with as many
            others at once. (default: :obj:`2048`)
        edge_type (tuple, optional): The edge type that holds the training
            pairs, from users to items.
            (default: :obj:`('user', 'rates', 'item')`)
        item_edge (str, optional): The name of the relation between similar
            items. (default: :obj:`"similar_to"`)
        num_co_rated (int, optional): The number of edges from an item to
            those its users had as well; :obj:`0` leaves these edges out.
            (default: :obj:`100`)
        co_edge (str, optional): The name of the relation between items of the
            same users. (default: :obj:`"co_rated"`)

    Raises:
        ValueError: If an option is out of range, if the edge type, a number
            of nodes or every modality is missing, if features, weights or
            indices do not fit the nodes, or if something as long as the
            training pairs cannot be sorted along.
    """

    def __init__(
        self,
        k: int = 10,
        modality_weights: dict[str, float] | None = None,
        weighting: Literal['uniform', 'cosine'] = 'cosine',
        undirected: bool = True,
        block_size: int = 2048,
        edge_type: EdgeType = ('user', 'rates', 'item'),
        item_edge: str = 'similar_to',
        num_co_rated: int = 100,
        co_edge: str = 'co_rated',
    ) -> None:
        check_size(1, k=k, block_size=block_size)
        check_size(0, num_co_rated=num_co_rated)
        if modality_weights is not None:
            names = list(modality_weights)
            check_weights(modality_weights, names, 'modality_weights')
        if weighting not in {'uniform', 'cosine'}:
            raise ValueError(
                f"'weighting' needs to be 'uniform' or 'cosine' "
                f"(got '{weighting}')"
            )
        if len({item_edge, co_edge, 'refined'}) < 3:
            raise ValueError(
                f"'item_edge' and 'co_edge' need to differ, and neither can be "
                f"'refined' (got '{item_edge}' and '{co_edge}')"
            )
        self.k = k
        self.modality_weights = modality_weights
        self.weighting = weighting
        self.undirected = undirected
        self.block_size = block_size
        self.edge_type = check_edge_type(edge_type)
        self.item_edge = item_edge
        self.num_co_rated = num_co_rated
        self.co_edge = co_edge

    def forward(self, data: HeteroData) -> HeteroData:
        r"""Returns the data with both graphs."""
        item_type = self.edge_type[2]
        _, _, num_items = get_edges(data, self.edge_type)
        xs = get_modalities(data, item_type)
        for name, x in xs.items():
            check_no_inf(x, f'x_{name}')
            warn_partly_missing(x, f'x_{name}', stacklevel=3)

        for name in self.get_weights(xs):
            neighbor, sim = to_lists(
                *nearest(xs[name], self.k, self.block_size),
                size=(num_items, self.list_width(num_items)),
            )
            data[item_type][f'neighbor_{name}'] = neighbor
            data[item_type][f'similarity_{name}'] = sim
        self.set_item_graph(data)
        self.set_co_rated_graph(data)
        return set_user_item_graph(data, self.edge_type)

    def list_width(self, num_items: int) -> int:
        r"""Returns how many neighbors there is room for."""
        return max(0, min(self.k, num_items - 1))

    def get_weights(self, xs: Mapping[str, object]) -> dict[str, float]:
        r"""Returns the positive weights of the modalities."""
        weights = self.modality_weights or dict.fromkeys(xs, 1.0)
        check_weights(weights, list(xs), 'modality_weights')
        return {name: weight for name, weight in weights.items() if weight > 0}

    def set_item_graph(self, data: HeteroData) -> None:
        r"""Sets the graph of similar items from the lists of neighbors, in
        place.
        """
        item_type = self.edge_type[2]
        num_items, store = get_num_nodes(data, item_type), data[item_type]
        lists = {
            name: from_lists(
                store[f'neighbor_{name}'], store[f'similarity_{name}']
            )
            for name in self.get_weights(get_modalities(data, item_type))
        }
        edge_index, edge_weight = self.item_graph(lists, num_items)
        store = data[item_type, self.item_edge, item_type]
        set_edges(store, edge_index, edge_weight)

    def set_co_rated_graph(self, data: HeteroData) -> None:
        r"""Sets the graph of items of the same users, if any, in place."""
        item_type = self.edge_type[2]
        edge_type = (item_type, self.co_edge, item_type)
        if self.num_co_rated == 0:
            if edge_type in data.edge_types:  # Of other pairs, perhaps.
                del data[edge_type]
            return
        store, num_users, num_items = get_edges(data, self.edge_type)
        edge_index, edge_weight = co_rated_graph(
            store.edge_index, num_users, num_items, self.num_co_rated
        )
        edge_index, perm = sort_by_col(edge_index)
        edge_weight = edge_weight if perm is None else edge_weight[perm]
        set_edges(data[edge_type], edge_index, edge_weight)

    def item_graph(
        self,
        neighbors: dict[str, tuple[Tensor, Tensor]],
        num_items: int,
    ) -> tuple[Tensor, Tensor]:
        r"""Merges the neighbors by every modality, edges and similarities as
        :func:`~crane_pyg.transforms.knn_item_graph` returns them, into the
        edges and normalized weights of one graph.
        """
        graphs = {}
        for name, (edge_index, sim) in neighbors.items():
            value = sim.clamp(min=0.0) if self.weighting == 'cosine' else None
            value = row_norm(edge_index, num_items, num_items, value)
            graphs[name] = (edge_index, value)
        weights = self.modality_weights or dict.fromkeys(neighbors, 1.0)
        weights = {name: weights[name] for name in neighbors}
        edge_index, edge_weight = merge_item_graphs(graphs, weights, num_items)
        if self.undirected:
            edge_index, edge_weight = to_undirected(
                edge_index, edge_weight, num_items, reduce='add'
            )
            # Sorted by source, which in this graph is as well a destination:
            edge_index = edge_index.flip(0)
        edge_index = edge_index.contiguous()
        return edge_index, symmetric_norm(
            edge_index, num_items, num_items, edge_weight
        )

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(k={self.k}, '
            f'modality_weights={self.modality_weights}, '
            f"weighting='{self.weighting}', undirected={self.undirected}, "
            f'block_size={self.block_size}, '
            f"edge_type={self.edge_type}, item_edge='{self.item_edge}', "
            f"num_co_rated={self.num_co_rated}, co_edge='{self.co_edge}')"
        )


def set_user_item_graph(
    data: HeteroData,
    edge_type: EdgeType,
    index: Tensor | None = None,
) -> HeteroData:
    r"""Sets both directions of the user-item graph, of the edges in
    :obj:`index` if given, in place.
    """
    store, num_src, num_dst = get_edges(data, edge_type)
    edge_index, perm = sort_by_col(store.edge_index, index)
    attrs = take_attrs(edge_attrs(store), perm)
    edge_weight = symmetric_norm(edge_index, num_src, num_dst)
    set_edges(store, edge_index, edge_weight, attrs)

    edge_index, perm = sort_by_col(edge_index.flip(0))
    attrs = take_attrs(attrs, perm)
    edge_weight = edge_weight if perm is None else edge_weight[perm]
    rev_store = data[rev_edge_type(edge_type)]
    set_edges(rev_store, edge_index, edge_weight, attrs)
    return data
