r"""Ranked lists of items, their metrics, and rankings without training."""

from crane_pyg.ranking.baselines import evaluate_item_graph, evaluate_popularity
from crane_pyg.ranking.export import save_top_k
from crane_pyg.ranking.metrics import evaluate, evaluate_scores
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.top_k import top_k

__all__ = [
    'Neighborhood',
    'evaluate',
    'evaluate_item_graph',
    'evaluate_popularity',
    'evaluate_scores',
    'save_top_k',
    'top_k',
]

classes = __all__[:1]
functions = __all__[1:]
