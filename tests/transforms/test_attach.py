import copy
import warnings

import pytest
import torch
from torch_geometric import EdgeIndex

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset

RATES = ('user', 'rates', 'item')
NAMES = ['image', 'text']
NUM_OLD = 90


def get_data(num_new=30, **kwargs):
    r"""Data whose last items have no pairs, and the same without them."""
    data = FakeMultimodalDataset(80, NUM_OLD + num_new, **kwargs)[0]
    pairs = data[RATES].edge_index
    data[RATES].edge_index = pairs[:, pairs[1] < NUM_OLD]
    return data, *cut(data)


def cut(data):
    r"""The data of the old items, and the features of the new ones."""
    old = copy.copy(data)
    old['item'].num_nodes = NUM_OLD
    features = {}
    for name in NAMES:
        x = data['item'][f'x_{name}']
        old['item'][f'x_{name}'] = x[:NUM_OLD]
        features[name] = x[NUM_OLD:]
    return old, features


def assert_same(data, expected, skip=()):
    assert data.edge_types == expected.edge_types
    for store, other in zip(data.stores, expected.stores, strict=True):
        assert set(store.keys()) == set(other.keys())
        for key, value in store.items():
            if not isinstance(value, torch.Tensor):
                assert value == other[key]
                continue
            assert type(value) is type(other[key]) is torch.Tensor
            torch.testing.assert_close(
                value, other[key], rtol=0, atol=0, equal_nan=True
            )


def attach(old, features, transform):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        return T.attach_items(old, features, transform)


OPTIONS = [
    {},
    {'k': 3, 'block_size': 7},
    {'weighting': 'uniform', 'undirected': False, 'num_co_rated': 0},
    {'modality_weights': {'image': 0.1, 'text': 0.9}, 'item_edge': 'near'},
    {'modality_weights': {'text': 1.0}},
]


@pytest.mark.parametrize('missing_rate', [0.0, 0.4])
@pytest.mark.parametrize('kwargs', OPTIONS)
def test_attach_items_equals_rebuilding(kwargs, missing_rate):
    data, old, features = get_data(missing_rate=missing_rate)
    transform = T.BuildDualGraph(**kwargs)
    built = transform(old)
    before = copy.deepcopy(built)
    out = attach(built, features, transform)
    assert_same(out, transform(data))
    assert_same(built, before)
    assert out.validate()
    # New items took places among the neighbors of old ones:
    neighbors = out['item'].neighbor_text[:NUM_OLD]
    assert (neighbors >= NUM_OLD).any()
    assert not neighbors.equal(built['item'].neighbor_text)


def test_attach_items_one_by_one():
    data, old, features = get_data(5)
    transform = T.BuildDualGraph(k=4)
    out = transform(old)
    for n in range(5):
        row = {name: x[n : n + 1] for name, x in features.items()}
        out = T.attach_items(out, row, transform)
    assert_same(out, transform(data))


@pytest.mark.parametrize('block_size', [2, 1024])
def test_attach_items_with_ties(block_size):
    data, _, _ = get_data()
    x = data['item'].x_image
    x[80:100] = x[80]  # Copies among the old and the new.
    x[10:13] = x[80]
    x[110:] = -x[3]
    x[105] = 2 * x[4]  # Scaled, which leaves the cosine.
    data['item'].x_text[:] = data['item'].x_text[0]  # All of them.
    old, features = cut(data)
    transform = T.BuildDualGraph(k=3, block_size=block_size)
    out = T.attach_items(transform(old), features, transform)
    assert_same(out, transform(data))


@pytest.mark.parametrize('num_old', [0, 1, 2])
def test_attach_items_to_few_valid_ones(num_old):
    data, _, _ = get_data()
    data['item'].x_image[num_old:NUM_OLD] = float('nan')
    data['item'].x_image[95:] = float('nan')
    old, features = cut(data)
    transform = T.BuildDualGraph(k=4)
    out = T.attach_items(transform(old), features, transform)
    assert_same(out, transform(data))


def test_attach_items_without_a_modality():
    data, old, features = get_data()
    data['item'].x_text[NUM_OLD:] = float('nan')
    transform = T.BuildDualGraph()
    built = transform(old)
    expected = transform(data)
    out = T.attach_items(built, {'image': features['image']})
    assert_same(out, expected)
    # In the precision of the old ones:
    out = T.attach_items(built, {'image': features['image'].double()})
    assert_same(out, expected)


def test_attach_items_without_any_modality():
    data, _, _ = get_data()
    data['item'].x_image[[93, 95]] = float('nan')
    data['item'].x_text[93] = 0.0
    data['item'].x_text[95] = float('nan')
    old, features = cut(data)
    built = T.BuildDualGraph()(old)
    with pytest.warns(UserWarning, match=r'2 of 30 .* \(got rows \[3, 5\]\)'):
        out = T.attach_items(built, features)
    assert_same(out, T.BuildDualGraph()(data))
    edges = out['item', 'similar_to', 'item'].edge_index
    assert not torch.isin(edges, torch.tensor([93, 95])).any()


