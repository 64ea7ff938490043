import gzip
import io
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.transforms import (
    BaseTransform,
    Compose,
    NormalizeFeatures,
)
from toys import HEADER, RATES, ROWS, Trap

import crane_pyg.transforms as T
from crane_pyg.datasets import MMRecDataset, read_mmrec
from crane_pyg.nn import CRANE

# All validation pairs are of item 3:
MORE = [(u, 3 if k == 1 else i, k) for u, i, k in ROWS]
PAIRS = ['edge_index', 'val_edge_label_index', 'test_edge_label_index']
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def replaced(line, row):
    rows = list(ROWS)
    rows[line - 2] = row
    return rows


def assert_refused(folder, *parts, error=ValueError):
    with pytest.raises(error) as info:
        read_mmrec(folder)
    for part in parts:
        assert part in str(info.value)


def assert_same(data, other):
    assert data.to_dict().keys() == other.to_dict().keys()
    for key, store in data.to_dict().items():
        assert store.keys() == other.to_dict()[key].keys()
        for name, value in store.items():
            found = other.to_dict()[key][name]
            assert type(found) is type(value)
            if isinstance(value, torch.Tensor):
                assert found.dtype == value.dtype
                assert torch.equal(found, value)
            else:
                assert found == value


# Reading #####################################################################


def test_read(make_folder):
    data = read_mmrec(make_folder())
    data.validate()
    assert data.node_types == ['user', 'item']
    assert data.edge_types == [RATES]
    assert data['user'].num_nodes == 3
    assert data['item'].num_nodes == 4
    assert list(data['item'].keys()) == ['num_nodes', 'x_image', 'x_text']
    assert data['item'].x_image.dtype == torch.float32
    assert data['item'].x_image.tolist() == X.tolist()
    assert data['item'].x_text.tolist() == (-X[:, :2]).tolist()
    store = data[RATES]
    assert store.edge_index.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert store.val_edge_label_index.tolist() == [[0, 1], [1, 3]]
    assert store.test_edge_label_index.tolist() == [[0, 2], [2, 0]]
    assert store.edge_index.dtype == torch.long


def test_read_str_and_home(make_folder, monkeypatch):
    folder = make_folder()
    assert_same(read_mmrec(folder), read_mmrec(str(folder)))
    monkeypatch.setenv('HOME', str(folder.parent))
    assert_same(read_mmrec(folder), read_mmrec('~/toy'))


def test_read_column_order(make_folder):
    folder = make_folder()
    rows = [('5.0', label, item, '§', user) for user, item, label in ROWS]
    header = 'rating\tx_label\titemID\tnote\tuserID'
    other = make_folder(rows, header, folder='other')
    assert_same(read_mmrec(folder), read_mmrec(other))


@pytest.mark.parametrize('change', ['crlf', 'bom', 'no_end', 'blank_end'])
def test_read_line_ends(make_folder, change):
    folder = make_folder()
    expected = read_mmrec(folder)
    path = folder / 'toy.inter'
    old = text = path.read_bytes()
    if change == 'crlf':
        text = text.replace(b'\n', b'\r\n')
    elif change == 'bom':
        text = b'\xef\xbb\xbf' + text
    elif change == 'no_end':
        text = text.rstrip(b'\n')
    else:
        text = text + b'\n\n'
    assert text != old
    path.write_bytes(text)
    assert_same(read_mmrec(folder), expected)


@pytest.mark.parametrize('name', ['toy.inter.gz', 'toy.inter'])
def test_read_gzip(make_folder, name):
    folder = make_folder()
    expected = read_mmrec(folder)
    text = (folder / 'toy.inter').read_bytes()
    (folder / 'toy.inter').unlink()
    (folder / name).write_bytes(gzip.compress(text))
    assert_same(read_mmrec(folder), expected)


