r"""Ranked lists of items, their metrics, and rankings without training."""

from crane_pyg.ranking.baselines import ease, item_knn, popularity
from crane_pyg.ranking.metrics import evaluate
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.ranker import Ranker
from crane_pyg.ranking.top_k import TopK, top_k

__all__ = [
    'Neighborhood',
    'Ranker',
    'TopK',
    'ease',
    'evaluate',
    'item_knn',
    'popularity',
    'top_k',
]

classes = __all__[:3]
functions = __all__[3:]
