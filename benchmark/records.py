r"""Results as JSON Lines: a file for each question and data set, a line for
each run.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crane_pyg._files import replacing

RESULTS = Path(__file__).parent / 'results'
Record = dict[str, Any]


def path_of(question: str, dataset: str, results: Path = RESULTS) -> Path:
    """The file of a question and a data set."""
    return results / question / f'{dataset}.jsonl'


def read(path: Path) -> list[Record]:
    """All records of a file, none if there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def find(records: list[Record], **about: object) -> Record | None:
    """The record with these values, if any."""
    for record in records:
        if all(record.get(key) == value for key, value in about.items()):
            return record
    return None


def put(
    path: Path, record: Record, keys: tuple[str, ...] = ('model', 'seed')
) -> None:
    """Adds a record, in place of one that has the same values of the keys.

    Processes that write to the same folder wait for each other, and readers
    see the file before or after, never in between.
    """
    about = {key: record.get(key) for key in keys}
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        others = read(path)
        while (old := find(others, **about)) is not None:
            others.remove(old)
        write(path, [*others, record], keys)


def write(
    path: Path, records: list[Record], keys: tuple[str, ...] = ('model', 'seed')
) -> None:
    """Writes a file as a whole, sorted by the keys."""

    def order(record: Record) -> list[tuple[str, float]]:
        values = [record.get(key) for key in keys]
        return [
            ('', x) if isinstance(x, int) else (str(x), 0.0) for x in values
        ]

    lines = [json.dumps(x) for x in sorted(records, key=order)]
    with replacing(path) as temp:
        temp.write_text(''.join(f'{line}\n' for line in lines))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from the folder; the lock ends with ours."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