@pytest.mark.parametrize('dtype', ['<f2', '<f4', '>f4', '<f8', 'longdouble'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_read_dtypes(make_folder, dtype, order):
    folder = make_folder(image=np.array(X, dtype=dtype, order=order))
    x = read_mmrec(folder)['item'].x_image
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert x.tolist() == X.tolist()


def test_read_keeps_missing_rows(make_folder):
    x = X.copy()
    x[1] = np.nan
    out = read_mmrec(make_folder(image=x))['item'].x_image
    assert out.isnan().any(dim=1).tolist() == [False, True, False, False]
    assert out[[0, 2, 3]].tolist() == X[[0, 2, 3]].tolist()


def test_read_large_values(make_folder):
    # Finite rows are fine even if their sum is not:
    x = np.full((4, 3), 3e38, dtype=np.float32)
    assert read_mmrec(make_folder(image=x))['item'].x_image.max() == x.max()


def test_read_does_not_hold_the_file(make_folder):
    folder = make_folder(image=X)
    data = read_mmrec(folder)
    np.save(folder / 'image_feat.npy', X + 1)
    assert data['item'].x_image.tolist() == X.tolist()
    data['item'].x_image.zero_()


def test_read_sorts_modalities_and_skips_others(make_folder):
    folder = make_folder(text=X, audio=X, a_b=X)
    (folder / '._image_feat.npy').write_bytes(b'junk')
    (folder / '_feat.npy').write_bytes(b'junk')
    (folder / 'user_graph.npy').write_bytes(b'junk')
    (folder / '.old.inter').write_bytes(b'junk')
    (folder / 'image_feat.npy').mkdir()
    keys = list(read_mmrec(folder)['item'].keys())
    assert keys == ['num_nodes', 'x_a_b', 'x_audio', 'x_text']


def test_read_drops_users_without_training_pair(make_folder):
    rows = [*ROWS, (3, 0, 1), (3, 1, 2), (4, 0, 2)]
    folder = make_folder(rows)
    with pytest.warns(UserWarning, match='dropped') as record:
        data = read_mmrec(folder)
    assert len(record) == 1
    message = str(record[0].message)
    assert "toy.inter'" in message
    assert '3 held-out pairs of 2 users' in message
    assert data['user'].num_nodes == 5
    del data['user'].num_nodes
    expected = read_mmrec(make_folder(folder='other'))
    del expected['user'].num_nodes
    assert_same(data, expected)


def count_calls(function):
    r"""The calls of Python and of C functions that Python makes."""
    before, events = sys.getprofile(), []
    sys.setprofile(lambda frame, event, arg: events.append(event))
    try:
        function()
    finally:
        sys.setprofile(before)
    return sum(event.endswith('call') for event in events)


def test_read_makes_no_call_per_line(make_folder):
    num_calls = []
    for num_users in [300, 3000]:
        user = np.repeat(np.arange(num_users), 10)
        item = (user * 7 + np.tile(np.arange(10), num_users) * 3) % 200
        label = np.tile(np.arange(10) % 3, num_users)
        pairs = np.stack([user, item, label])
        x = np.zeros((200, 2), dtype=np.float32)
        folder = make_folder(pairs.T, image=x, folder=f'toy{num_users}')
        store = read_mmrec(folder)[RATES]  # Once, for what is done once.
        for key, name in enumerate(PAIRS):
            index = torch.from_numpy(pairs[:2, label == key])
            assert torch.equal(store[name], index)
        num_calls.append(count_calls(lambda: read_mmrec(folder)))  # noqa: B023
    assert 0 < num_calls[0] < 3000  # The lines of the smaller file.
    assert num_calls[1] < num_calls[0] + 3000


# Bad interactions ############################################################


@pytest.mark.parametrize('column', ['userID', 'itemID', 'x_label'])
def test_missing_column(make_folder, column):
    header = HEADER.replace(column, 'else')
    folder = make_folder(header=header)
    assert_refused(folder, 'toy.inter', f"'{column}'", 'got 0', "'else'")


def test_repeated_column(make_folder):
    rows = [(*row, 0) for row in ROWS]
    folder = make_folder(rows, header=f'{HEADER}\tuserID')
    assert_refused(folder, 'toy.inter', "one column 'userID'", 'got 2')


def test_wrong_delimiter(make_folder):
    folder = make_folder(header=HEADER.replace('\t', ','))
    assert_refused(folder, "'userID'", "'userID,itemID,x_label'")


@pytest.mark.parametrize(
    ('value', 'need'),
    [
        ('1.0', 'needs to be an integer'),
        ('B0001', 'needs to be an integer'),
        ('', 'needs to be an integer'),
        (' 1', 'needs to be an integer'),
        ('+1', 'needs to be an integer'),
        ('1_0', 'needs to be an integer'),
        ('nan', 'needs to be an integer'),
        ('é', 'needs to be an integer'),
        ('-1', 'needs to be non-negative'),
        ('9' * 19, 'needs to have at most 18 digits'),
        ('9' * 40, 'needs to have at most 18 digits'),
    ],
)
@pytest.mark.parametrize('column', ['userID', 'itemID'])
def test_bad_id(make_folder, column, value, need):
    row = (value, 1, 0) if column == 'userID' else (1, value, 0)
    folder = make_folder(replaced(5, row))
    message = f"line 5: '{column}' {need} (got '{value}')"
    assert_refused(folder, 'toy.inter', message)


@pytest.mark.parametrize('value', ['3', '-1', '1.0', 'train', '', '10'])
def test_bad_label(make_folder, value):
    folder = make_folder(replaced(4, (0, 2, value)))
    need = 'needs to be 0 (train), 1 (valid) or 2 (test)'
    message = f"line 4: 'x_label' {need} (got '{value}')"
    assert_refused(folder, 'toy.inter', message)


def test_first_bad_line_is_named(make_folder):
    rows = replaced(3, ('x', 1, 0))
    rows[-1] = ('y', 1, 0)
    assert_refused(make_folder(rows), "line 3: 'userID'", "(got 'x')")


@pytest.mark.parametrize(
    ('line', 'row'),
    [
        (2, (0, 0)),
        (4, (0, 2)),
        (4, (0, 2, 2, 7)),
        (5, ()),
        (8, (2, 0)),
        (8, (2, 0, 2, 9)),
        (8, (2, 0, 2, 9, 9, 9)),
    ],
)
def test_wrong_number_of_columns(make_folder, line, row):
    folder = make_folder(replaced(line, row))
    got = '\t'.join(map(str, row))
    message = f"line {line}: needs 3 columns (got '{got}')"
    assert_refused(folder, 'toy.inter', message)


@pytest.mark.parametrize(
    ('rows', 'users', 'others'),
    [
        ([*ROWS, (4, 0, 0)], 5, '1 of 5 users'),
        ([(u + 1, i, k) for u, i, k in ROWS], 4, '1 of 4 users'),
        ([row for row in ROWS if row[0] != 1], 3, '1 of 3 users'),
        ([(u, 0 if i == 1 else i, k) for u, i, k in MORE], 3, '1 of 4 items'),
    ],
)
def test_gaps_in_ids(make_folder, rows, users, others):
    folder = make_folder(rows)
    match = rf"toy\.inter'.* {others} are in no pair, and keep their ids"
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter('always')
        data = read_mmrec(folder)
    record = [x for x in record if 'are in no pair' in str(x.message)]
    assert record[0].filename == __file__
    assert re.search(match, str(record[0].message))
    assert data['user'].num_nodes == users
    assert data['item'].num_nodes == 4
    assert data[RATES].edge_index.t().tolist() == [
        [u, i] for u, i, k in rows if k == 0
    ]


@pytest.mark.parametrize('user', [6, 7, 10**17])
def test_ids_that_are_no_indices(make_folder, user):
    folder = make_folder([*ROWS, (user, 0, 0)])
    if user < 8:
        with pytest.warns(UserWarning, match=f'{user - 3} of {user + 1} users'):
            assert read_mmrec(folder)['user'].num_nodes == user + 1
        return
    message = f"line 9: 'userID' needs to count from 0 .* 4 values .*'{user}'"
    with pytest.raises(ValueError, match=message):
        read_mmrec(folder)


@pytest.mark.parametrize('item', [4, 10**17])
def test_items_without_features(make_folder, item):
    folder = make_folder([*ROWS, (2, item, 0)])
    message = f"(got 'itemID' '{item}')"
    assert_refused(folder, "image_feat.npy' has 4 rows", message)


def test_repeated_pair_in_one_split(make_folder):
    rows = [*ROWS, (1, 1, 0), (0, 0, 0), (1, 1, 0), (0, 1, 1)]
    folder = make_folder(rows)
    match = r"dropped 4 pair\(s\) that stand again in the same split \(got '0'"
    with pytest.warns(UserWarning, match=match) as record:
        data = read_mmrec(folder)
    assert record[0].filename == __file__
    assert_same(data, read_mmrec(make_folder(folder='other')))


def test_repeated_pair_in_two_splits(make_folder):
    folder = make_folder([(2, 0, 2), *ROWS, (0, 1, 2), (2, 0, 0)])
    message = "(got '0' and '1' in 'valid' and in 'test', first on line 4)"
    assert_refused(folder, 'toy.inter', 'line 10', 'userID', 'itemID', message)


def test_no_training_pair(make_folder):
    rows = [(u, i, 1 if k == 0 else k) for u, i, k in ROWS]
    message = "'x_label' needs to be 0 (train)"
    assert_refused(make_folder(rows), 'toy.inter', message, '(got 0 pairs')


@pytest.mark.parametrize(
    ('labels', 'names'), [((0, 0, 2), ['valid']), ((0, 1, 0), ['test'])]
)
def test_missing_split(make_folder, labels, names):
    rows = [(u, i, labels[k]) for u, i, k in ROWS]
    folder = make_folder(rows)
    match = rf"has no pairs of the splits \['{names[0]}'\], which are left out"
    with pytest.warns(UserWarning, match=match) as record:
        data = read_mmrec(folder)
    assert record[0].filename == __file__
    left = 1 - labels[1] + 1
    assert [name for name in PAIRS if name in data[RATES]] == [
        PAIRS[0],
        PAIRS[left],
    ]
    assert data[RATES].num_edges == sum(k == 0 for _, _, k in rows)


def test_training_pairs_alone(make_folder):
    folder = make_folder([(u, i, 0) for u, i, _ in ROWS])
    with pytest.warns(UserWarning, match=r"splits \['valid', 'test'\]"):
        data = read_mmrec(folder)
    assert [name for name in PAIRS if name in data[RATES]] == PAIRS[:1]


def test_split_empty_after_dropping(make_folder):
    rows = [(u, i, 0 if k == 2 else k) for u, i, k in ROWS]
    folder = make_folder([*rows, (3, 0, 2)])
    message = "'x_label' needs to be 2 (test)"
    assert_refused(folder, 'toy.inter', message, '(got 1 pairs in all)')


@pytest.mark.parametrize('text', [b'', b'\n', b'\r\n\r\n', b'\xef\xbb\xbf'])
def test_empty_file(make_folder, text):
    folder = make_folder()
    (folder / 'toy.inter').write_bytes(text)
    assert_refused(folder, "toy.inter' is empty")


@pytest.mark.parametrize(
    ('header', 'need'),
    [
        (HEADER + '\r', "exactly one column 'x_label'"),
        (HEADER + '\n', '3 columns'),
    ],
)
def test_lines_without_ends(make_folder, header, need):
    folder = make_folder(rows=200 * ROWS, end='\r')
    path = folder / 'toy.inter'
    content = path.read_bytes().removeprefix(f'{HEADER}\r'.encode())
    path.write_bytes(header.encode() + content)
    with pytest.raises(ValueError, match=rf'needs {need} .*\.\.\.') as info:
        read_mmrec(folder)
    assert len(str(info.value)) < 500 + len(str(folder))


@pytest.mark.parametrize('end', ['', '\n', '\r\n'])
def test_header_only(make_folder, end):
    folder = make_folder()
    (folder / 'toy.inter').write_bytes((HEADER + end).encode())
    assert_refused(folder, "toy.inter' holds a header and no pair", 'itemID')


@pytest.mark.parametrize('damage', ['cut', 'flip', 'header'])
def test_damaged_gzip(make_folder, damage):
    folder = make_folder()
    path = folder / 'toy.inter'
    raw = bytearray(gzip.compress(path.read_bytes()))
    if damage == 'cut':
        raw = raw[:-12]
    elif damage == 'flip':
        raw[-6] ^= 255  # Part of the checksum.
    else:
        raw[2] = 7
    path.write_bytes(raw)
    assert_refused(folder, "toy.inter' is not a readable gzip file")


# Bad features ################################################################


@pytest.mark.parametrize(
    ('x', 'message'),
    [
        (X[:, 0], 'needs to have two dimensions (got shape (4,))'),
        (X[None], 'needs to have two dimensions (got shape (1, 4, 3))'),
        (np.float32(1), 'needs to have two dimensions (got shape ())'),
        (X[:, :0], 'needs at least one column (got shape (4, 0))'),
        (X.astype('c8'), "needs to hold real numbers (got 'complex64')"),
        (X.astype('S4'), "needs to hold real numbers (got '|S4')"),
    ],
)
def test_bad_layout(make_folder, x, message):
    assert_refused(make_folder(text=X, image=x), "image_feat.npy'", message)


@pytest.mark.parametrize('dtype', ['uint8', 'bool', 'int64', 'uint16'])
def test_whole_numbers_become_floating(make_folder, dtype):
    x = np.array([[0, 1], [1, 0], [1, 1], [0, 0]], dtype=dtype)
    out = read_mmrec(make_folder(image=x))['item'].x_image
    assert out.dtype == torch.float
    assert out.tolist() == x.astype(float).tolist()


def test_too_few_rows(make_folder):
    folder = make_folder(image=X[:2])
    got = "(got 'itemID' '2')"
    assert_refused(
        folder, "image_feat.npy' has 2 rows", '4 items', "'toy.inter'", got
    )


def test_rows_of_items_that_nobody_rated(make_folder):
    x = np.concatenate([X, X + 1])
    folder = make_folder(image=x, text=x[:, :2])
    match = '4 of 8 items are in no pair, and keep their ids'
    with pytest.warns(UserWarning, match=match) as record:
        data = read_mmrec(folder)
    assert record[0].filename == __file__
    assert data['item'].num_nodes == 8
    assert data['item'].x_image.tolist() == x.tolist()
    data.validate()
    T.BuildDualGraph(k=2)(data)


def test_rows_of_different_numbers(make_folder):
    folder = make_folder(image=X, text=np.concatenate([X, X]))
    found = "{'image_feat.npy': 4, 'text_feat.npy': 8}"
    assert_refused(folder, 'as many rows as each other', found)


@pytest.mark.parametrize('order', ['C', 'F'])
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_npz(make_folder, save, order):
    folder = make_folder(image=X, text=-X)
    expected = read_mmrec(folder)
    (folder / 'image_feat.npy').unlink()
    save(folder / 'image_feat.npz', np.array(X, dtype='<f8', order=order))
    assert_same(read_mmrec(folder), expected)
    dataset = MMRecDataset(folder)
    assert dataset.raw_file_names[1:] == ['image_feat.npz', 'text_feat.npy']


def zipped(content, names=('x.npy',)):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name in names:
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'no archive',
        lambda: zipped(npy_bytes(X), ['a.npy', 'b.npy']),
        lambda: zipped(npy_bytes(X), []),
        lambda: zipped(npy_bytes(X))[:-30],
        lambda: zipped(npy_bytes(X)).replace(X.tobytes(), X[::-1].tobytes()),
        lambda: zipped(npy_bytes(X)[:-1]),
        lambda: zipped(b'not an array'),
        lambda: zipped(npy_bytes(X.astype(object), True)),
        # What promises 2^60 rows may not take their memory:
        lambda: zipped(
            npy_bytes(X).replace(
                b'(4, 3), }' + 18 * b' ', b'(%d, 3), }' % 2**60
            )
        ),
    ],
)
def test_bad_npz(make_folder, content):
    folder = make_folder(text=X)
    content = content if isinstance(content, bytes) else content()
    (folder / 'image_feat.npz').write_bytes(content)
    message = "needs to be a complete '.npz' file of one array without pickled"
    assert_refused(folder, "image_feat.npz'", message)


