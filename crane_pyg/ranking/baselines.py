r"""Rankings that need no training, to tell what a model has learned."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import degree

from crane_pyg._edges import get_edges
from crane_pyg.ranking.metrics import evaluate
from crane_pyg.ranking.neighborhood import Neighborhood

__all__ = ['evaluate_item_graph', 'evaluate_popularity']

EdgeType = tuple[str, str, str]
RATES: EdgeType = ('user', 'rates', 'item')


@torch.no_grad()
def evaluate_popularity(
    data: HeteroData,
    edge_label_index: Tensor,
    ks: Sequence[int] = (10, 20),
    edge_type: EdgeType = RATES,
) -> dict[str, float]:
    r"""Ranks the items by their number of training pairs, for every user.

    Args:
        data (torch_geometric.data.HeteroData): The training pairs.
        edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`.
        ks (list[int], optional): The lengths of the lists.
            (default: :obj:`(10, 20)`)
        edge_type (tuple, optional): The edge type of the training pairs.
            (default: :obj:`('user', 'rates', 'item')`)

    Raises:
        ValueError: If the graph is missing, or an argument is out of its range.
    """
    store, num_users, num_items = get_edges(data, edge_type)
    edge_index = store.edge_index
    item = degree(edge_index[1], num_items).unsqueeze(-1)
    user = item.new_ones(num_users, 1)
    return evaluate(user, item, edge_label_index, edge_index, ks)


@torch.no_grad()
def evaluate_item_graph(
    data: HeteroData,
    edge_label_index: Tensor,
    ks: Sequence[int] = (10, 20),
    edge_type: EdgeType = RATES,
    item_edge: str = 'similar_to',
    block_size: int = 1024,
) -> dict[str, float]:
    r"""Ranks the items by the weight of their edges in an item graph from the
    training items of a user: nearest neighbors, without any learning.

    Args:
        data (torch_geometric.data.HeteroData): Both graphs, see
            :class:`~crane_pyg.transforms.BuildDualGraph`.
        edge_label_index (torch.Tensor): The held-out pairs :math:`(2, P)`.
        ks (list[int], optional): The lengths of the lists.
            (default: :obj:`(10, 20)`)
        edge_type (tuple, optional): The edge type of the training pairs.
            (default: :obj:`('user', 'rates', 'item')`)
        item_edge (str, optional): The name of the relation between items.
            (default: :obj:`"similar_to"`)
        block_size (int, optional): Number of users scored at a time.
            (default: :obj:`1024`)

    Raises:
        ValueError: If a graph is missing, or an argument is out of its range.
    """
    store, num_users, num_items = get_edges(data, edge_type)
    edge_index, item_type = store.edge_index, edge_type[2]
    size = (num_users, num_items)
    graph, _, _ = get_edges(data, (item_type, item_edge, item_type))
    if 'edge_weight' not in graph:
        raise ValueError(
            f"'edge_weight' is missing for relation '{item_edge}' "
            f'(found {list(graph.keys())})'
        )
    neighbors = Neighborhood(
        edge_index, [(graph.edge_index, graph.edge_weight, 1.0)], size
    )
    user, item = (torch.zeros(n, 1, device=edge_index.device) for n in size)
    return evaluate(
        user, item, edge_label_index, edge_index, ks, block_size, neighbors
    )
