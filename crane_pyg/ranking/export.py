r"""Top-:math:`k` lists of all users, written to a file block by block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from crane_pyg._files import replacing
from crane_pyg._optional import require
from crane_pyg.ranking.neighborhood import Neighborhood
from crane_pyg.ranking.top_k import (
    Barred,
    check_k,
    mask_top_k,
    score_blocks,
)

__all__ = ['save_top_k']

Write = Callable[[Tensor, Tensor, Tensor], None]


@torch.no_grad()
def save_top_k(
    path: str | Path,
    user_emb: Tensor,
    item_emb: Tensor,
    k: int,
    exclude: Tensor | None = None,
    block_size: int = 1024,
    neighbors: Neighborhood | None = None,
    candidates: Tensor | Sequence[int] | None = None,
) -> None:
    r"""Writes the :math:`k` items of highest score for every user, as
    :func:`~crane_pyg.ranking.top_k` returns them, to a file.

    The end of its name tells the format:

    * :obj:`.npy` is a matrix of item indices :math:`(U, k)`, :obj:`-1` where a
      user has fewer than :math:`k` items left.
    * :obj:`.parquet` is a table of the columns :obj:`user`, :obj:`rank` (from
      one), :obj:`item` and :obj:`score`, sorted by the first two. A user with
      fewer than :math:`k` items left has fewer rows.

    Args:
        path (str): The file, which gets its name as soon as it is complete.
        user_emb (torch.Tensor): User embeddings :math:`(U, d)`.
        item_emb (torch.Tensor): Item embeddings :math:`(I, d)`.
        k (int): Number of items a user.
        exclude (torch.Tensor, optional): The (user, item) pairs never to be
            written :math:`(2, E)`. (default: :obj:`None`)
        block_size (int, optional): Number of users scored and written at a
            time. (default: :obj:`1024`)
        neighbors (Neighborhood, optional): Adds to the inner products, see
            :class:`~crane_pyg.ranking.Neighborhood`.
            (default: :obj:`None`)
        candidates (torch.Tensor, optional): If given, the only items that may
            be written :math:`(C)`. (default: :obj:`None`)

    Raises:
        ImportError: If :obj:`pyarrow`, which Parquet needs, is not installed.
        ValueError: If the name has another end, if :math:`k` or
            :obj:`block_size` is out of its range, if an index is beyond the
            embeddings, or if these are not finite or not those of
            :obj:`neighbors`.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(
            f"'path' needs to end in one of {list(WRITERS)} (got '{path}')"
        )
    size, device = (user_emb.size(0), item_emb.size(0)), user_emb.device
    check_k(k, size[1])
    k = int(k)  # NumPy's would not be read back from the header.
    users = torch.arange(size[0], device=device)
    barred = Barred(exclude, candidates, size, device)
    blocks = score_blocks(user_emb, item_emb, users, block_size, neighbors)
    with (
        replacing(path) as temp,
        WRITERS[path.suffix](temp, (size[0], k)) as write,
    ):
        for users, score in blocks:
            index = mask_top_k(users, score, k, barred)
            value = score.gather(1, index.clamp(min=0))
            write(users.cpu(), index.cpu(), value.float().cpu())


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
    rank = torch.arange(1, size[1] + 1)

    def write(users: Tensor, index: Tensor, score: Tensor) -> None:
        keep = index >= 0
        xs = users.unsqueeze(1).expand_as(index), rank.expand_as(index)
        arrays = [x[keep].numpy() for x in (*xs, index, score)]
        writer.write_table(pyarrow.table(arrays, schema=schema))

    with parquet.ParquetWriter(path, schema) as writer:
        yield write


WRITERS: Final = {'.npy': _write_npy, '.parquet': _write_parquet}