def test_dots_in_names(make_folder):
    folder = make_folder(**{'clip.v2': X, 'text': X})
    match = r"clip\.v2_feat\.npy' is read as the modality 'clip_v2', as"
    with pytest.warns(UserWarning, match=match) as record:
        data = read_mmrec(folder)
    assert record[0].filename == __file__
    assert list(data['item'].keys()) == ['num_nodes', 'x_clip_v2', 'x_text']
    CRANE(3, 4, {'clip_v2': 3, 'text': 3})


@pytest.mark.parametrize('name', ['clip_v2_feat.npy', 'clip.v2_feat.npz'])
def test_two_files_of_a_modality(make_folder, name):
    folder = make_folder(**{'clip.v2': X})
    (folder / name).write_bytes(b'')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        names = ["'clip_v2'", f"'{name}'", "'clip.v2_feat.npy'"]
        assert_refused(folder, 'one file for the modality', *names)


@pytest.mark.parametrize('value', [np.inf, -np.inf])
def test_infinite_value(make_folder, value):
    x = X.copy()
    x[1] = np.nan
    x[2, 1] = value
    message = f"row 2: needs to be finite in 32 bits (got '{value}' in column 1"
    assert_refused(make_folder(image=x), "image_feat.npy'", message)


def test_value_out_of_range(make_folder):
    x = X.astype(np.float64)
    x[3, 2] = 1e200
    message = "row 3: needs to be finite in 32 bits (got '1e+200' in column 2)"
    assert_refused(make_folder(image=x), "image_feat.npy'", message)


