r"""Top-:math:`k` lists of all users, written to a file block by block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from crane_pyg._files import replacing
from crane_pyg._optional import require
from crane_pyg.ranking.top_k import TopK

Write = Callable[[Tensor, Tensor, Tensor], None]


def save_lists(
    path: str | Path, tops: Iterator[TopK], size: tuple[int, int]
) -> None:
    r"""Writes the lists of all users, which come in blocks, to a file as
    :meth:`~crane_pyg.ranking.Ranker.export` tells.

    Args:
        path (str): The file.
        tops (iterator): The lists.
        size (tuple[int, int]): The number of users and of items in a list.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(
            f"'path' needs to end in one of {list(WRITERS)} (got '{path}')"
        )
    first = 0
    with replacing(path) as temp, WRITERS[path.suffix](temp, size) as write:
        for top in tops:
            index, score = top.index.cpu(), top.score.float().cpu()
            users = torch.arange(first, first + index.size(0), device='cpu')
            write(users, index, score)
            first += index.size(0)


@contextmanager
def _write_npy(path: Path, size: tuple[int, int]) -> Iterator[Write]:
    header = {'descr': '<i8', 'fortran_order': False, 'shape': size}

    def write(users: Tensor, index: Tensor, score: Tensor) -> None:
        file.write(index.numpy().astype('<i8').tobytes())

    with path.open('wb') as file:
        np.lib.format.write_array_header_1_0(file, header)
        yield write


@contextmanager
def _write_parquet(path: Path, size: tuple[int, int]) -> Iterator[Write]:
    pyarrow, parquet = require('pyarrow'), require('pyarrow.parquet')
    int64, float32 = pyarrow.int64(), pyarrow.float32()
    columns = {'user': int64, 'rank': int64, 'item': int64, 'score': float32}
    schema = pyarrow.schema(columns)
    rank = torch.arange(1, size[1] + 1, device='cpu')

    def write(users: Tensor, index: Tensor, score: Tensor) -> None:
        keep = index >= 0
        xs = users.unsqueeze(1).expand_as(index), rank.expand_as(index)
        arrays = [x[keep].numpy() for x in (*xs, index, score)]
        writer.write_table(pyarrow.table(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema) as writer:
        yield write


WRITERS: Final = {'.npy': _write_npy, '.parquet': _write_parquet}
