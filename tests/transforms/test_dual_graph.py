import copy

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

import crane_pyg.transforms as T

EDGE_TYPES = [('user', 'rates', 'item'), ('member', 'buys', 'product')]


def get_data(edge_type=EDGE_TYPES[0], num_users=12, num_items=20):
    torch.manual_seed(0)
    user, _, item = edge_type
    pairs = torch.randperm(num_users * num_items)[:90]
    pairs = torch.stack([pairs // num_items, pairs % num_items])
    data = HeteroData()
    data[user].num_nodes = num_users
    data[item].num_nodes = num_items
    data[item].x_image = torch.randn(num_items, 6)
    data[item].x_text = torch.randn(num_items, 9)
    data[edge_type].edge_index = pairs[:, :60]
    data[edge_type].time = torch.arange(60)
    data[edge_type].val_edge_label_index = pairs[:, 60:75]
    data[edge_type].test_edge_label_index = pairs[:, 75:]
    return data


def graph_types(edge_type, item_edge='similar_to'):
    user, rel, item = edge_type
    graphs = [edge_type, (item, f'rev_{rel}', user), (item, item_edge, item)]
    return [*graphs, (item, 'co_rated', item)]


def dense(store):
    out = torch.zeros(*store.size(), dtype=torch.double)
    index = tuple(store.edge_index)
    out.index_put_(index, store.edge_weight.double(), accumulate=True)
    return out


def sym(adj):
    norm = adj.sum(1, keepdim=True).sqrt() * adj.sum(0, keepdim=True).sqrt()
    return (adj / norm).nan_to_num()


def assert_close(out, expected):
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)


def assert_same(data1, data2):
    assert data1.edge_types == data2.edge_types
    for store1, store2 in zip(data1.stores, data2.stores, strict=True):
        assert set(store1.keys()) == set(store2.keys())
        for key, value in store1.items():
            if isinstance(value, torch.Tensor):
                assert type(value) is type(store2[key])
                torch.testing.assert_close(value, store2[key], rtol=0, atol=0)
            else:
                assert value == store2[key]


def assert_layout(data, edge_type, item_edge='similar_to'):
    for key in graph_types(edge_type, item_edge):
        adj = data[key].edge_index
        assert type(adj) is torch.Tensor
        assert adj.dtype == torch.long
        assert adj.is_contiguous()
        assert (adj[1].diff() >= 0).all()
        assert data[key].edge_weight.dtype == torch.float
        assert data[key].edge_weight.shape == (adj.size(1),)


@pytest.mark.parametrize('edge_type', EDGE_TYPES)
def test_user_item_graph(edge_type):
    data = get_data(edge_type)
    before = copy.deepcopy(data)
    out = T.BuildDualGraph(k=3, edge_type=edge_type)(data)
    assert_same(data, before)
    assert set(out.edge_types) == set(graph_types(edge_type))
    assert_layout(out, edge_type)
    assert out.validate()

    user, _, item = edge_type
    adj = torch.zeros(data[user].num_nodes, data[item].num_nodes).double()
    adj[tuple(data[edge_type].edge_index)] = 1.0
    _, rev, *_ = graph_types(edge_type)
    assert_close(dense(out[edge_type]), sym(adj))
    assert_close(dense(out[rev]), sym(adj).t())

    # Other attributes are kept, those of edges in the new order of edges:
    store = out[edge_type]
    old = data[edge_type].edge_index[:, store.time]
    assert torch.equal(store.edge_index, old)
    old = data[edge_type].edge_index[:, out[rev].time].flip(0)
    assert torch.equal(out[rev].edge_index, old)
    for key in ['val_edge_label_index', 'test_edge_label_index']:
        assert store[key] is data[edge_type][key]
        assert key not in out[rev]


@pytest.mark.parametrize('weighting', ['uniform', 'cosine'])
@pytest.mark.parametrize('weights', [None, {'image': 0.1, 'text': 0.9}])
@pytest.mark.parametrize('undirected', [False, True])
def test_item_graph(weighting, weights, undirected):
    data = get_data()
    data['item'].x_image[4] = float('nan')
    data['item'].x_text[5] = 0.0
    data['item'].x_image[6] = float('nan')
    data['item'].x_text[6] = float('nan')
    transform = T.BuildDualGraph(
        k=3,
        modality_weights=weights,
        weighting=weighting,
        undirected=undirected,
        item_edge='near',
        block_size=7,
    )
    out = transform(data)
    assert_layout(out, EDGE_TYPES[0], 'near')

    weights = weights or {'image': 1.0, 'text': 1.0}
    expected = torch.zeros(20, 20, dtype=torch.double)
    for item in range(20):
        has = []
        for name in weights:
            row = data['item'][f'x_{name}'][item]
            if not row.isnan().any() and row.any():
                has.append(name)
        for name in has:
            x = torch.nan_to_num(data['item'][f'x_{name}'].double())
            sim = torch.nan_to_num(
                torch.cosine_similarity(x, x[item].unsqueeze(0)), nan=-9.0
            )
            sim[x.abs().sum(1) == 0] = -9.0
            sim[item] = -9.0
            top = sim.topk(3)
            value = top.values.clamp(min=0)
            value = torch.ones_like(value) if weighting == 'uniform' else value
            share = weights[name] / sum(weights[n] for n in has)
            expected[top.indices, item] += share * value / value.sum()
    assert not expected[6].any()
    assert not expected[:, 6].any()
    assert expected[:, [4, 5]].any(dim=0).all()
    # Not all neighbors are mutual:
    assert ((expected > 0) & (expected.t() == 0)).any()
    if undirected:
        expected = expected + expected.t()
    assert_close(dense(out['item', 'near', 'item']), sym(expected))


def test_item_graph_is_undirected():
    data = get_data()
    edge_type = ('item', 'similar_to', 'item')
    one_way = T.BuildDualGraph(k=3, undirected=False)(data)
    both_ways = T.BuildDualGraph(k=3)(data)
    directed, store = one_way[edge_type], both_ways[edge_type]
    adj = dense(store)
    torch.testing.assert_close(adj, adj.t(), atol=1e-7, rtol=0)
    assert not torch.allclose(dense(directed), dense(directed).t())
    # Every edge stands once, and each has its reverse:
    edges = set(map(tuple, store.edge_index.t().tolist()))
    assert len(edges) == store.edge_index.size(1)
    expected = set(map(tuple, directed.edge_index.t().tolist()))
    assert edges == expected | {(dst, src) for src, dst in expected}


def test_item_graph_defaults():
    data = get_data()
    expected = T.BuildDualGraph(weighting='cosine', undirected=True)(data)
    assert_same(T.BuildDualGraph()(data), expected)


def test_item_graph_of_one_modality():
    data = get_data()
    weights = {'image': 0.0, 'text': 2.0}
    kwargs = {'k': 3, 'undirected': False}
    out1 = T.BuildDualGraph(modality_weights=weights, **kwargs)(data)
    out2 = T.BuildDualGraph(modality_weights={'text': 1.0}, **kwargs)(data)
    assert_same(out1, out2)
    edge_index, _ = T.knn_item_graph(data['item'].x_text, k=3)
    adj = out1['item', 'similar_to', 'item'].edge_index
    assert adj.size(1) == 60
    both = torch.cat([edge_index, adj], dim=1)
    assert both.unique(dim=1).size(1) == 60


def test_empty_graphs():
    data = get_data()
    data['item'].x_image.fill_(float('nan'))
    data['item'].x_text.zero_()
    edge_index = torch.empty(2, 0, dtype=torch.long)
    data['user', 'rates', 'item'].edge_index = edge_index
    del data['user', 'rates', 'item'].time
    out = T.BuildDualGraph()(data)
    assert_layout(out, EDGE_TYPES[0])
    for key in graph_types(EDGE_TYPES[0]):
        assert out[key].edge_index.shape == (2, 0)
    assert out.validate()


def test_no_leakage_of_held_out_pairs():
    transform = Compose([T.AddUserProfiles(), T.BuildDualGraph(k=3)])
    data = get_data()
    out = transform(data)

    # (a) Other held-out pairs make no difference:
    other = copy.deepcopy(data)
    store = other['user', 'rates', 'item']
    store.val_edge_label_index = store.val_edge_label_index.flip(1)[:, :4]
    store.test_edge_label_index = torch.randint(12, (2, 60))  # As many edges.
    store.edge_label_index = torch.randint(12, (2, 30))
    store.edge_label = torch.ones(60)
    labels = {k: v for k, v in store.items() if 'label' in k}
    out2 = transform(other)
    for key, value in labels.items():
        assert out2['user', 'rates', 'item'][key] is value
    assert set(out2['item', 'rev_rates', 'user'].keys()) == {
        'edge_index',
        'edge_weight',
        'time',
    }
    for key in labels:
        del out2['user', 'rates', 'item'][key]
    expected = copy.copy(out)
    for key in ['val_edge_label_index', 'test_edge_label_index']:
        del expected['user', 'rates', 'item'][key]
    out2['user'].x_image, expected['user'].x_image = (
        d['user'].x_image.nan_to_num() for d in (out2, expected)
    )
    out2['user'].x_text, expected['user'].x_text = (
        d['user'].x_text.nan_to_num() for d in (out2, expected)
    )
    assert_same(out2, expected)

    # (b) No held-out pair is an edge, in either direction:
    held_out = torch.cat(
        [
            data['user', 'rates', 'item'].val_edge_label_index,
            data['user', 'rates', 'item'].test_edge_label_index,
        ],
        dim=1,
    )
    held_out = set(map(tuple, held_out.t().tolist()))
    rates, rev, *_ = graph_types(EDGE_TYPES[0])
    edges = set(map(tuple, out[rates].edge_index.t().tolist()))
    assert len(edges) == 60
    assert not edges & held_out
    edges = out[rev].edge_index.flip(0).t().tolist()
    assert len(edges) == 60
    assert not set(map(tuple, edges)) & held_out


def test_is_idempotent():
    transform = T.BuildDualGraph(k=3)
    data = get_data()
    data['user', 'rates', 'item'].edge_weight = torch.rand(60)
    # Stale reverse edges are replaced with all they carry:
    rev = data['item', 'rev_rates', 'user']
    rev.edge_index = torch.zeros(2, 5, dtype=torch.long)
    rev.edge_attr = torch.rand(5, 2)
    rev.note = 'kept'
    out = transform(data)
    assert 'edge_attr' not in out['item', 'rev_rates', 'user']
    assert out['item', 'rev_rates', 'user'].note == 'kept'
    assert_same(transform(out), out)
    assert_same(transform(transform(out)), out)


def test_edge_index_layouts():
    data = get_data()
    expected = T.BuildDualGraph(k=3)(data)
    store = data['user', 'rates', 'item']
    edge_index = store.edge_index
    for layout in [
        edge_index.int(),
        EdgeIndex(edge_index, sparse_size=(12, 20)),
    ]:
        store.edge_index = layout
        assert_same(T.BuildDualGraph(k=3)(data), expected)
    perm = edge_index[0].argsort(stable=True)
    store.edge_index = EdgeIndex(edge_index[:, perm], sort_order='row')
    store.time = store.time[perm]
    out = T.BuildDualGraph(k=3)(data)
    for key in graph_types(EDGE_TYPES[0]):
        assert_close(dense(out[key]), dense(expected[key]))


def test_repeated_pairs_and_isolated_nodes():
    data = get_data()
    store = data['user', 'rates', 'item']
    store.edge_index = torch.tensor([[1, 1, 2], [3, 3, 3]])
    out = T.BuildDualGraph(k=3)(data)
    adj = torch.zeros(12, 20, dtype=torch.double)
    adj[1, 3], adj[2, 3] = 2.0, 1.0
    assert_close(dense(out['user', 'rates', 'item']), sym(adj))


def test_copy_move_save_load(tmp_path):
    out = T.BuildDualGraph(k=3)(get_data())
    assert_same(copy.copy(out), out)
    assert_same(copy.deepcopy(out), out)
    assert_same(out.clone(), out)
    moved = out.to('cpu')
    assert_layout(moved, EDGE_TYPES[0])
    meta = copy.deepcopy(out).to('meta')  # Moves in place.
    assert meta['user', 'rates', 'item'].edge_index.is_meta

    torch.save(out, tmp_path / 'data.pt')
    loaded = torch.load(tmp_path / 'data.pt', weights_only=False)
    assert_same(loaded, out)
    assert_layout(loaded, EDGE_TYPES[0])
    assert loaded.validate()

    # What data sets store needs no trust in the file:
    torch.save(out.to_dict(), tmp_path / 'dict.pt')
    loaded = torch.load(tmp_path / 'dict.pt', weights_only=True)
    assert_layout(HeteroData.from_dict(loaded), EDGE_TYPES[0])


def test_no_co_rated_graph_is_left_of_other_pairs():
    edge_type = ('item', 'co_rated', 'item')
    data = T.BuildDualGraph(k=2)(get_data())
    assert edge_type in data.edge_types
    out = T.BuildDualGraph(k=2, num_co_rated=0)(data)
    assert edge_type not in out.edge_types
    assert edge_type in data.edge_types


def test_repr():
    assert str(T.BuildDualGraph()) == (
        "BuildDualGraph(k=10, modality_weights=None, weighting='cosine', "
        'undirected=True, block_size=2048, '
        "edge_type=('user', 'rates', 'item'), item_edge='similar_to', "
        "num_co_rated=100, co_edge='co_rated')"
    )
    transform = T.BuildDualGraph(
        k=5,
        modality_weights={'image': 0.1, 'text': 0.9},
        weighting='uniform',
        undirected=False,
        block_size=64,
        edge_type=['member', 'buys', 'product'],
        item_edge='near',
        num_co_rated=3,
        co_edge='along',
    )
    assert str(transform) == (
        "BuildDualGraph(k=5, modality_weights={'image': 0.1, 'text': 0.9}, "
        "weighting='uniform', undirected=False, block_size=64, "
        "edge_type=('member', 'buys', 'product'), item_edge='near', "
        "num_co_rated=3, co_edge='along')"
    )


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'k': 0}, r"'k' needs to be at least 1 \(got 0\)"),
        ({'block_size': -1}, r"'block_size' .* at least 1 \(got -1\)"),
        ({'k': 2.5}, r"'k' needs to be an integer \(got 2.5\)"),
        ({'k': True}, r"'k' needs to be an integer \(got True\)"),
        ({'num_co_rated': 9.0}, r"'num_co_rated' .* integer \(got 9.0\)"),
        ({'weighting': 'sum'}, r"'uniform' or 'cosine' \(got 'sum'\)"),
        ({'edge_type': ('a',)}, r"three names \(got \('a',\)\)"),
        ({'modality_weights': {}}, r"'modality_weights' .* \(got {}\)"),
        ({'modality_weights': {'a': 0}}, r"positive entry \(got {'a': 0}\)"),
        ({'modality_weights': {'a': -1}}, r"non-negative \(got -1 for 'a'\)"),
    ],
)
def test_option_errors(kwargs, match):
    with pytest.raises(ValueError, match=match):
        T.BuildDualGraph(**kwargs)


