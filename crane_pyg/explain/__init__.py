r"""Why an item is recommended."""

from crane_pyg.explain.page import save_page
from crane_pyg.explain.pair_scores import PairScores
from crane_pyg.explain.scores import ScoreParts, explain_scores

__all__ = ['PairScores', 'ScoreParts', 'explain_scores', 'save_page']

classes = __all__[:2]
functions = __all__[2:]