def test_attach_items_of_other_types():
    data, old, _ = get_data()
    edge_type = ('member', 'buys', 'product')
    names = {'user': 'member', 'item': 'product'}
    for one in (data, old):
        for key, name in names.items():
            one[name].update(one[key])
        one[edge_type].edge_index = one[RATES].edge_index
        one['product', 'in', 'shop'].edge_index = torch.tensor([[0], [0]])
        one['shop'].num_nodes = 1
        one['member', 'knows', 'member'].edge_index = torch.tensor([[0], [1]])
        for key in names:
            del one[key]
        del one[RATES]
    transform = T.BuildDualGraph(edge_type=edge_type, item_edge='near')
    features = {n: data['product'][f'x_{n}'][NUM_OLD:] for n in NAMES}
    out = T.attach_items(transform(old), features, transform)
    assert_same(out, transform(data))


def drop(data):
    del data['item'].neighbor_text


@pytest.mark.parametrize(
    ('edit', 'match'),
    [
        (lambda f: {'sound': f['text']}, r"unknown modality \(got 'sound'"),
        (lambda f: {'text': f['image']}, r"'text' .* 32 features \(got 64\)"),
        (lambda f: {**f, 'text': f['text'][1:]}, r"'image': 30, 'text': 29"),
        (lambda f: {}, r'as many rows in every modality \(got {}\)'),
        (lambda f: {'text': f['text'][0]}, r'two-dimensional \(got \[32\]\)'),
        (lambda f: {'text': f['text'].long()}, r'floating \(got torch.int64'),
        (lambda f: {'text': f['text'] / 0}, r"infinite entries \(got 'inf'\)"),
    ],
)
def test_attach_items_feature_errors(edit, match):
    _, old, features = get_data()
    with pytest.raises(ValueError, match=match):
        T.attach_items(T.BuildDualGraph()(old), edit(features))


def test_attach_items_beyond_half_precision():
    _, old, features = get_data()
    old['item'].x_text = old['item'].x_text.half()
    features['text'][2, 1] = 1e5
    with pytest.raises(ValueError, match=r"'text' .* infinite .* 'inf'"):
        T.attach_items(T.BuildDualGraph()(old), features)


def test_attach_items_needs_built_data():
    _, old, features = get_data()
    match = r"'neighbor_image' .* shape \[90, 10\].* \(got None\)"
    with pytest.raises(ValueError, match=match):
        T.attach_items(old, features)
    match = r'\[90, 10\], as BuildDualGraph\(k=10.* \(got \[90, 3\]\)'
    with pytest.raises(ValueError, match=match):
        T.attach_items(T.BuildDualGraph(k=3)(old), features)


@pytest.mark.parametrize('kwargs', OPTIONS)
def test_attach_users_equals_rebuilding(kwargs):
    data = FakeMultimodalDataset(80, 60)[0]
    user, item = data[RATES].edge_index
    keep = user < 75
    old = copy.copy(data)
    old['user'].num_nodes = 75
    old[RATES].edge_index = data[RATES].edge_index[:, keep]
    transform = T.BuildDualGraph(**kwargs)
    built = transform(old)
    before = copy.deepcopy(built)
    histories = [item[user == n] for n in range(75, 80)]
    histories[2] = histories[2].repeat(2)  # Counts once.
    expected = transform(data)
    out = T.attach_users(built, histories, transform)
    assert_same(out, expected)
    assert_same(built, before)


def test_attach_users_drops_attributes_of_pairs():
    data = FakeMultimodalDataset(80, 60)[0]
    data[RATES].time = torch.arange(data[RATES].edge_index.size(1))
    built = T.BuildDualGraph()(data)
    assert 'time' in built['item', 'rev_rates', 'user']
    out = T.attach_users(built, [torch.tensor([0, 5])])
    assert out.validate()
    for store in out.edge_stores:
        assert 'time' not in store
    assert 'time' in built[RATES]


@pytest.mark.parametrize(
    ('history', 'match'),
    [
        ([], r"'histories\[1\]' .* at least one item \(got none\)"),
        ([[1, 2]], r"'histories\[1\]' .* one dimension \(got shape \[1, 2\]"),
        ([3, 60], r"'histories\[1\]' .* between 0 and 59 \(got 60\)"),
        ([-1], r"'histories\[1\]' .* between 0 and 59 \(got -1\)"),
        ([0.5], r'integers \(got torch.float32\)'),
    ],
)
def test_attach_users_errors(history, match):
    built = T.BuildDualGraph()(FakeMultimodalDataset(80, 60)[0])
    with pytest.raises(ValueError, match=match):
        T.attach_users(built, [torch.tensor([4]), torch.tensor(history)])


@pytest.mark.parametrize(
    'kwargs',
    [
        {'weighting': 'uniform'},
        {'undirected': False},
        {'modality_weights': {'image': 1.0, 'text': 3.0}},
    ],
)
def test_attach_items_to_what_other_options_built(kwargs):
    _, old, features = get_data()
    data = T.BuildDualGraph(**kwargs)(old)
    with pytest.raises(
        ValueError, match=r"'similar_to'.* BuildDualGraph\(k=10"
    ):
        T.attach_items(data, features)


