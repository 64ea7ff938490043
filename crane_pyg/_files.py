import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    r"""Yields a temporary name in the same folder that becomes :obj:`path` at
    the end, such that no process ever sees a half-written file. A link stays
    one.
    """
    path = Path(path).expanduser()
    if path.is_symlink():
        path = path.resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}'")
    temp = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        yield temp
        with temp.open('rb+') as file:  # A crash may not leave it empty.
            os.fsync(file.fileno())
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def save_plain(path: str | Path, content: object, name: str) -> None:
    r"""Saves tensors and plain values, whole, such that they can be loaded
    without running code.

    Args:
        path (str): The file.
        content (object): What to save.
        name (str): What an error calls it.

    Raises:
        ValueError: If there is anything else in :obj:`content`. An earlier
            file stays.
    """
    message = f'{name} needs to hold tensors and plain values'
    with replacing(path) as temp:
        try:
            torch.save(content, temp)
        except (AttributeError, TypeError, pickle.PicklingError) as e:
            raise ValueError(f'{message} (got {e})') from e
        unsafe = get_unsafe_globals_in_checkpoint(temp)
        if len(unsafe) > 0:
            raise ValueError(f'{message} (got {unsafe[0]})')


@contextmanager
def refusing_damage(path: Path, what: str) -> Iterator[None]:
    r"""Turns whatever a damaged file leads to into a :class:`ValueError` that
    names it; that there is no file stays a :class:`FileNotFoundError`.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as e:  # Damage can surface anywhere in the unpickler.
        raise ValueError(
            f"'{path}' is no {what} (got {type(e).__name__}: {e})"
        ) from e