def test_opposite_infinities(make_folder):
    x = X.copy()
    x[0, :2] = np.inf, -np.inf
    message = "row 0: needs to be finite in 32 bits (got 'inf' in column 0)"
    assert_refused(make_folder(image=x), "image_feat.npy'", message)


def test_partly_missing_row(make_folder):
    x = X.copy()
    x[1] = np.nan
    x[3, 1:] = np.nan
    message = "row 3: needs to be NaN in all columns or in none (got 'nan'"
    assert_refused(
        make_folder(image=x), "image_feat.npy'", message, 'in column 1'
    )


def npy_bytes(x, allow_pickle=False):
    buffer = io.BytesIO()
    np.save(buffer, x, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npz_bytes():
    buffer = io.BytesIO()
    np.savez(buffer, X)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'content',
    [
        npy_bytes(X)[:-1],
        npy_bytes(X)[:130],
        npy_bytes(X)[:128],
        npy_bytes(X)[:40],
        npy_bytes(X)[:7],
        b'',
        b'not an array',
        npz_bytes(),
        # Headers that make NumPy raise other errors, of the same length:
        npy_bytes(X).replace(b'(4, 3), }', b'(4, 3(((('),
        npy_bytes(X).replace(b'(4, 3), }' + 20 * b' ', b'(%d, 3), }' % 2**70),
        npy_bytes(X).replace(b'(4, 3), }' + 18 * b' ', b'(%d, 3), }' % 2**62),
    ],
)
def test_not_an_array(make_folder, content):
    folder = make_folder(text=X)
    (folder / 'image_feat.npy').write_bytes(content)
    message = "needs to be a complete '.npy' file without pickled objects (got"
    assert_refused(folder, "image_feat.npy'", message)


