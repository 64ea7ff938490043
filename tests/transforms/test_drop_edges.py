import copy
import time

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.data import HeteroData
from torch_geometric.transforms import RandomLinkSplit

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.transforms.drop_edges import degree_drop

RATES = ('user', 'rates', 'item')
REV = ('item', 'rev_rates', 'user')
SIMILAR = ('item', 'similar_to', 'item')


def get_data(num_users=15, num_items=10, num_edges=70):
    torch.manual_seed(0)
    pairs = torch.randperm(num_users * num_items)[:num_edges]
    data = HeteroData()
    data['user'].num_nodes = num_users
    data['item'].num_nodes = num_items
    data['item'].x_text = torch.randn(num_items, 4)
    data[RATES].edge_index = torch.stack(
        [pairs // num_items, pairs % num_items]
    )
    data[RATES].time = torch.arange(num_edges)
    data[RATES].test_edge_label_index = torch.zeros(2, 1, dtype=torch.long)
    return data


def dense(store):
    out = torch.zeros(*store.size(), dtype=torch.double)
    out[tuple(store.edge_index)] = store.edge_weight.double()
    return out


@pytest.mark.parametrize('p', [0.0, 0.1, 0.5, 0.8, 0.999])
def test_degree_drop_keeps_an_exact_number(p):
    edge_index = get_data()[RATES].edge_index
    out = degree_drop(edge_index, 15, 10, p)
    assert out.dtype == torch.long
    assert out.numel() == round((1 - p) * 70)
    assert (out.diff() > 0).all()
    assert ((out >= 0) & (out < 70)).all()


def test_degree_drop_generator():
    edge_index = get_data()[RATES].edge_index

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return degree_drop(edge_index, 15, 10, 0.5, generator).tolist()

    state = torch.get_rng_state()
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert torch.equal(torch.get_rng_state(), state)

    adj = EdgeIndex(edge_index.int(), sparse_size=(15, 10))
    generator = torch.Generator().manual_seed(1)
    assert degree_drop(adj, 15, 10, 0.5, generator).tolist() == draw(1)


def test_degree_drop_inclusion_decreases_with_degree():
    # Item i has i + 1 users of degree one each:
    item = torch.arange(16).repeat_interleave(torch.arange(1, 17))
    edge_index = torch.stack([torch.arange(item.numel()), item])
    generator = torch.Generator().manual_seed(0)
    count = torch.zeros(item.numel())
    for _ in range(2000):
        keep = degree_drop(edge_index, 136, 16, 0.7, generator)
        count[keep] += 1
    rate = torch.zeros(16).index_add_(0, item, count) / torch.arange(1, 17)
    rate = rate / 2000
    assert rate[0] > rate[1] + 0.03
    assert rate[1] > rate[3] + 0.03
    assert rate[3] > rate[7] + 0.03
    assert rate[7] > rate[15] + 0.03


def test_degree_drop_matches_sequential_sampling():
    # Weights 1, 1/sqrt(2), 1/sqrt(2): inclusion in two draws, exactly.
    edge_index = torch.tensor([[0, 1, 2], [0, 1, 1]])
    weight = torch.tensor([1.0, 2**-0.5, 2**-0.5], dtype=torch.double)
    prob = weight / weight.sum()
    expected = torch.zeros(3, dtype=torch.double)
    for a in range(3):
        for b in range(3):
            if a != b:
                both = prob[a] * weight[b] / (weight.sum() - weight[a])
                expected[[a, b]] += both
    generator = torch.Generator().manual_seed(0)
    count = torch.zeros(3, dtype=torch.double)
    for _ in range(20_000):
        count[degree_drop(edge_index, 3, 2, 1 / 3, generator)] += 1
    torch.testing.assert_close(count / 20_000, expected, atol=0.015, rtol=0)


def test_degree_drop_empty():
    edge_index = torch.empty(2, 0, dtype=torch.long)
    assert degree_drop(edge_index, 3, 2, 0.5).shape == (0,)
    assert degree_drop(edge_index, 0, 0, 0.0).shape == (0,)


@pytest.mark.parametrize('p', [1.0, 1.5, -0.1, float('nan')])
def test_p_errors(p):
    with pytest.raises(ValueError, match=rf"'p' .* in \[0, 1\) \(got {p}\)"):
        degree_drop(torch.zeros(2, 1, dtype=torch.long), 1, 1, p)
    with pytest.raises(ValueError, match=rf"'p' .* in \[0, 1\) \(got {p}\)"):
        T.DegreeDropEdges(p)


def test_degree_drop_errors():
    with pytest.raises(ValueError, match=r'between 0 and 0 \(got 1\)'):
        degree_drop(torch.tensor([[0], [1]]), 1, 1, 0.5)


@pytest.mark.parametrize('built', [False, True])
@pytest.mark.parametrize('p', [0.0, 0.3, 0.8, 0.999])
def test_degree_drop_edges(p, built):
    data = get_data()
    data = T.BuildDualGraph(k=3)(data) if built else data
    before = copy.deepcopy(data)
    out = T.DegreeDropEdges(p)(data)
    assert out is not data
    assert out.validate()

    num_edges = round((1 - p) * 70)
    adj = torch.zeros(15, 10, dtype=torch.double)
    adj[tuple(out[RATES].edge_index)] = 1.0
    assert adj.sum() == num_edges
    norm = adj.sum(1, keepdim=True).sqrt() * adj.sum(0, keepdim=True).sqrt()
    expected = (adj / norm).nan_to_num()
    torch.testing.assert_close(
        dense(out[RATES]), expected, atol=1e-6, rtol=1e-5
    )
    assert torch.equal(dense(out[REV]), dense(out[RATES]).t())

    # Per-edge attributes stay with their edges:
    original = get_data()[RATES].edge_index
    for key, flip in [(RATES, False), (REV, True)]:
        adj = out[key].edge_index
        assert type(adj) is torch.Tensor
        assert adj.dtype == torch.long
        assert adj.is_contiguous()
        assert (adj[1].diff() >= 0).all()
        assert out[key].edge_weight.dtype == torch.float
        edges = original[:, out[key].time]
        edges = edges.flip(0) if flip else edges
        assert torch.equal(adj, edges)

    # The other pairs, none of which carries a message, are to be trained on:
    label = out[RATES].edge_label_index
    assert type(label) is torch.Tensor
    store = data[RATES]
    dropped = ~torch.isin(store.time, out[RATES].time)
    assert torch.equal(label, store.edge_index[:, dropped])

    # The input is as before, and all else is shared with it:
    for key, store in before._edge_store_dict.items():
        assert set(store.keys()) == set(data[key].keys())
        for name, value in store.items():
            assert data[key][name].tolist() == value.tolist()
    assert REV in data.edge_types or not built
    assert out['item'].x_text is data['item'].x_text
    label_index = data[RATES].test_edge_label_index
    assert out[RATES].test_edge_label_index is label_index
    if built:
        for name in ['edge_index', 'edge_weight']:
            assert out[SIMILAR][name] is data[SIMILAR][name]
    if built and p == 0.0:
        for key in [RATES, REV]:
            for name in ['edge_index', 'edge_weight']:
                assert out[key][name].tolist() == data[key][name].tolist()


@pytest.mark.parametrize('dtype', [torch.long, torch.int])
def test_degree_drop_edges_trains_on_no_pair_that_is_kept(dtype):
    data = get_data()
    pairs = data[RATES].edge_index.to(dtype)
    data[RATES].edge_index = torch.cat([pairs, pairs[:, ::2]], dim=1)
    del data[RATES].time
    out = T.DegreeDropEdges(0.5)(data)[RATES]
    kept, label, whole = (
        set(zip(*edges.tolist(), strict=True))
        for edges in (out.edge_index, out.edge_label_index, pairs)
    )
    assert out.edge_label_index.dtype == dtype
    assert out.edge_index.size(1) == 52
    assert kept.isdisjoint(label)
    assert kept | label == whole


def test_degree_drop_edges_draws_anew():
    data = T.BuildDualGraph(k=3)(get_data())

    def draw(seed, num):
        generator = torch.Generator().manual_seed(seed)
        transform = T.DegreeDropEdges(0.5, generator=generator)
        return [transform(data)[RATES].time.tolist() for _ in range(num)]

    first, second = draw(0, 2)
    assert first != second
    assert draw(0, 2) == [first, second]

    transform = T.DegreeDropEdges(0.5)
    torch.manual_seed(3)
    first = transform(data)[RATES].time.tolist()
    torch.manual_seed(3)
    assert transform(data)[RATES].time.tolist() == first


def test_degree_drop_edges_custom_types():
    data = HeteroData()
    data['member'].num_nodes = 2
    data['product'].num_nodes = 2
    edge_type = ('member', 'buys', 'product')
    data[edge_type].edge_index = torch.tensor([[0, 1, 1], [0, 0, 1]])
    out = T.DegreeDropEdges(0.3, edge_type=edge_type)(data)
    assert out[edge_type].edge_index.shape == (2, 2)
    assert out['product', 'rev_buys', 'member'].edge_index.shape == (2, 2)


def test_degree_drop_edges_repr():
    assert str(T.DegreeDropEdges(0.8)) == (
        "DegreeDropEdges(p=0.8, edge_type=('user', 'rates', 'item'))"
    )


def test_degree_drop_edges_errors():
    with pytest.raises(ValueError, match=r'three names \(got \(\)\)'):
        T.DegreeDropEdges(0.5, edge_type=())
    with pytest.raises(ValueError, match=r"missing for edge type \('a', 'b'"):
        T.DegreeDropEdges(0.5, edge_type=('a', 'b', 'c'))(get_data())
    data = get_data()
    data['item'].num_nodes = 3
    with pytest.raises(ValueError, match=r'between 0 and 2 \(got 9\)'):
        T.DegreeDropEdges(0.5)(data)


def test_degree_drop_edges_is_quick():
    generator = torch.Generator().manual_seed(0)
    edge_index = torch.randint(5000, (2, 50_000), generator=generator)
    data = HeteroData()
    data['user'].num_nodes = data['item'].num_nodes = 5000
    data[RATES].edge_index = edge_index
    transform = T.DegreeDropEdges(0.5)
    data = T.DegreeDropEdges(0.0)(data)
    start = time.perf_counter()
    transform(data)
    assert time.perf_counter() - start < 2.0


def test_drop_edges_replaces_labels_of_a_split():
    data = FakeMultimodalDataset(60, 40)[0]
    rates = data['user', 'rates', 'item']
    del rates.val_edge_label_index, rates.test_edge_label_index
    split = RandomLinkSplit(0.1, 0.1, edge_types=[('user', 'rates', 'item')])
    data = T.BuildDualGraph()(split(data)[0])
    assert 'edge_label' in data['user', 'rates', 'item']
    out = T.DegreeDropEdges(0.5)(data)['user', 'rates', 'item']
    assert 'edge_label' not in out
    assert out.edge_label_index.size(1) > 0
    assert 'edge_label' in data['user', 'rates', 'item']
