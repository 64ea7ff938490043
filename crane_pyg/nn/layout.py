r"""The layout in which a graph is propagated fastest, made once and kept."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData

from crane_pyg._edges import EdgeType, get_graph, get_num_nodes, rev_edge_type
from crane_pyg._rows import check_edge_index

Graph = tuple[Tensor, Tensor]


class DualGraph(NamedTuple):
    r"""The edges and weights of the user-item graph, to the items and to the
    users, and of the item graph, if there is need of it.
    """

    to_item: Graph
    to_user: Graph
    similar: Graph | None


class GraphCache:
    r"""Turns the edges of a graph, sorted by destination, into an
    :class:`~torch_geometric.EdgeIndex` with filled caches: of all that
    :class:`~crane_pyg.nn.CRANEConv` takes, it takes the least time.

    It is kept for as long as the tensor of the edges lives, and made anew once
    that was written to. Edges in another order stay as they are, as weights
    and masks have to fit them, and so does an
    :class:`~torch_geometric.EdgeIndex`.
    """

    def __init__(self) -> None:
        self._kept = WeakTensorKeyDictionary()

    def __reduce__(self) -> tuple[Callable[[], 'GraphCache'], tuple[()]]:
        # A copied or unpickled model finds out on its own:
        return GraphCache, ()

    def __call__(self, edge_index: Tensor, size: tuple[int, int]) -> Tensor:
        r"""Returns the edges of a graph.

        Args:
            edge_index (torch.Tensor): The edges :math:`(2, E)`.
            size (tuple[int, int]): The number of sources and destinations.

        Raises:
            ValueError: If an index is out of range.
        """
        if isinstance(edge_index, EdgeIndex):
            return edge_index
        if edge_index.is_inference():  # Which has no version to tell a change.
            return lay_out(edge_index, size)
        state = (edge_index._version, size)
        kept: tuple[object, Tensor]
        kept = self._kept.get(edge_index, (None, edge_index))
        if kept[0] != state:
            kept = (state, lay_out(edge_index, size))
            self._kept[edge_index] = kept
        return kept[1]

    def read(
        self,
        data: HeteroData,
        edge_type: EdgeType,
        item_edge: str | None,
        size: tuple[int, int],
    ) -> DualGraph:
        r"""Returns the graphs of :class:`~crane_pyg.transforms.BuildDualGraph`.

        Args:
            data (torch_geometric.data.HeteroData): The data that holds them.
            edge_type (tuple): The edge type of the training pairs.
            item_edge (str, optional): The name of the relation between items.
            size (tuple[int, int]): The number of users and items.

        Raises:
            ValueError: If a graph is missing, or there are more or fewer
                users or items.
        """
        user, _, item = edge_type
        to_item = get_graph(data, edge_type)
        to_user = get_graph(data, rev_edge_type(edge_type))
        for node_type, expected in ((user, size[0]), (item, size[1])):
            found = get_num_nodes(data, node_type)
            if found != expected:
                raise ValueError(
                    f"'data' needs to have {expected} nodes of type "
                    f"'{node_type}' (got {found})"
                )
        similar = None
        if item_edge is not None:
            edge_index, weight = get_graph(data, (item, item_edge, item))
            similar = self(edge_index, (size[1], size[1])), weight
        return DualGraph(
            (self(to_item[0], size), to_item[1]),
            (self(to_user[0], size[::-1]), to_user[1]),
            similar,
        )


def lay_out(edge_index: Tensor, size: tuple[int, int]) -> Tensor:
    r"""Returns the edges with filled caches, if they are sorted."""
    check_edge_index(edge_index, *size)
    col = edge_index[1]
    # Another tensor of the same memory, for the given one to be forgotten:
    edge_index = edge_index.detach()
    if bool((col[1:] < col[:-1]).any()) or not edge_index.is_contiguous():
        return edge_index
    out = EdgeIndex(edge_index, sparse_size=size, sort_order='col')
    out.fill_cache_()
    return out