@pytest.mark.parametrize('is_array', [False, True])
def test_pickled_features(make_folder, tmp_path, is_array):
    folder = make_folder(text=X)
    path = folder / 'image_feat.npy'
    flag = tmp_path / 'flag'
    x = np.array([[Trap(flag)] * 2] * 4, dtype=object)
    content = npy_bytes(x, True) if is_array else pickle.dumps(Trap(flag))
    path.write_bytes(content)
    assert_refused(folder, "image_feat.npy'", 'without pickled objects (got')
    assert not flag.exists()
    np.load(path, allow_pickle=True)
    assert flag.exists()  # The trap itself works.


# Missing files ###############################################################


def test_missing_folder(tmp_path):
    parts = [f"'{tmp_path / 'none'}'", '*.inter', '<modality>_feat.npy']
    assert_refused(tmp_path / 'none', *parts, error=FileNotFoundError)


def test_missing_inter(make_folder):
    folder = make_folder()
    (folder / 'toy.inter').unlink()
    parts = ["no file '*.inter'", f"'{folder}'", '<modality>_feat.npy']
    assert_refused(folder, *parts, error=FileNotFoundError)


def test_missing_features(make_folder):
    folder = make_folder(image=X)
    (folder / 'image_feat.npy').unlink()
    parts = ["no file '<modality>_feat.npy'", f"'{folder}'", '*.inter']
    assert_refused(folder, *parts, error=FileNotFoundError)


@pytest.mark.parametrize('name', ['z.inter', 'toy.inter.gz'])
def test_several_inter(make_folder, name):
    folder = make_folder()
    (folder / name).write_text('')
    parts = [f"'{folder}'", 'exactly one', f"(got ['toy.inter', '{name}'])"]
    assert_refused(folder, *parts)


# Dataset #####################################################################


class Scale:
    def __init__(self, factor):
        self.factor = factor
        self.num_calls = 0

    def __call__(self, data):
        self.num_calls += 1
        data['item'].x_image = data['item'].x_image * self.factor
        return data

    def __reduce__(self):  # Calls tell no transform from another.
        return Scale, (self.factor,)


class Sort:
    def __call__(self, data):
        for edge_type, dim in [(RATES, 0), (('item', 'rev', 'user'), 1)]:
            edge_index = data[RATES].edge_index
            edge_index = edge_index.flip(0) if dim else edge_index
            size = (4, 3) if dim else (3, 4)
            edge_index = EdgeIndex(edge_index, sparse_size=size)
            edge_index = edge_index.sort_by('col').values.fill_cache_()
            data[edge_type].edge_index = edge_index
            data[edge_type].edge_weight = torch.rand(edge_index.size(1))
        return data


def processed(dataset):
    return Path(dataset.processed_paths[0])


