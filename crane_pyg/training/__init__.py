r"""Training, and what it needs."""

from crane_pyg.training.fit import fit
from crane_pyg.training.history import History
from crane_pyg.training.recipe import Recipe
from crane_pyg.training.refit import refit
from crane_pyg.training.sampling import sample_negatives

__all__ = [
    'History',
    'Recipe',
    'fit',
    'refit',
    'sample_negatives',
]

classes = __all__[:2]
functions = __all__[2:]
