r"""Graph transforms for multimodal recommendation."""

from crane_pyg.transforms.attach import attach_items, attach_users
from crane_pyg.transforms.co_rated import co_rated_graph
from crane_pyg.transforms.drop_edges import DegreeDropEdges, degree_drop
from crane_pyg.transforms.dual_graph import BuildDualGraph
from crane_pyg.transforms.knn import knn_item_graph, merge_item_graphs
from crane_pyg.transforms.norm import row_norm, symmetric_norm
from crane_pyg.transforms.profile import AddUserProfiles, user_profiles
from crane_pyg.transforms.reduce import ReduceFeatures

__all__ = [
    'AddUserProfiles',
    'BuildDualGraph',
    'DegreeDropEdges',
    'ReduceFeatures',
    'attach_items',
    'attach_users',
    'co_rated_graph',
    'degree_drop',
    'knn_item_graph',
    'merge_item_graphs',
    'row_norm',
    'symmetric_norm',
    'user_profiles',
]

classes = __all__[:4]
functions = __all__[4:]