def rewrite(path, content):
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def test_dataset(make_folder):
    folder = make_folder()
    dataset = MMRecDataset(folder)
    assert str(dataset) == 'MMRecDataset()'
    assert len(dataset) == 1
    assert isinstance(dataset[0], HeteroData)
    assert_same(dataset[0], read_mmrec(folder))
    assert dataset.num_users == 3
    assert dataset.num_items == 4
    assert dataset.modalities == ['image', 'text']
    assert dataset.raw_dir == str(folder)
    assert dataset.raw_file_names == [
        'toy.inter',
        'image_feat.npy',
        'text_feat.npy',
    ]
    assert dataset.processed_dir == str(folder / 'processed')
    assert os.listdir(folder / 'processed') == ['data.pt']
    assert_same(MMRecDataset(str(folder))[0], dataset[0])
    assert_same(dataset.copy()[0], dataset[0])


def test_dataset_transforms(make_folder):
    folder = make_folder(image=X)
    pre_transform, transform = Scale(2), Scale(5)
    dataset = MMRecDataset(folder, transform, pre_transform)
    assert (transform.num_calls, pre_transform.num_calls) == (0, 1)
    for _ in range(2):
        assert dataset[0]['item'].x_image.tolist() == (10 * X).tolist()
    assert (transform.num_calls, pre_transform.num_calls) == (2, 1)
    MMRecDataset(folder, pre_transform=pre_transform)
    assert pre_transform.num_calls == 1


def test_dataset_reads_cache(make_folder, monkeypatch):
    folder = make_folder()
    expected = MMRecDataset(folder)[0]

    def fail(*args):
        raise AssertionError('read again')

    monkeypatch.setattr('crane_pyg.datasets.mmrec.read_mmrec', fail)
    assert_same(MMRecDataset(folder)[0], expected)
    with pytest.raises(AssertionError, match='read again'):
        MMRecDataset(folder, force_reload=True)


def test_dataset_rebuilds_after_change(make_folder):
    folder = make_folder(image=X, text=X)
    path = folder / 'image_feat.npy'
    MMRecDataset(folder)
    rewrite(path, npy_bytes(X + 1))  # Of the same size.
    data = MMRecDataset(folder)[0]
    assert data['item'].x_image.tolist() == (X + 1).tolist()

    data = MMRecDataset(folder, pre_transform=Scale(3))[0]
    assert data['item'].x_image.tolist() == (3 * (X + 1)).tolist()
    data = MMRecDataset(folder, pre_transform=Scale(4))[0]
    assert data['item'].x_image.tolist() == (4 * (X + 1)).tolist()
    data = MMRecDataset(folder)[0]
    assert data['item'].x_image.tolist() == (X + 1).tolist()

    path.rename(folder / 'audio_feat.npy')
    assert MMRecDataset(folder).modalities == ['audio', 'text']
    (folder / 'text_feat.npy').unlink()
    assert MMRecDataset(folder).modalities == ['audio']


def test_dataset_rebuilds_after_change_of_the_same_age(make_folder):
    folder = make_folder()
    path = folder / 'toy.inter'
    before, stat = MMRecDataset(folder)[0][RATES], path.stat()
    # Validation and test pairs change places:
    lines = [HEADER, *(f'{u}\t{i}\t{(0, 2, 1)[x]}' for u, i, x in ROWS)]
    path.write_text(''.join(f'{line}\n' for line in lines))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    after = MMRecDataset(folder)[0][RATES]
    assert torch.equal(after.val_edge_label_index, before.test_edge_label_index)
    assert torch.equal(after.test_edge_label_index, before.val_edge_label_index)


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: Compose([x])])
def test_dataset_knows_what_a_transform_does_not_tell(make_folder, wrap):
    folder = make_folder(image=X, text=X)
    first, second = (
        wrap(NormalizeFeatures([f'x_{m}'])) for m in ['image', 'text']
    )
    assert repr(first) == repr(second)
    for name, transform in [('image', first), ('text', second)]:
        item = MMRecDataset(folder, pre_transform=transform)[0]['item']
        for other in ['image', 'text']:
            changed = not torch.equal(item[f'x_{other}'], torch.from_numpy(X))
            assert changed == (other == name)


def test_dataset_knows_what_a_function_holds(make_folder):
    folder, calls = make_folder(image=X), Calls(make_folder)
    for _ in range(2):
        widths = []
        for k in (1, 2, 3):
            item = MMRecDataset(
                folder,
                pre_transform=lambda x: calls() or T.BuildDualGraph(k=k)(x),  # noqa: B023
                processed_dir=folder / str(k),
            )[0]['item']
            widths.append(item.neighbor_image.size(1))
        assert widths == [1, 2, 3]
    assert calls.count() == 3
    # One folder for all of them:
    for k in (1, 2, 3, 1):
        dataset = MMRecDataset(
            folder,
            pre_transform=lambda x: T.BuildDualGraph(k=k)(x),  # noqa: B023
        )
        assert dataset[0]['item'].neighbor_image.size(1) == k


class Calls:
    r"""Counts calls, in a file, as a number would be part of a transform."""

    def __init__(self, make_folder):
        self.path = make_folder(folder='calls') / 'calls'

    def __call__(self):
        with self.path.open('a') as file:
            file.write('x')

    def count(self):
        return len(self.path.read_text())