def test_attach_users_to_what_other_options_built():
    data = T.BuildDualGraph()(FakeMultimodalDataset(80, 60)[0])
    transform = T.BuildDualGraph(num_co_rated=3)
    match = r"'co_rated'.*num_co_rated=3.* 3 of item 0 \(got \d+\)"
    with pytest.raises(ValueError, match=match):
        T.attach_users(data, [[4]], transform)
    fewer = transform(FakeMultimodalDataset(80, 60)[0])
    match = r"'co_rated'.*num_co_rated=100.* \d+ of item 0 \(got 3\)"
    with pytest.raises(ValueError, match=match):
        T.attach_users(fewer, [[4]])
    other = T.BuildDualGraph(modality_weights={'image': 1.0, 'text': 1.01})
    with pytest.raises(ValueError, match=r"'similar_to'.* 'text': 1.01"):
        T.attach_users(data, [[4]], other)
    match = r"'neighbor_image' .* \[60, 4\], .* \(got \[60, 10\]\)"
    with pytest.raises(ValueError, match=match):
        T.attach_users(data, [[4]], T.BuildDualGraph(k=4))
    match = r"'similar_to'.* weighting='uniform'"
    with pytest.raises(ValueError, match=match):
        T.attach_users(data, [[4]], T.BuildDualGraph(weighting='uniform'))
    del data['item', 'co_rated', 'item']
    with pytest.raises(ValueError, match=r"missing .* 'co_rated'"):
        T.attach_users(data, [[4]])


def test_attach_users_to_reduced_features():
    data = T.BuildDualGraph()(FakeMultimodalDataset(80, 60)[0])
    out = T.attach_users(T.ReduceFeatures(40)(data), [[4]])
    assert out['item'].x_image.size() == (60, 40)
    expected = T.attach_users(data, [[4]])
    for edge_type in expected.edge_types:
        pairs = expected[edge_type].edge_index
        assert torch.equal(out[edge_type].edge_index, pairs)


def test_attach_users_leaves_profiles_alone():
    data = T.BuildDualGraph()(FakeMultimodalDataset(80, 60)[0])
    data = T.AddUserProfiles()(data)
    out = T.attach_users(data, [[4]])
    assert out['user'].x_image is data['user'].x_image
    assert T.AddUserProfiles()(out)['user'].x_image.size(0) == 81


def test_attach_items_to_reduced_features():
    _, old, features = get_data()
    reduced = T.ReduceFeatures(8)(old)
    new = {n: x @ reduced['item'][f'basis_{n}'] for n, x in features.items()}
    out = T.attach_items(T.BuildDualGraph()(reduced), new)
    assert out['item'].x_image.size() == (120, 8)

    # The neighbors are those of other features:
    data = T.ReduceFeatures(8)(T.BuildDualGraph()(old))
    with pytest.raises(ValueError, match=r"'neighbor_image' .* \(got None\)"):
        T.attach_items(data, new)


@pytest.mark.parametrize('sort_order', ['row', 'col', None])
def test_other_graphs_are_free_of_their_size(sort_order):
    _, old, features = get_data()
    data = T.BuildDualGraph()(old)
    edges = torch.tensor([[0, 1, 5], [0, 5, 1]])
    also = EdgeIndex(
        edges if sort_order == 'row' else edges.flip(0),
        sparse_size=(NUM_OLD, NUM_OLD),
        sort_order=sort_order,
    )
    data['item', 'also', 'item'].edge_index = also
    data['item', 'also', 'item'].edge_weight = torch.arange(3.0)
    data['user', 'also', 'user'].edge_index = EdgeIndex(
        [[0], [1]], sparse_size=(80, 80)
    )
    grown = [
        T.attach_items(data, features)['item', 'also', 'item'],
        T.attach_users(data, [[4]])['user', 'also', 'user'],
    ]
    for store, pairs in zip(grown, [also.tolist(), [[0], [1]]], strict=True):
        assert type(store.edge_index) is torch.Tensor
        assert store.edge_index.tolist() == pairs
    assert grown[0].edge_weight.tolist() == [0, 1, 2]
    assert data['item', 'also', 'item'].edge_index is also


def test_lists_are_no_wider_than_the_items():
    data, old, features = get_data()
    transform = T.BuildDualGraph(k=2_000_000)
    built = transform(old)
    assert built['item'].neighbor_text.size() == (NUM_OLD, NUM_OLD - 1)
    out = T.attach_items(built, features, transform)
    assert out['item'].similarity_text.size() == (NUM_OLD + 30, NUM_OLD + 29)
    assert_same(out, transform(data))


def test_attach_items_with_a_number_missing():
    _, old, features = get_data()
    data = T.BuildDualGraph()(old)
    features['text'][3] = float('nan')
    features['text'][[4, 9], 1] = float('nan')
    match = r"^2 of 30 rows of 'text' hold a NaN next to numbers"
    with pytest.warns(UserWarning, match=match) as record:
        out = T.attach_items(data, features)
    assert len(record) == 1
    assert record[0].filename == __file__
    assert (out['item'].neighbor_text[NUM_OLD:][[3, 4, 9]] == -1).all()
