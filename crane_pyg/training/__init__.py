r"""Training, and what it needs."""

from crane_pyg.training.checkpoint import load_checkpoint, save_checkpoint
from crane_pyg.training.sampling import sample_negatives

__all__ = ['load_checkpoint', 'sample_negatives', 'save_checkpoint']

classes: list[str] = []
functions = __all__
