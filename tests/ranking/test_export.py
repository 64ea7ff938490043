import os
import sys

import numpy as np
import pytest
import torch
from toy_shop import ITEMS, RATES, USERS, get_data, get_embs

from crane_pyg.ranking import Ranker, lists

NAMES = ['out.npy', 'out.parquet']


@pytest.fixture
def ranker():
    r"""User 1 has nothing left, user 2 one item, and the others enough."""
    data = get_data()
    history = torch.tensor(
        [
            [*[1] * ITEMS, *[2] * (ITEMS - 1)],
            [*range(ITEMS), *range(1, ITEMS)],
        ]
    )
    others = data[RATES].edge_index
    others = others[:, others[0] != 2]
    history = torch.cat([others, history], dim=1)
    data[RATES].edge_index = history
    return Ranker.fit(data, *get_embs(), relations=(), block_size=9)


@pytest.mark.parametrize('k', [1, 5, ITEMS, np.int64(3)])
def test_export_npy(ranker, k, tmp_path):
    ranker.export(str(tmp_path / 'out.npy'), k)
    out = np.load(tmp_path / 'out.npy', allow_pickle=False)
    assert out.dtype == np.int64
    assert out.tolist() == ranker.recommend(k=k).tolist()
    assert out[1].tolist() == [-1] * k
    assert os.listdir(tmp_path) == ['out.npy']


@pytest.mark.parametrize('k', [1, 5, ITEMS])
def test_export_parquet(ranker, k, tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    ranker.export(tmp_path / 'out.parquet', k)
    table = parquet.read_table(tmp_path / 'out.parquet')
    assert table.column_names == ['user', 'rank', 'item', 'score']
    types = [str(field.type) for field in table.schema]
    assert types == ['int64', 'int64', 'int64', 'float']

    top = ranker.top_k(k)
    expected = [
        (user, rank, item, score)
        for user in range(USERS)
        for rank, (item, score) in enumerate(
            zip(*(x[user].tolist() for x in top), strict=True), start=1
        )
        if item >= 0  # Fewer rows, and no padding.
    ]
    rows = list(zip(*table.to_pydict().values(), strict=True))
    assert rows == expected
    assert [row[0] for row in rows].count(2) == 1
    assert os.listdir(tmp_path) == ['out.parquet']


@pytest.mark.parametrize('name', NAMES)
def test_export_replaces_as_a_whole(name, ranker, tmp_path, monkeypatch):
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow')
    path, sizes = tmp_path / name, []
    ranker.export(path, 3)
    before = path.read_bytes()

    def fail(users, *args):
        sizes.append(users.numel())
        if users.numel() < 9:  # The last block.
            assert len(os.listdir(tmp_path)) == 2
            raise KeyboardInterrupt
        return top(users, *args)

    top = lists.mask_top_k
    monkeypatch.setattr(lists, 'mask_top_k', fail)
    with pytest.raises(KeyboardInterrupt):
        ranker.export(path, 4)
    monkeypatch.undo()
    assert sizes == [9, 9, 9, 9, 4]  # One block of users at a time.
    assert os.listdir(tmp_path) == [name]
    assert path.read_bytes() == before


@pytest.mark.parametrize('name', ['out.csv', 'out', 'parquet', '.npy', 'a.NPY'])
def test_export_other_formats(name, ranker, tmp_path):
    with pytest.raises(ValueError, match=rf"'path' needs .*\(got '.*{name}'\)"):
        ranker.export(tmp_path / name, 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('k', [0, ITEMS + 1, True])
def test_export_invalid_k(name, k, ranker, tmp_path):
    with pytest.raises(ValueError, match=rf"'k' needs .* \(got {k}\)"):
        ranker.export(tmp_path / name, k)
    assert os.listdir(tmp_path) == []


def test_export_without_a_folder(ranker, tmp_path):
    with pytest.raises(FileNotFoundError, match='missing'):
        ranker.export(tmp_path / 'missing' / 'out.npy', 3)


def test_export_needs_pyarrow(ranker, tmp_path, monkeypatch):
    for name in ['pyarrow', 'pyarrow.parquet']:
        monkeypatch.setitem(sys.modules, name, None)
    match = r"needs 'pyarrow', .* not installed: pip install pyarrow$"
    with pytest.raises(ImportError, match=match):
        ranker.export(tmp_path / 'out.parquet', 3)
    assert os.listdir(tmp_path) == []
    ranker.export(tmp_path / 'out.npy', 3)
    assert np.load(tmp_path / 'out.npy').shape == (USERS, 3)
