r"""Data sets of interactions and multimodal items."""

from crane_pyg.datasets.amazon import AmazonMultimodal
from crane_pyg.datasets.fake import FakeMultimodalDataset
from crane_pyg.datasets.mmrec import MMRecDataset, read_mmrec

__all__ = [
    'AmazonMultimodal',
    'FakeMultimodalDataset',
    'MMRecDataset',
    'read_mmrec',
]

classes = __all__[:3]
functions = __all__[3:]
