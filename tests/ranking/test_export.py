import os
import sys

import numpy as np
import pytest
import torch

from crane_pyg.ranking import Neighborhood, export, save_top_k, top_k

NUM_USERS, NUM_ITEMS = 13, 23
NAMES = ['out.npy', 'out.parquet']
BLOCK_SIZES = [1, 4, NUM_USERS, 1024]


@pytest.fixture
def embs():
    generator = torch.Generator().manual_seed(12)
    return (
        torch.randn(NUM_USERS, 4, generator=generator),
        torch.randn(NUM_ITEMS, 4, generator=generator),
    )


@pytest.fixture
def exclude():
    r"""User 1 has nothing left, user 2 one item, and the others enough."""
    return torch.tensor(
        [
            [7, 1, *[1] * NUM_ITEMS, *[2] * (NUM_ITEMS - 1), 0],
            [3, 5, *range(NUM_ITEMS), *range(1, NUM_ITEMS), 4],
        ]
    )


def read_parquet(path):
    parquet = pytest.importorskip('pyarrow.parquet')
    return parquet.read_table(path)


@pytest.mark.parametrize('k', [1, 5, NUM_ITEMS])
@pytest.mark.parametrize('block_size', BLOCK_SIZES)
@pytest.mark.parametrize('excluded', [False, True])
def test_save_top_k_npy(embs, exclude, k, block_size, excluded, tmp_path):
    exclude = exclude if excluded else None
    path = tmp_path / 'out.npy'
    save_top_k(str(path), *embs, k, exclude, block_size)
    out = np.load(path, allow_pickle=False)
    assert out.dtype == np.int64
    assert out.tolist() == top_k(*embs, k, exclude=exclude).tolist()
    assert os.listdir(tmp_path) == ['out.npy']


def test_save_top_k_of_a_number_of_numpy(embs, tmp_path):
    save_top_k(tmp_path / 'out.npy', *embs, np.int64(3))
    out = np.load(tmp_path / 'out.npy', allow_pickle=False)
    assert out.tolist() == top_k(*embs, 3).tolist()


def naive_rows(user_emb, item_emb, k, exclude):
    pairs = set() if exclude is None else set(map(tuple, exclude.t().tolist()))
    rows = []
    for user, x in enumerate(user_emb.double()):
        score = (item_emb.double() @ x).tolist()
        items = [i for i in range(len(score)) if (user, i) not in pairs]
        items = sorted(items, key=lambda i: -score[i])[:k]
        rows += [(user, n, i, score[i]) for n, i in enumerate(items, start=1)]
    return rows


@pytest.mark.parametrize('k', [1, 5, NUM_ITEMS])
@pytest.mark.parametrize('block_size', BLOCK_SIZES)
@pytest.mark.parametrize('excluded', [False, True])
def test_save_top_k_parquet(embs, exclude, k, block_size, excluded, tmp_path):
    pytest.importorskip('pyarrow')
    exclude = exclude if excluded else None
    path = tmp_path / 'out.parquet'
    save_top_k(path, *embs, k, exclude, block_size)
    table = read_parquet(path)
    assert table.column_names == ['user', 'rank', 'item', 'score']
    types = [str(field.type) for field in table.schema]
    assert types == ['int64', 'int64', 'int64', 'float']

    out = table.to_pydict()
    users, ranks, items, scores = zip(
        *naive_rows(*embs, k, exclude), strict=True
    )
    assert out['user'] == list(users)
    assert out['rank'] == list(ranks)
    assert out['item'] == list(items)
    assert out['score'] == pytest.approx(scores, abs=1e-5)
    if excluded:  # Fewer rows, and no padding.
        assert out['user'].count(1) == 0
        assert out['user'].count(2) == 1
    assert os.listdir(tmp_path) == ['out.parquet']


@pytest.mark.parametrize('name', NAMES)
def test_save_top_k_holds_one_block_at_a_time(
    name, embs, tmp_path, monkeypatch
):
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow')
    sizes = []

    def spy(users, score, *args):
        sizes.append(score.size(0))
        return top(users, score, *args)

    top = export.mask_top_k
    monkeypatch.setattr(export, 'mask_top_k', spy)
    save_top_k(tmp_path / name, *embs, 3, block_size=5)
    assert sizes == [5, 5, 3]
    if name.endswith('parquet'):
        parquet = pytest.importorskip('pyarrow.parquet')
        with parquet.ParquetFile(tmp_path / name) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(3)]
            assert file.num_row_groups == 3
            assert groups == [15, 15, 9]


