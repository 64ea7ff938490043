from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage

from crane_pyg._rows import check_edge_index

EdgeType = tuple[str, str, str]


def get_num_nodes(data: HeteroData, node_type: str) -> int:
    if node_type in data.node_types and data[node_type].can_infer_num_nodes:
        return int(data[node_type].num_nodes)
    raise ValueError(
        f"'num_nodes' is missing for node type '{node_type}' "
        f'(found node types {data.node_types})'
    )


def get_edges(
    data: HeteroData, edge_type: EdgeType
) -> tuple[EdgeStorage, int, int]:
    r"""Returns the checked store of an edge type and its two node counts."""
    if edge_type not in data.edge_types or 'edge_index' not in data[edge_type]:
        raise ValueError(
            f"'edge_index' is missing for edge type {edge_type} "
            f'(found edge types {data.edge_types})'
        )
    num_src = get_num_nodes(data, edge_type[0])
    num_dst = get_num_nodes(data, edge_type[2])
    check_edge_index(data[edge_type].edge_index, num_src, num_dst)
    return data[edge_type], num_src, num_dst


def get_graph(data: HeteroData, edge_type: EdgeType) -> tuple[Tensor, Tensor]:
    r"""Returns the edges of a type, and their weights."""
    known = data.edge_types  # To ask for another type would add it.
    if edge_type not in known or 'edge_weight' not in data[edge_type]:
        raise ValueError(
            f"'data' needs to have edge weights of type {edge_type}, see "
            f"'BuildDualGraph' (got {known})"
        )
    return data[edge_type].edge_index, data[edge_type].edge_weight


def check_edge_type(edge_type: EdgeType) -> EdgeType:
    if isinstance(edge_type, str) or len(edge_type) != 3:
        raise ValueError(
            f"'edge_type' needs to hold three names (got {edge_type})"
        )
    src, rel, dst = edge_type
    return (src, rel, dst)


def rev_edge_type(edge_type: EdgeType) -> EdgeType:
    src, rel, dst = edge_type
    return (dst, f'rev_{rel}', src)
