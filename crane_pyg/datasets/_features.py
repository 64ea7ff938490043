import math
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crane_pyg.datasets._inter import Pairs

# What a file that cannot be read, or its header, raises:
DAMAGE = (
    ValueError,
    EOFError,
    OSError,
    OverflowError,
    SyntaxError,
    TokenError,
)


def read_features(path: Path, pairs: Pairs) -> Tensor:
    r"""Reads the feature matrix of one modality, one row per item.

    Args:
        path: The :obj:`.npy` file of real numbers, of any type, or the
            :obj:`.npz` file of one such array.
        pairs: The pairs whose items the rows belong to.

    Raises:
        ValueError: If the file is no matrix of real numbers with a row for
            every item of a pair, or if a row holds an infinite value, or is
            missing (NaN) in part.
    """
    source = _open(path)
    _check_layout(path, source)
    _check_length(path, source.shape[0], pairs)
    # Values beyond the range of 32 bits become infinite, and are named below:
    with np.errstate(over='ignore'):
        x = np.array(source, dtype=np.float32, order='C')
    _check_values(path, source, x)
    return torch.from_numpy(x)


def _open(path: Path) -> NDArray[Any]:
    if path.suffix == '.npz':
        return _open_npz(path)
    # Mapping the file keeps one copy of it in memory, refuses files shorter
    # than their header says, and cannot unpickle objects.
    try:
        with np.errstate(over='ignore'):
            return np.lib.format.open_memmap(path, mode='r')
    except DAMAGE as e:
        raise ValueError(
            f"'{path}' needs to be a complete '.npy' file without pickled "
            f"objects (got '{e}')"
        ) from e


def _open_npz(path: Path) -> NDArray[Any]:
    # By hand, as NumPy allocates whatever a header promises:
    try:
        with ZipFile(path) as archive:
            (info,) = archive.infolist()
            with archive.open(info) as file:
                shape, is_fortran, dtype = _read_header(file)
                size = math.prod(shape) * dtype.itemsize
                if dtype.hasobject or size != info.file_size - file.tell():
                    raise ValueError(f'{dtype} of shape {shape}')
                x = np.frombuffer(file.read(), dtype)
        return x.reshape(shape, order='F' if is_fortran else 'C')
    except (*DAMAGE, BadZipFile, RuntimeError, zlib.error) as e:
        raise ValueError(
            f"'{path}' needs to be a complete '.npz' file of one array without "
            f"pickled objects (got '{e}')"
        ) from e


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    form = np.lib.format
    if form.read_magic(file) == (1, 0):
        return form.read_array_header_1_0(file)
    return form.read_array_header_2_0(file)


def _check_layout(path: Path, source: NDArray[Any]) -> None:
    if source.ndim != 2:
        raise ValueError(
            f"'{path}' needs to have two dimensions (got shape {source.shape})"
        )
    if source.shape[1] == 0:
        raise ValueError(
            f"'{path}' needs at least one column (got shape {source.shape})"
        )
    if source.dtype.kind not in 'fiub':
        raise ValueError(
            f"'{path}' needs to hold real numbers (got '{source.dtype}')"
        )


def _check_length(path: Path, num_rows: int, pairs: Pairs) -> None:
    if num_rows >= pairs.num_items:
        return
    item = pairs.item[int(np.argmax(pairs.item >= num_rows))]
    raise ValueError(
        f"'{path}' has {num_rows} rows and needs one for each of the "
        f"{pairs.num_items} items of '{pairs.path.name}' (got 'itemID' "
        f"'{item}')"
    )


def _check_values(
    path: Path, source: NDArray[Any], x: NDArray[np.float32]
) -> None:
    # A row with a non-finite value has a non-finite sum, so that only few rows
    # need a closer look, without a mask as large as the file:
    with np.errstate(over='ignore', invalid='ignore'):
        rows = np.flatnonzero(~np.isfinite(x.sum(axis=1)))
    is_nan = np.isnan(x[rows])
    is_bad = ~np.isfinite(x[rows]) & ~is_nan.all(axis=1, keepdims=True)
    if not is_bad.any():
        return
    index, column = np.argwhere(is_bad)[0]
    row = rows[index]
    if is_nan[index, column]:
        need = 'to be NaN in all columns or in none'
    else:
        need = 'to be finite in 32 bits'
    raise ValueError(
        f"'{path}', row {row}: needs {need} "
        f"(got '{source[row, column]}' in column {column})"
    )