@pytest.mark.parametrize('kind', [torch.tensor, np.array])
def test_dataset_knows_each_entry_of_a_mask(make_folder, kind):
    class Mask(BaseTransform):
        def __init__(self, mask):
            self.mask = mask

        def forward(self, data):
            data.place = int(self.mask.nonzero()[0][0])
            return data

    folder = make_folder(image=X)
    for place in (1000, 1001, 1000):
        mask = [float(i == place) for i in range(2000)]
        dataset = MMRecDataset(folder, pre_transform=Mask(kind(mask)))
        assert dataset[0].place == place


def test_dataset_caches_nothing_that_cannot_be_told_from_others(make_folder):
    folder = make_folder(image=X)
    for factor in (2, 3):
        numbers = (float(factor) for _ in range(9))

        def scale(data):
            data['item'].x_image = data['item'].x_image * next(numbers)  # noqa: B023
            return data

        match = r"not cached: 'pre_transform' .*'generator' in 'numbers' of 'sc"
        with pytest.warns(UserWarning, match=match):
            dataset = MMRecDataset(folder, pre_transform=scale)
        assert dataset[0]['item'].x_image.tolist() == (factor * X).tolist()
    assert not (folder / 'processed').exists()


def add(data, value):
    data['item'].more = value
    return data


@pytest.mark.parametrize(
    ('pre_transform', 'match'),
    [
        (lambda data: None, r"'HeteroData' \(got 'NoneType'\)"),
        (lambda data: data.to_homogeneous(), r"'HeteroData' \(got 'Data'\)"),
        (lambda data: add(data, X), r'tensors and plain values \(got numpy'),
        (lambda data: add(data, id.__call__), r'plain values \(got .*'),
    ],
)
def test_dataset_of_what_cannot_be_cached(make_folder, pre_transform, match):
    folder = make_folder()
    with pytest.raises(ValueError, match=f"'pre_transform' .* {match}"):
        MMRecDataset(folder, pre_transform=pre_transform)
    assert os.listdir(folder / 'processed') == []


def test_dataset_rebuilds_for_other_version(make_folder, monkeypatch):
    folder = make_folder(image=X)
    pre_transform = Scale(2)
    MMRecDataset(folder, pre_transform=pre_transform)
    monkeypatch.setattr('crane_pyg.datasets._cache.VERSION', 0)
    MMRecDataset(folder, pre_transform=pre_transform)
    assert pre_transform.num_calls == 2


