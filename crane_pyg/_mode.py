from collections.abc import Iterator
from contextlib import contextmanager

from torch.nn import Module


@contextmanager
def evaluation(model: Module) -> Iterator[None]:
    r"""Puts a model into evaluation mode for a while, and each of its modules
    back into the mode it was in: some may have been frozen.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
