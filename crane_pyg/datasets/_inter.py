import gzip
import re
import warnings
import zlib
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

COLUMNS = ('userID', 'itemID', 'x_label')
SPLITS = ('train', 'valid', 'test')
MAX_DIGITS = 18  # More would overflow `int64`.
MAX_QUOTE = 200  # Characters; a file may lack the ends of its lines.
FIRST_LINE = 2  # Lines are counted from one, and the header is the first.

Array = NDArray[np.int64]


class Pairs(NamedTuple):
    r"""The user-item pairs of one :obj:`*.inter` file, in file order."""

    path: Path
    user: Array
    item: Array
    label: Array

    @property
    def num_users(self) -> int:
        r"""The number of users."""
        return int(self.user.max()) + 1

    @property
    def num_items(self) -> int:
        r"""The number of items."""
        return int(self.item.max()) + 1


def read_inter(path: Path) -> Pairs:
    r"""Reads and checks a tab-separated file of labelled user-item pairs. One
    that stands again in its split is dropped with a :class:`UserWarning`.

    Args:
        path: The file, compressed by :program:`gzip` or not.

    Raises:
        ValueError: If anything in the file is not as it should be; the
            message names the file, the line and the column, and quotes the
            value.
    """
    header, _, body = _read_bytes(path).partition(b'\n')
    names = header.decode('utf-8', errors='replace').split('\t')
    positions = [_position(path, names, column) for column in COLUMNS]
    if not body:
        raise ValueError(
            f"'{path}' holds a header and no pair (got {_cut(str(names))})"
        )

    buffer = np.frombuffer(body + b'\n', dtype=np.uint8)
    start, end = _bounds(path, buffer, len(names))
    user, item, label = (
        _parse(path, column, buffer, start[:, i], end[:, i])
        for column, i in zip(COLUMNS, positions, strict=True)
    )
    _check_gaps(path, 'userID', user)
    return _drop_repeated(Pairs(path, user, item, label))


def _read_bytes(path: Path) -> bytes:
    raw = path.read_bytes()
    if raw.startswith(b'\x1f\x8b'):
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as e:
            raise ValueError(
                f"'{path}' is not a readable gzip file (got '{e}')"
            ) from e
    raw = raw.removeprefix(b'\xef\xbb\xbf').replace(b'\r\n', b'\n')
    raw = raw.rstrip(b'\n')
    if not raw:
        raise ValueError(f"'{path}' is empty (got no line)")
    return raw


def _position(path: Path, names: list[str], column: str) -> int:
    if (count := names.count(column)) != 1:
        raise ValueError(
            f"'{path}' needs exactly one column '{column}' in its "
            f'tab-separated header (got {count} in {_cut(str(names))})'
        )
    return names.index(column)


def _bounds(
    path: Path, buffer: NDArray[np.uint8], num_columns: int
) -> tuple[Array, Array]:
    is_newline = buffer == ord('\n')
    end = np.flatnonzero(is_newline | (buffer == ord('\t')))
    last = np.flatnonzero(is_newline)
    # The n-th line has to end with the (n * num_columns)-th separator:
    expected = end[num_columns - 1 :: num_columns]
    if not np.array_equal(last, expected):
        size = min(last.size, expected.size)
        differs = [*(last[:size] != expected[:size]), True]
        row = int(np.argmax(differs))
        line = buffer[last[row - 1] + 1 if row else 0 : last[row]].tobytes()
        raise ValueError(
            f"'{path}', line {row + FIRST_LINE}: needs {num_columns} columns "
            f"(got '{_decode(line)}')"
        )
    start = np.concatenate([[0], end[:-1] + 1])
    return start.reshape(-1, num_columns), end.reshape(-1, num_columns)


def _parse(
    path: Path,
    column: str,
    buffer: NDArray[np.uint8],
    start: Array,
    end: Array,
) -> Array:
    width = end - start
    valid = (width > 0) & (width <= MAX_DIGITS)
    value = np.zeros(width.size, dtype=np.int64)
    for i in range(min(int(width.max()), MAX_DIGITS)):
        inside = i < width
        # Anything but a digit wraps around to more than nine:
        digit = buffer[np.minimum(start + i, end)] - np.uint8(ord('0'))
        valid &= ~inside | (digit <= 9)
        value = np.where(inside, 10 * value + digit, value)
    if column == 'x_label':
        valid &= value < len(SPLITS)
    if not valid.all():
        row = int(np.argmin(valid))
        text = _decode(buffer[start[row] : end[row]].tobytes())
        _refuse(path, row, column, text)
    return value


def _refuse(path: Path, row: int, column: str, text: str) -> NoReturn:
    if column == 'x_label':
        need = 'needs to be 0 (train), 1 (valid) or 2 (test)'
    elif re.fullmatch(r'-[0-9]+', text):
        need = 'needs to be non-negative'
    elif re.fullmatch(r'[0-9]+', text):
        need = f'needs to have at most {MAX_DIGITS} digits'
    else:
        need = 'needs to be an integer'
    raise ValueError(
        f"'{path}', line {row + FIRST_LINE}: '{column}' {need} (got '{text}')"
    )


def _check_gaps(path: Path, column: str, value: Array) -> None:
    # What is no index, such as the number of an account, may be very large,
    # and takes memory for all that are below:
    num, largest = np.unique(value).size, int(value.max())
    if largest >= 2 * num:
        row = int(value.argmax())
        raise ValueError(
            f"'{path}', line {row + FIRST_LINE}: '{column}' needs to count "
            f'from 0 with few gaps, but takes {num} values only '
            f"(got '{largest}')"
        )


def _drop_repeated(pairs: Pairs) -> Pairs:
    order = np.lexsort((pairs.item, pairs.user))  # Which keeps their order.
    user, item = pairs.user[order], pairs.item[order]
    is_same = (user[1:] == user[:-1]) & (item[1:] == item[:-1])
    repeat = np.flatnonzero(is_same)
    if repeat.size == 0:
        return pairs
    label = pairs.label[order]
    leak = repeat[label[repeat + 1] != label[repeat]]
    if leak.size > 0:
        where = leak[np.argmin(np.maximum(order[leak], order[leak + 1]))]
        _refuse_leak(pairs, *sorted((int(order[where]), int(order[where + 1]))))
    warnings.warn(
        f"'{pairs.path}': dropped {repeat.size} pair(s) that stand again in "
        f"the same split (got '{user[repeat[0]]}' and '{item[repeat[0]]}')",
        stacklevel=4,
    )
    keep = np.ones(order.size, dtype=bool)
    keep[order[repeat + 1]] = False
    rows = (pairs.user[keep], pairs.item[keep], pairs.label[keep])
    return Pairs(pairs.path, *rows)


def _refuse_leak(pairs: Pairs, first: int, second: int) -> NoReturn:
    old, new = (SPLITS[pairs.label[row]] for row in (first, second))
    raise ValueError(
        f"'{pairs.path}', line {second + FIRST_LINE}: each pair of 'userID' "
        f"and 'itemID' needs to stand in one split (got '{pairs.user[second]}' "
        f"and '{pairs.item[second]}' in '{old}' and in '{new}', first on line "
        f'{first + FIRST_LINE})'
    )


def _decode(text: bytes) -> str:
    return _cut(text.decode('utf-8', errors='replace'))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_QUOTE else text[:MAX_QUOTE] + '...'
