from crane_pyg.datasets.amazon import AmazonMultimodal
from crane_pyg.datasets.fake import FakeMultimodalDataset
from crane_pyg.datasets.mmrec import MMRecDataset, read_mmrec

__all__ = classes = [
    'AmazonMultimodal',
    'FakeMultimodalDataset',
    'MMRecDataset',
    'read_mmrec',
]
