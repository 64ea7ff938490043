r"""CRANE multimodal recommendation for PyTorch Geometric."""

import importlib
from types import ModuleType

__version__ = '0.1.0'

__all__ = ['__version__']

_MODULES = ('datasets', 'explain', 'nn', 'ranking', 'training', 'transforms')


def __getattr__(name: str) -> ModuleType:
    r"""Imports a module where it is first asked for."""
    if name in _MODULES:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