@pytest.mark.parametrize('damage', ['cut', 'empty', 'junk', 'list', 'no_data'])
def test_dataset_rebuilds_damaged_cache(make_folder, damage):
    folder = make_folder()
    dataset = MMRecDataset(folder)
    path = processed(dataset)
    content = path.read_bytes()
    if damage == 'cut':
        path.write_bytes(content[: len(content) // 2])
    elif damage == 'empty':
        path.write_bytes(b'')
    elif damage == 'junk':
        path.write_bytes(b'junk')
    elif damage == 'list':
        torch.save([1, 2], path)
    else:
        found = torch.load(path, weights_only=True)
        torch.save({'key': found['key']}, path)

    with pytest.warns(UserWarning, match='Rebuilding the unreadable') as record:
        other = MMRecDataset(folder)
    assert len(record) == 1
    assert f"'{path}'" in str(record[0].message)
    assert '\n' not in str(record[0].message)
    assert_same(other[0], dataset[0])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_same(MMRecDataset(folder)[0], dataset[0])


def test_dataset_never_unpickles_code(make_folder, tmp_path):
    folder = make_folder()
    dataset = MMRecDataset(folder)
    flag = tmp_path / 'flag'

    torch.save(Trap(flag), processed(dataset))
    for name in ['pre_transform.pt', 'pre_filter.pt']:
        torch.save(Trap(flag), folder / 'processed' / name)
    with pytest.warns(UserWarning, match='UnpicklingError'):
        MMRecDataset(folder)
    MMRecDataset(folder, pre_transform=Scale(2))
    assert not flag.exists()
    path = folder / 'processed' / 'pre_filter.pt'
    torch.load(path, weights_only=False)
    assert flag.exists()  # The trap itself works.


def test_dataset_keeps_edge_index(make_folder):
    folder = make_folder()
    dataset = MMRecDataset(folder, pre_transform=Sort())
    cached = MMRecDataset(folder, pre_transform=Sort())
    assert_same(cached[0], dataset[0])
    for edge_type in [RATES, ('item', 'rev', 'user')]:
        old = dataset[0][edge_type].edge_index
        new = cached[0][edge_type].edge_index
        assert isinstance(new, EdgeIndex)
        new.validate()
        assert new.sort_order == old.sort_order == 'col'
        assert new.sparse_size() == old.sparse_size()
        for name in ['_indptr', '_T_perm', '_T_indptr']:
            assert getattr(old, name) is not None
            assert torch.equal(getattr(new, name), getattr(old, name))
        x = torch.randn(new.sparse_size(0), 2)
        weight = cached[0][edge_type].edge_weight
        out = new.matmul(x, weight, transpose=True)
        assert torch.equal(out, old.matmul(x, weight, transpose=True))


def test_dataset_processed_dir(make_folder, tmp_path):
    folder = make_folder()
    content = sorted(os.listdir(folder))
    other = tmp_path / 'a' / 'b'
    dataset = MMRecDataset(folder, processed_dir=other)
    assert dataset.processed_dir == str(other)
    assert os.listdir(other) == ['data.pt']
    assert sorted(os.listdir(folder)) == content
    assert_same(MMRecDataset(folder, processed_dir=str(other))[0], dataset[0])


def test_dataset_processed_dir_is_a_file(make_folder, tmp_path):
    folder = make_folder()
    path = tmp_path / 'file'
    path.write_text('kept')
    for processed_dir in [path, path / 'below']:
        with pytest.raises(ValueError, match="'processed_dir'") as info:
            MMRecDataset(folder, processed_dir=processed_dir)
        assert f"'{processed_dir}'" in str(info.value)
    assert path.read_text() == 'kept'


def test_dataset_processed_dir_without_permission(make_folder, monkeypatch):
    # Superusers may write anywhere, so the answer is replaced, not the mode:
    folder = make_folder()
    monkeypatch.setattr(os, 'access', lambda *args: False)
    with pytest.raises(ValueError, match="'processed_dir'") as info:
        MMRecDataset(folder)
    assert f"'{folder / 'processed'}'" in str(info.value)
    assert os.listdir(folder / 'processed') == []


@pytest.mark.parametrize('error', [OSError, RuntimeError])
def test_dataset_full_disk(make_folder, monkeypatch, error):
    folder = make_folder()

    def save(obj, f):
        f.write_bytes(b'half')
        raise error('No space left on device')

    monkeypatch.setattr(torch, 'save', save)
    with pytest.raises(ValueError, match='No space left on device') as info:
        MMRecDataset(folder)
    assert f"'{folder / 'processed'}'" in str(info.value)
    assert "'processed_dir'" in str(info.value)
    assert os.listdir(folder / 'processed') == []


def test_dataset_failed_rename_keeps_old_cache(make_folder, monkeypatch):
    folder = make_folder()
    path = processed(MMRecDataset(folder))
    content = path.read_bytes()

    def replace(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(os, 'replace', replace)
        with pytest.raises(KeyboardInterrupt):
            MMRecDataset(folder, force_reload=True)
    assert os.listdir(folder / 'processed') == ['data.pt']
    assert path.read_bytes() == content


def test_dataset_bad_file_leaves_no_cache(make_folder):
    folder = make_folder(replaced(5, (-1, 1, 0)))
    with pytest.raises(ValueError, match="'userID' needs to be non-negative"):
        MMRecDataset(folder)
    assert os.listdir(folder / 'processed') == []


def test_dataset_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'):
        MMRecDataset(tmp_path / 'none')
    assert os.listdir(tmp_path) == []


WORKER = r"""
import sys, time
from pathlib import Path
from crane_pyg.datasets import MMRecDataset

class Wait:
    def __call__(self, data):
        # Reached by both processes before either of them may write.
        me, other = [Path(p) for p in sys.argv[2:]]
        me.touch()
        for _ in range(6000):
            if other.exists():
                return data
            time.sleep(0.01)
        raise SystemExit('the other process never came')

dataset = MMRecDataset(sys.argv[1], pre_transform=Wait())
print(dataset[0]['item'].x_image.sum().item())
"""


def test_dataset_two_processes(make_folder, tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 9, (4, 100_000)).astype(np.float32)
    folder = make_folder(image=x)
    flags = [str(tmp_path / 'flag1'), str(tmp_path / 'flag2')]
    workers = [
        subprocess.Popen(
            [sys.executable, '-c', WORKER, str(folder), *names],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for names in [flags, flags[::-1]]
    ]
    outs = [worker.communicate(timeout=300) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], outs
    assert [float(out) for out, _ in outs] == [x.sum(), x.sum()]
    assert os.listdir(folder / 'processed') == ['data.pt']

    # The next process finds what they left:
    Path(flags[0]).unlink()
    command = [sys.executable, '-c', WORKER, str(folder), *flags]
    out = subprocess.run(command, capture_output=True, check=True, timeout=300)
    assert float(out.stdout) == x.sum()
    assert not Path(flags[0]).exists()


# Real data ###################################################################


@pytest.fixture
def real_folder():
    folder = os.environ.get('CRANE_PYG_DATA')
    if folder is None or not Path(folder, 'amazon-sports').is_dir():
        pytest.skip("'CRANE_PYG_DATA' names no folder with 'amazon-sports'")
    return Path(folder)


def sizes(data):
    store = data[RATES]
    return (
        data['user'].num_nodes,
        data['item'].num_nodes,
        *[store[name].size(1) for name in PAIRS],
    )


def test_real_sports(real_folder):
    data = read_mmrec(real_folder / 'amazon-sports')
    assert sizes(data) == (35598, 18357, 218409, 40029, 37899)
    assert data['item'].x_image.shape == (18357, 128)
    assert data['item'].x_text.shape == (18357, 128)
    assert data['item'].x_text.isfinite().all()


def test_real_tiktok(real_folder):
    message = 'dropped 10 held-out pairs of 10 users'
    with pytest.warns(UserWarning, match=message):
        data = read_mmrec(real_folder / 'tiktok')
    assert sizes(data) == (9308, 6710, 59541, 3051 - 5, 6130 - 5)
    assert data['item'].x_image.shape == (6710, 128)
    assert data['item'].x_audio.shape == (6710, 128)
