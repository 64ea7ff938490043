r"""Layers, objectives and the recommender made of them."""

from crane_pyg.nn.conv import CRANEConv
from crane_pyg.nn.crane import CRANE, CRANEOutput
from crane_pyg.nn.loss import InfoNCELoss, SampledSoftmaxLoss
from crane_pyg.nn.rca import RCA

__all__ = classes = [
    'CRANE',
    'RCA',
    'CRANEConv',
    'CRANEOutput',
    'InfoNCELoss',
    'SampledSoftmaxLoss',
]
