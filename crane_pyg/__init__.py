r"""CRANE multimodal recommendation for PyTorch Geometric."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crane_pyg.nn import CRANE, RCA, CRANEConv
    from crane_pyg.ranking import Ranker
    from crane_pyg.training import Recipe
    from crane_pyg.training.fit import fit
    from crane_pyg.transforms import BuildDualGraph

__version__ = '0.1.0'

__all__ = [
    'CRANE',
    'RCA',
    'BuildDualGraph',
    'CRANEConv',
    'Ranker',
    'Recipe',
    '__version__',
    'fit',
]

_WINGS = ('datasets', 'explain', 'nn', 'ranking', 'training', 'transforms')
_NAMES = {
    'CRANE': 'nn',
    'RCA': 'nn',
    'CRANEConv': 'nn',
    'BuildDualGraph': 'transforms',
    'Ranker': 'ranking',
    'Recipe': 'training',
    'fit': 'training',
}


def __getattr__(name: str) -> object:
    r"""Imports a wing where it, or a name in it, is first asked for."""
    if name in _WINGS:
        return importlib.import_module(f'{__name__}.{name}')
    if name in _NAMES:
        wing = importlib.import_module(f'{__name__}.{_NAMES[name]}')
        return getattr(wing, name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WINGS, *_NAMES])
