r"""Checkpoints that are written whole, and loaded without running code."""

from pathlib import Path
from typing import Any

import torch

from crane_pyg._files import refusing_damage, replacing, save_plain

__all__ = ['load_checkpoint', 'replacing', 'save_checkpoint']


def save_checkpoint(
    path: str | Path,
    state: dict[str, Any],
    meta: dict[str, Any],
) -> None:
    r"""Saves the state of a training, replacing an earlier one as a whole.

    Args:
        path (str): The file.
        state (dict): State dictionaries, tensors and plain values. The states
            of PyTorch's global random number generators are kept with them.
        meta (dict): Plain values that tell what the state is of, *e.g.*, the
            data set and the model size.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is anything else in it than tensors and plain
            values, or if :obj:`meta` holds what does not equal itself: a
            tensor or a NaN. An earlier checkpoint stays.
    """
    for key, value in meta.items():
        if not _is_plain(value):
            raise ValueError(
                f"'{key}' in 'meta' needs to be a plain value (got {value!r})"
            )
    content = {
        'meta': meta,
        'state': state,
        'rng': torch.get_rng_state(),
        'cuda_rng': torch.cuda.get_rng_state_all(),
    }
    save_plain(path, content, "'state'")


def load_checkpoint(
    path: str | Path,
    meta: dict[str, Any],
    map_location: torch.device | str = 'cpu',
) -> dict[str, Any]:
    r"""Loads the state of a training, and sets PyTorch's global random
    number generators to what they were.

    Args:
        path (str): The file.
        meta (dict): What the state needs to be of.
        map_location (torch.device, optional): Where to put the tensors.
            (default: :obj:`"cpu"`)

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no checkpoint, or one of other data or of
            another model.
    """
    path = Path(path).expanduser()
    with refusing_damage(path, 'checkpoint'):
        saved = torch.load(path, map_location, weights_only=True)
        found, state = dict(saved['meta']), dict(saved['state'])
        rng = saved['rng'].cpu()
        cuda_rngs = [x.cpu() for x in saved['cuda_rng']]
        torch.Generator().set_state(rng)  # To see whether it is one.
    for key in {**meta, **found}:
        lacks = key not in found or key not in meta
        if lacks or found[key] != meta[key]:
            raise ValueError(
                f"The checkpoint '{path}' needs to have '{key}' "
                f'{meta.get(key)!r} (got {found.get(key)!r})'
            )
    torch.set_rng_state(rng)
    for index in range(min(len(cuda_rngs), torch.cuda.device_count())):
        torch.cuda.set_rng_state(cuda_rngs[index], index)
    return state


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(_is_plain(x) for pair in value.items() for x in pair)
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    plain = value is None or isinstance(value, (bool, int, float, str))
    return plain and value == value  # Which NaN is not.
