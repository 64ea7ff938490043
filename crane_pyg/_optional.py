import importlib
from types import ModuleType


def require(name: str, purpose: str = 'This') -> ModuleType:
    r"""Imports a module of a package that :obj:`crane_pyg` can do without.

    Args:
        name (str): The module, *e.g.*, :obj:`"safetensors.torch"`.
        purpose (str, optional): What needs it. (default: :obj:`"This"`)

    Raises:
        ImportError: If its package is not installed.
    """
    package = name.partition('.')[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or e.name.partition('.')[0] != package:
            raise  # It is there, and lacks a package of its own.
        raise ImportError(
            f"{purpose} needs '{package}', which is not installed: "
            f'pip install {package}'
        ) from e
