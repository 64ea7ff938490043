from typing import Any

from torch_geometric.data import HeteroData

from crane_pyg.nn import CRANE

from .features import get_features


def crane(data: HeteroData, **kwargs: Any) -> CRANE:
    r"""Returns CRANE for the users, items and features of some data."""
    sizes = {name: x.size(1) for name, x in get_features(data).items()}
    return CRANE(
        data['user'].num_nodes, data['item'].num_nodes, sizes, **kwargs
    )
