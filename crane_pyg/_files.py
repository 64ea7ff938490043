import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    r"""Yields a temporary name in the same folder that becomes :obj:`path` at
    the end, such that no process ever sees a half-written file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder '{path.parent}'")
    temp = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        yield temp
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)