def test_data_errors():
    data = get_data()

    def check(match, edit, **kwargs):
        other = copy.deepcopy(data)
        edit(other)
        with pytest.raises(ValueError, match=match):
            T.BuildDualGraph(k=3, **kwargs)(other)

    check(
        r"missing for edge type .*'buys'.* \(found .*\('user', 'rates', 'item",
        lambda d: None,
        edge_type=('user', 'buys', 'item'),
    )
    check(
        r"'edge_index' is missing",
        lambda d: d['user', 'rates', 'item'].pop('edge_index'),
    )
    check(
        r"unknown modality \(got 'audio', .* \['image', 'text'\]\)",
        lambda d: None,
        modality_weights={'audio': 1.0},
    )
    check(
        r"'num_nodes' is missing for node type 'user'",
        lambda d: d['user'].pop('num_nodes'),
    )
    check(
        r"'num_nodes' is missing for node type 'item'",
        lambda d: d['item'].pop('num_nodes'),
    )
    check(
        r'between 0 and 10 \(got 11\)',
        lambda d: setattr(d['user'], 'num_nodes', 11),
    )
    check(
        r"'x_text' .* per node of 'item' \(got 19 rows for 20 nodes\)",
        lambda d: setattr(d['item'], 'x_text', d['item'].x_text[:19]),
    )
    check(
        r"'x_text' needs to be two-dimensional \(got \[20\]\)",
        lambda d: setattr(d['item'], 'x_text', torch.randn(20)),
    )
    check(
        r"'x_text' needs to be a tensor \(got <class 'list'>\)",
        lambda d: setattr(d['item'], 'x_text', [1.0]),
    )

    def drop_modalities(d):
        del d['item'].x_image, d['item'].x_text

    check(r"at least one modality .* \['num_nodes'\]", drop_modalities)


@pytest.mark.parametrize(
    ('item_edge', 'co_edge'),
    [('near', 'near'), ('refined', 'near'), ('near', 'refined')],
)
def test_names_of_relations_differ(item_edge, co_edge):
    match = rf"\(got '{item_edge}' and '{co_edge}'\)"
    with pytest.raises(ValueError, match=match):
        T.BuildDualGraph(item_edge=item_edge, co_edge=co_edge)


def test_infinite_features_are_named():
    data = get_data()
    name = next(key for key in data['item'] if key.startswith('x_'))
    data['item'][name][1, 0] = float('inf')
    with pytest.raises(ValueError, match=rf"'{name}' .* infinite"):
        T.BuildDualGraph()(data)
