r"""Graph transforms for multimodal recommendation."""

from crane_pyg.transforms.attach import attach_items, attach_users
from crane_pyg.transforms.drop_edges import DegreeDropEdges
from crane_pyg.transforms.dual_graph import BuildDualGraph
from crane_pyg.transforms.knn import knn_item_graph
from crane_pyg.transforms.profile import AddUserProfiles
from crane_pyg.transforms.reduce import ReduceFeatures

__all__ = [
    'AddUserProfiles',
    'BuildDualGraph',
    'DegreeDropEdges',
    'ReduceFeatures',
    'attach_items',
    'attach_users',
    'knn_item_graph',
]

classes = __all__[:4]
functions = __all__[4:]
