r"""Checkpoints that are written whole, and loaded without running code."""

from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from crane_pyg._files import replacing

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
            of the global random number generators are added.
        meta (dict): Plain values that tell what the state is of, *e.g.*, the
            data set and the model size.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is anything else in it than tensors and plain
            values. An earlier checkpoint stays.
    """
    state = {
        **state,
        'rng': torch.get_rng_state(),
        'cuda_rng': torch.cuda.get_rng_state_all(),
    }
    with replacing(path) as temp:
        torch.save({'meta': meta, 'state': state}, temp)
        unsafe = get_unsafe_globals_in_checkpoint(temp)
        if len(unsafe) > 0:  # It could not be loaded.
            raise ValueError(
                f"'state' and 'meta' need to hold tensors and plain values "
                f'(got {unsafe[0]})'
            )


def load_checkpoint(
    path: str | Path,
    meta: dict[str, Any],
    map_location: torch.device | str = 'cpu',
) -> dict[str, Any]:
    r"""Loads the state of a training, and sets the global random number
    generators to what they were.

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
    try:
        saved = torch.load(path, map_location, weights_only=True)
        found, state = dict(saved['meta']), dict(saved['state'])
        rng = state.pop('rng').cpu()
        cuda_rngs = [x.cpu() for x in state.pop('cuda_rng')]
    except FileNotFoundError:
        raise
    except Exception as e:  # Damage can surface anywhere in the unpickler.
        raise ValueError(
            f"'{path}' is no checkpoint (got {type(e).__name__}: {e})"
        ) from e
    for key in {**meta, **found}:
        if found.get(key) != meta.get(key):
            raise ValueError(
                f"The checkpoint '{path}' needs to have '{key}' "
                f'{meta.get(key)!r} (got {found.get(key)!r})'
            )
    torch.set_rng_state(rng)
    for index in range(min(len(cuda_rngs), torch.cuda.device_count())):
        torch.cuda.set_rng_state(cuda_rngs[index], index)
    return state
