r"""The state of a training, in memory and on disk."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from crane_pyg._identity import UnidentifiedError, identify
from crane_pyg.training.recipe import Recipe

# They say when training ends, and may change where it goes on:
ENDING: Final = ('epochs', 'patience', 'min_epochs')


def copy_state(model: Module) -> dict[str, Any]:
    r"""Returns a copy of the weights, on their device."""
    return {
        key: value.clone() if isinstance(value, Tensor) else copy.copy(value)
        for key, value in model.state_dict().items()
    }


def get_meta(
    model: Module,
    recipe: Recipe,
    optimizer: Optimizer,
    scheduler: LRScheduler | None,
    loss_options: Mapping[str, Any],
) -> dict[str, Any]:
    r"""Returns what a checkpoint needs to be of, one entry for each value, such
    that an error can name the one that differs.
    """
    shapes = {name: list(x.shape) for name, x in model.named_parameters()}
    options = {name: _plain(value) for name, value in loss_options.items()}
    values = {
        name: value
        for name, value in asdict(recipe).items()
        if name not in ENDING
    }
    kinds = {'optimizer': optimizer, 'scheduler': scheduler}
    return {
        'model': type(model).__name__,
        **{key: type(value).__name__ for key, value in kinds.items()},
        **{f'recipe.{name}': value for name, value in values.items()},
        **{f'loss_options.{name}': value for name, value in options.items()},
        **{f'shape of {name}': shape for name, shape in shapes.items()},
    }


def _plain(value: object) -> object:
    r"""Returns what tells a value from others, as far as anything does."""
    if value is None or type(value) in {bool, int, float, str}:
        return value
    with suppress(UnidentifiedError):
        return f'{type(value).__name__} ({identify(value)})'
    return type(value).__name__


def check_path(checkpoint: str | Path | None, resume: bool) -> Path | None:
    r"""Returns the file of the checkpoint, if any; it can be written."""
    if checkpoint is None:
        if resume:
            raise ValueError(
                f"'resume' needs a 'checkpoint' to go on from (got {resume})"
            )
        return None
    path = Path(checkpoint).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(
            f"'checkpoint' needs to be a file in a folder that is there "
            f"(got '{path}')"
        )
    return path
