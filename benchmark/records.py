r"""Results as JSON Lines: a file for each question and data set, a line for
each run.

python benchmark/records.py FOLDER  # add the results of another folder
"""

import argparse
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


def keys_of(path: Path) -> list[str]:
    """What tells the runs of a question apart."""
    others = {'tuning': ['overrides'], 'missing': ['share']}
    if path.parent.name == 'speed':
        return ['table']
    return ['model', 'seed', *others.get(path.parent.name, [])]


def put(path: Path, record: Record) -> None:
    """Adds a record, in place of one that has the same values of the keys.

    Processes that write to the same folder wait for each other, and readers
    see the file before or after, never in between.
    """
    about = {key: record.get(key) for key in keys_of(path)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent):
        others = read(path)
        while (old := find(others, **about)) is not None:
            others.remove(old)
        write(path, [*others, record])


def write(path: Path, records: list[Record]) -> None:
    """Writes a file as a whole, sorted by what tells runs apart."""

    def order(record: Record) -> list[tuple[str, float]]:
        values = [record.get(key) for key in keys_of(path)]
        return [
            ('', x) if isinstance(x, int | float) else (str(x), 0.0)
            for x in values
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


def main() -> None:
    """Adds all lines of another folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument('folder', type=Path)
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    for path in sorted(args.folder.glob('*/*.jsonl')):
        lines = read(path)
        for record in lines:
            put(args.results / path.parent.name / path.name, record)
        print(f'{path}: {len(lines)} lines')


if __name__ == '__main__':
    main()
