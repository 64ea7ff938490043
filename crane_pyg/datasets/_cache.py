import os
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch_geometric.data import HeteroData

from crane_pyg import __version__
from crane_pyg._files import save_plain
from crane_pyg._identity import UnidentifiedError, identify

VERSION = 4  # Raise it whenever the reader or a transform changes its output.
CHECKED_SIZE: Final = 1 << 26  # Bytes; all pairs of the known data sets.


def fingerprint(
    paths: Iterable[Path],
    pre_transform: Callable[[HeteroData], HeteroData] | None,
) -> list[Any] | None:
    r"""Returns what the cached data depend on, made of plain values only, or
    :obj:`None` if nothing tells :obj:`pre_transform` from others, which a
    :class:`UserWarning` says.

    Args:
        paths: The raw files. Of large ones, the checksum is that of the
            beginning.
        pre_transform: The transform, told from another by its content, see
            :func:`~crane_pyg._identity.identify`.
    """
    try:
        transform = identify(pre_transform)
    except UnidentifiedError as e:
        warnings.warn(
            f"The processed data are not cached: 'pre_transform' holds what "
            f'cannot be told from others in the next process (got {e})',
            stacklevel=4,
        )
        return None
    files = []
    for path in paths:
        stat = path.stat()
        with path.open('rb') as file:
            checksum = zlib.crc32(file.read(CHECKED_SIZE))
        files.append([path.name, stat.st_size, stat.st_mtime_ns, checksum])
    return [VERSION, __version__, transform, files]


def load_cache(path: Path, key: list[Any]) -> HeteroData | None:
    r"""Loads cached data, or returns :obj:`None` if there are none for
    :obj:`key`.

    Nothing but tensors and the containers around them is ever unpickled.

    Args:
        path: The cache file. A damaged one gives a :class:`UserWarning`.
        key: The fingerprint it needs to carry.
    """
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location='cpu', weights_only=True)
        if found['key'] != key:
            return None
        return HeteroData.from_dict(found['data'])
    except Exception as e:  # Damage can surface anywhere in the unpickler.
        warnings.warn(
            f"Rebuilding the unreadable cache file '{path}' "
            f'(got {type(e).__name__})',
            stacklevel=2,
        )
        return None


def make_folder(folder: Path) -> None:
    r"""Makes a folder for cache files.

    Args:
        folder: The folder.

    Raises:
        ValueError: If the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _not_writable(folder, e) from e
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _not_writable(folder, 'no permission')


def check_data(data: object) -> HeteroData:
    r"""Refuses what is no data.

    Args:
        data: What :obj:`pre_transform` returned.

    Raises:
        ValueError: If it is anything else than :class:`HeteroData`.
    """
    if not isinstance(data, HeteroData):
        raise ValueError(
            f"'pre_transform' needs to return 'HeteroData' "
            f"(got '{type(data).__name__}')"
        )
    return data


def save_cache(path: Path, key: list[Any], data: HeteroData) -> None:
    r"""Saves data such that no process ever sees a half-written file.

    Args:
        path: The cache file.
        key: The fingerprint of the data.
        data: The data.

    Raises:
        ValueError: If the file cannot be written, or could not be read.
    """
    content = {'key': key, 'data': data.to_dict()}
    try:
        save_plain(path, content, "What 'pre_transform' returns")
    except (OSError, RuntimeError) as e:  # PyTorch's, of a full disk.
        raise _not_writable(path.parent, e) from e


def _not_writable(folder: Path, reason: object) -> ValueError:
    return ValueError(
        f"Cannot write the processed data to '{folder}' (got '{reason}'); "
        f"pass a writable folder as 'processed_dir'"
    )