@pytest.mark.parametrize('block_size', BLOCK_SIZES)
def test_save_top_k_with_neighbors(embs, exclude, block_size, tmp_path):
    generator = torch.Generator().manual_seed(1)
    edge_index = torch.randint(NUM_ITEMS, (2, 50), generator=generator)
    weight = torch.rand(50, generator=generator)
    graphs = [(edge_index, weight, 5.0)]
    neighbors = Neighborhood(exclude, graphs, (NUM_USERS, NUM_ITEMS))
    path = tmp_path / 'out.npy'
    save_top_k(path, *embs, 5, exclude, block_size, neighbors)
    out = torch.from_numpy(np.load(path))
    expected = top_k(*embs, 5, exclude=exclude, neighbors=neighbors)
    assert torch.equal(out, expected)
    assert not torch.equal(out, top_k(*embs, 5, exclude=exclude))


@pytest.mark.parametrize('name', NAMES)
def test_save_top_k_of_nobody(name, embs, tmp_path):
    path = tmp_path / name
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow')
    save_top_k(path, embs[0][:0], embs[1], 3)
    if name.endswith('npy'):
        assert np.load(path).shape == (0, 3)
    else:
        assert read_parquet(path).num_rows == 0


@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16])
def test_save_top_k_precision(dtype, embs, exclude, tmp_path):
    pytest.importorskip('pyarrow')
    user_emb, item_emb = (emb.to(dtype).requires_grad_() for emb in embs)
    save_top_k(tmp_path / 'out.parquet', user_emb, item_emb, 5, exclude)
    table = read_parquet(tmp_path / 'out.parquet')
    expected = top_k(user_emb, item_emb, 5, exclude=exclude)
    assert table['item'].to_pylist() == expected[expected >= 0].tolist()
    user, item = (torch.tensor(table[x].to_pylist()) for x in ['user', 'item'])
    score = (user_emb[user] * item_emb[item]).sum(dim=-1).float()
    out = torch.tensor(table['score'].to_pylist())
    torch.testing.assert_close(out, score, atol=0.05, rtol=0.01)


@pytest.mark.parametrize('name', NAMES)
def test_save_top_k_replaces_as_a_whole(name, embs, tmp_path, monkeypatch):
    if name.endswith('parquet'):
        pytest.importorskip('pyarrow')
    path = tmp_path / name
    save_top_k(path, *embs, 3)
    before = path.read_bytes()

    def fail(users, *args):
        if users.size(0) < 5:  # The last block.
            assert len(os.listdir(tmp_path)) == 2
            raise KeyboardInterrupt
        return top(users, *args)

    top = export.mask_top_k
    monkeypatch.setattr(export, 'mask_top_k', fail)
    with pytest.raises(KeyboardInterrupt):
        save_top_k(path, *embs, 4, block_size=5)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [name]
    assert path.read_bytes() == before
    save_top_k(path, *embs, 4)
    assert path.read_bytes() != before


@pytest.mark.parametrize('name', ['out.csv', 'out', 'parquet', '.npy', 'a.NPY'])
def test_save_top_k_other_formats(name, embs, tmp_path):
    with pytest.raises(ValueError, match=rf"'path' needs .*\(got '.*{name}'\)"):
        save_top_k(tmp_path / name, *embs, 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'k': 0}, r"'k' needs .* \(got 0\)"),
        ({'k': NUM_ITEMS + 1}, r"'k' needs .* \(got 24\)"),
        ({'block_size': 0}, r"'block_size' needs .* \(got 0\)"),
        (
            {'exclude': torch.tensor([[0], [NUM_ITEMS]])},
            r"'exclude\[1\]' needs .* \(got 23\)",
        ),
    ],
    ids=range(4),
)
def test_save_top_k_wrong_arguments(name, kwargs, match, embs, tmp_path):
    with pytest.raises(ValueError, match=match):
        save_top_k(tmp_path / name, *embs, **{'k': 3, **kwargs})
    assert os.listdir(tmp_path) == []


def test_save_top_k_without_a_folder(embs, tmp_path):
    with pytest.raises(FileNotFoundError, match='missing'):
        save_top_k(tmp_path / 'missing' / 'out.npy', *embs, 3)


def test_save_top_k_needs_pyarrow(embs, tmp_path, monkeypatch):
    for name in ['pyarrow', 'pyarrow.parquet']:
        monkeypatch.setitem(sys.modules, name, None)
    match = r"needs 'pyarrow', .* not installed: pip install pyarrow$"
    with pytest.raises(ImportError, match=match):
        save_top_k(tmp_path / 'out.parquet', *embs, 3)
    assert os.listdir(tmp_path) == []
    save_top_k(tmp_path / 'out.npy', *embs, 3)
    assert np.load(tmp_path / 'out.npy').shape == (NUM_USERS, 3)
