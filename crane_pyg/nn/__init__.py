r"""Layers, objectives and the recommender made of them."""

from crane_pyg.nn.conv import CRANEConv
from crane_pyg.nn.crane import CRANE
from crane_pyg.nn.loss import InfoNCELoss, SampledSoftmaxLoss
from crane_pyg.nn.objective import CRANEOutput
from crane_pyg.nn.rca import RCA

__all__ = [
    'CRANE',
    'RCA',
    'CRANEConv',
    'CRANEOutput',
    'InfoNCELoss',
    'SampledSoftmaxLoss',
]

classes = __all__
