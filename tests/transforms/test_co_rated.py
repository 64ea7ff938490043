import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.testing import withCUDA

import crane_pyg.transforms as T
from crane_pyg.transforms import co_rated
from crane_pyg.transforms.co_rated import co_rated_graph

NUM_USERS, NUM_ITEMS = 30, 20


def get_pairs(num_pairs=200, seed=12):
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(NUM_USERS - 1, (num_pairs,), generator=generator)
    item = torch.randint(NUM_ITEMS - 1, (num_pairs,), generator=generator)
    return torch.stack([user, item])


def get_data():
    data = HeteroData()
    data['user'].num_nodes = NUM_USERS
    data['item'].num_nodes = NUM_ITEMS
    data['item'].x_text = torch.randn(NUM_ITEMS, 4)
    data['user', 'rates', 'item'].edge_index = get_pairs().unique(dim=1)
    return data


def naive(pairs):
    rates = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.double)
    rates[tuple(pairs)] = 1.0
    user, item = (rates.sum(dim).clamp(min=1) ** -0.25 for dim in (1, 0))
    adj = user.unsqueeze(1) * rates * item
    return (adj.t() @ adj).fill_diagonal_(0.0)


def dense(edge_index, weight):
    out = torch.zeros(NUM_ITEMS, NUM_ITEMS, dtype=torch.double)
    return out.index_put_(tuple(edge_index), weight.double(), accumulate=True)


@withCUDA
@pytest.mark.parametrize('block_size', [1, 50, 1 << 22])
def test_co_rated_graph(block_size, device):
    pairs = get_pairs()
    assert pairs.unique(dim=1).size(1) < pairs.size(1)
    edge_index, weight = co_rated_graph(
        pairs.to(device), NUM_USERS, NUM_ITEMS, block_size=block_size
    )
    assert edge_index.device == weight.device == device
    out = dense(edge_index.cpu(), weight.cpu())
    torch.testing.assert_close(out, naive(pairs), atol=1e-6, rtol=1e-5)
    assert edge_index.unique(dim=1).size(1) == edge_index.size(1)


@pytest.mark.parametrize('block_size', [1, 50, 1 << 22])
def test_co_rated_graph_keeps_the_heaviest(block_size):
    pairs = get_pairs()
    (src, dst), weight = co_rated_graph(
        pairs, NUM_USERS, NUM_ITEMS, 3, block_size
    )
    assert src.equal(src.sort()[0])
    expected = naive(pairs).topk(3)[0]
    has = expected[:, 0] > 0
    assert has.sum() == NUM_ITEMS - 1
    assert src.bincount().tolist() == [3] * (NUM_ITEMS - 1)
    out = weight.double().view(-1, 3)
    torch.testing.assert_close(out, expected[has], atol=1e-6, rtol=1e-5)
    assert not (src == dst).any()


def naive_windows(pairs, max_degree):
    item_degree = pairs[1].bincount(minlength=NUM_ITEMS)
    out = torch.zeros(NUM_ITEMS, NUM_ITEMS, dtype=torch.double)
    for user in pairs[0].unique():
        items = pairs[1, pairs[0] == user].sort()[0].tolist()
        for n, j in enumerate(items):
            following = items[n + 1 :] + items[:n]
            for i in following[:max_degree]:
                roots = len(items) ** 2 * item_degree[j] * item_degree[i]
                out[j, i] += float(roots) ** -0.25
    return out


@pytest.mark.parametrize('max_degree', [1, 3, 6])
@pytest.mark.parametrize('block_size', [1, 50, 1 << 22])
def test_co_rated_graph_of_busy_users(max_degree, block_size):
    pairs = get_pairs().unique(dim=1)
    assert pairs[0].bincount().max() > 9
    edge_index, weight = co_rated_graph(
        pairs, NUM_USERS, NUM_ITEMS, NUM_ITEMS, block_size, max_degree
    )
    expected = naive_windows(pairs, max_degree)
    assert (expected < naive(pairs) - 0.01).any()
    torch.testing.assert_close(
        dense(edge_index, weight), expected, atol=1e-6, rtol=1e-5
    )


def test_co_rated_graph_is_linear_in_a_busy_user(monkeypatch):
    monkeypatch.setattr(
        co_rated, '_heaviest', lambda edges, value, *_: (edges, value)
    )
    pairs = torch.stack([torch.zeros(5000).long(), torch.arange(5000)])
    edge_index, _ = co_rated_graph(pairs, 1, 5000)
    assert edge_index.size(1) == 5000 * 1000


def test_co_rated_graph_of_lonely_items():
    pairs = torch.tensor([[0, 1, 2], [0, 1, 2]])
    edge_index, weight = co_rated_graph(pairs, 3, 3)
    assert edge_index.size() == (2, 0)
    assert weight.size() == (0,)
    edge_index, weight = co_rated_graph(pairs[:, :0], 3, 3)
    assert edge_index.size() == (2, 0)
    assert edge_index.dtype == torch.long


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'k': 0}, r"'k' needs to be at least 1 \(got 0\)"),
        ({'block_size': -1}, r"'block_size' .* at least 1 \(got -1\)"),
        ({'max_degree': 0}, r"'max_degree' .* at least 1 \(got 0\)"),
        ({'num_items': 5}, r"'edge_index\[1\]' .* 0 and 4 \(got 18\)"),
    ],
)
def test_co_rated_graph_errors(kwargs, match):
    kwargs = {'num_users': NUM_USERS, 'num_items': NUM_ITEMS, **kwargs}
    with pytest.raises(ValueError, match=match):
        co_rated_graph(get_pairs(), **kwargs)


def test_build_dual_graph_co_rated():
    data = T.BuildDualGraph(num_co_rated=3)(get_data())
    store = data['item', 'co_rated', 'item']
    assert (store.edge_index[1].diff() >= 0).all()
    out = dense(store.edge_index, store.edge_weight)
    pairs = data['user', 'rates', 'item'].edge_index
    expected = dense(*co_rated_graph(pairs, NUM_USERS, NUM_ITEMS, 3))
    torch.testing.assert_close(out, expected)

    data = T.BuildDualGraph(num_co_rated=0, co_edge='along')(get_data())
    assert not any(
        'co_rated' in key or 'along' in key for key in data.edge_types
    )
    data = T.BuildDualGraph(co_edge='along')(get_data())
    assert ('item', 'along', 'item') in data.edge_types
    with pytest.raises(ValueError, match=r"'num_co_rated' .* \(got -1\)"):
        T.BuildDualGraph(num_co_rated=-1)
