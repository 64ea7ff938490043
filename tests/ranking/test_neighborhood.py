import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.testing import withCUDA

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.ranking import Neighborhood, evaluate, neighborhood, top_k
from crane_pyg.ranking.metrics import evaluate_each
from crane_pyg.ranking.neighborhood import product_std

SIZE = (7, 9)


def get_graph(num_src, num_dst, num_edges, seed):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(num_src * num_dst, generator=generator)[:num_edges]
    edge_index = torch.stack([index // num_dst, index % num_dst])
    return edge_index, torch.rand(num_edges, generator=generator)


def dense(size, edge_index, weight):
    out = torch.zeros(size)
    return out.index_put_(tuple(edge_index), weight, accumulate=True)


@pytest.fixture
def history():
    return get_graph(*SIZE, 20, seed=1)[0]


@pytest.fixture
def graphs():
    items = SIZE[1]
    return [
        (*get_graph(items, items, 30, seed=2), 2.0),
        (*get_graph(items, items, 11, seed=3), 0.5),
    ]


def naive(history, graphs):
    out = torch.zeros(SIZE)
    rates = dense(SIZE, history, torch.ones(history.size(1)))
    for edge_index, value, weight in graphs:
        adj = dense((SIZE[1], SIZE[1]), edge_index, value)
        out += weight * rates @ adj
    return out


@withCUDA
@pytest.mark.parametrize('part_size', [1, 3, 1 << 14])
def test_neighborhood(part_size, history, graphs, device, monkeypatch):
    monkeypatch.setattr(neighborhood, 'PART_SIZE', part_size)
    expected = naive(history, graphs)
    assert expected.count_nonzero() > 10
    graphs = [(e.to(device), v.to(device), w) for e, v, w in graphs]
    out = Neighborhood(history.to(device), graphs, SIZE)
    users = torch.tensor([5, 0, 5, 3], device=device)
    score = torch.ones(4, SIZE[1], device=device)
    assert out.add_to(score, users) is score
    torch.testing.assert_close(score.cpu(), 1 + expected[[5, 0, 5, 3]])


def test_neighborhood_takes_edge_index(history, graphs):
    (edge_index, value, weight), _ = graphs
    col = edge_index[1].argsort(stable=True)
    adj = EdgeIndex(
        edge_index[:, col], sparse_size=(SIZE[1],) * 2, sort_order='col'
    )
    users, zeros = torch.arange(SIZE[0]), torch.zeros(SIZE)
    out = Neighborhood(history, [(adj, value[col], weight)], SIZE)
    expected = naive(history, graphs[:1])
    torch.testing.assert_close(out.add_to(zeros, users), expected)


@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16])
def test_neighborhood_precision(dtype, history, graphs):
    score = torch.zeros(SIZE, dtype=dtype)
    out = Neighborhood(history, graphs, SIZE)
    out.add_to(score, torch.arange(SIZE[0]))
    expected = naive(history, graphs).to(dtype)
    torch.testing.assert_close(score, expected, atol=0.05, rtol=0.02)


def test_rankings_add_neighborhood(history, graphs):
    generator = torch.Generator().manual_seed(4)
    user, item = (torch.randn(n, 3, generator=generator) for n in SIZE)
    score = user @ item.t() + naive(history, graphs)
    neighbors = Neighborhood(history, graphs, SIZE)
    kwargs = {'block_size': 2, 'neighbors': neighbors}

    top = top_k(user, item, 4, **kwargs)
    assert top.equal(score.topk(4)[1])
    assert not top.equal(top_k(user, item, 4))

    first = torch.stack([torch.arange(SIZE[0]), score.argmax(dim=1)])
    out = evaluate(user, item, first, ks=[1], **kwargs)
    assert out['recall@1'] == 1.0
    assert evaluate(user, item, first, ks=[1])['recall@1'] < 1.0


@pytest.mark.parametrize('block_size', [1, 3, 1024])
def test_evaluate_each(history, graphs, small_embs, block_size):
    near = Neighborhood(history, graphs, SIZE)
    neighbors = [near, None, near.scaled(-3.0), near]
    held_out = get_graph(*SIZE, 12, seed=5)[0]
    args = (*small_embs, held_out, history, [2, 4])
    out = evaluate_each(*args, neighbors, block_size)
    assert out == [evaluate(*args, neighbors=x) for x in neighbors]
    assert len({metrics['ndcg@4'] for metrics in out}) == 3


def test_evaluate_each_needs_all_users_and_items(history, graphs, small_embs):
    user, item = small_embs
    near = Neighborhood(history, graphs, SIZE)
    match = r"all \(7, 9\) users and items of 'neighbors' \(got \(6, 9\)\)"
    with pytest.raises(ValueError, match=match):
        evaluate_each(user[:6], item, history[:, :1], None, [2], [None, near])


@pytest.mark.parametrize(
    ('history', 'edge_index', 'match'),
    [
        ([[7], [0]], [[0], [0]], r"'history\[0\]' .* 0 and 6 \(got 7\)"),
        ([[0], [-1]], [[0], [0]], r"'history\[1\]' .* 0 and 8 \(got -1\)"),
        ([[0], [0]], [[0], [9]], r"'graphs\[1\]' .* 0 and 8 \(got 9\)"),
    ],
)
def test_neighborhood_errors(history, edge_index, match):
    graph = (torch.tensor(edge_index), torch.ones(1), 1.0)
    with pytest.raises(ValueError, match=match):
        Neighborhood(torch.tensor(history), [graph], SIZE)


@pytest.mark.parametrize('value', ['nan', 'inf'])
def test_neighborhood_needs_finite_weights(history, value):
    edge_index, bad = torch.zeros(2, 2).long(), float(value)
    for graph in [(torch.tensor([1.0, bad]), 1.0), (torch.ones(2), bad)]:
        with pytest.raises(ValueError, match=rf"'graphs' .* \(got .?{value}"):
            Neighborhood(history, [(edge_index, *graph)], SIZE)


@pytest.mark.parametrize('num_values', [1, 3])
def test_neighborhood_needs_a_weight_per_edge(history, num_values):
    graph = (torch.zeros(2, 2).long(), torch.ones(num_values), 1.0)
    match = rf"'values of graphs' .* \[2\] \(got \[{num_values}\]\)"
    with pytest.raises(ValueError, match=match):
        Neighborhood(history, [graph], SIZE)


@pytest.mark.parametrize('size', [(4, SIZE[1] - 1), (3, SIZE[1])])
def test_neighborhood_needs_scores_of_all_items(history, graphs, size):
    near = Neighborhood(history, graphs, SIZE)
    match = rf"'score' .* \[4, 9\] \(got \[{size[0]}, {size[1]}\]\)"
    with pytest.raises(ValueError, match=match):
        near.add_to(torch.zeros(size), torch.tensor([5, 0, 5, 3]))


@pytest.fixture
def data():
    return FakeMultimodalDataset(40, 30, pre_transform=T.BuildDualGraph())[0]


@pytest.fixture
def embs():
    generator = torch.Generator().manual_seed(12)
    return tuple(torch.randn(n, 4, generator=generator) for n in (40, 30))


@pytest.fixture
def small_embs():
    generator = torch.Generator().manual_seed(12)
    return tuple(torch.randn(n, 4, generator=generator) for n in SIZE)


def get_edges(data, relation):
    store = data['item', relation, 'item']
    return store.edge_index.as_tensor(), store.edge_weight


@withCUDA
@pytest.mark.parametrize('rates', ['rates', 'bought'])
@pytest.mark.parametrize(
    'weights', [None, {'similar_to': 0.5, 'refined': -2.0}, {'co_rated': 3.0}]
)
def test_neighborhood_from_embeddings(data, embs, rates, weights, device):
    edge_type = ('user', rates, 'item')
    data[edge_type].edge_index = data['user', 'rates', 'item'].edge_index
    build = T.BuildDualGraph()
    neighbors = {'refined': T.knn_item_graph(embs[1], k=10)}
    refined = build.item_graph(neighbors, 30)
    expected, products = torch.zeros(40, 30), embs[0] @ embs[1].t()
    history = data[edge_type].edge_index.as_tensor()
    count = dense((40, 30), history, torch.ones(history.size(1)))
    relations = ('co_rated', 'similar_to', 'refined')
    for relation, weight in (weights or dict.fromkeys(relations, 9.0)).items():
        graph = refined if relation == 'refined' else get_edges(data, relation)
        weight = weight * products.std(unbiased=False)
        expected += weight * count @ dense((30, 30), *graph)

    user, item = (x.to(device).requires_grad_() for x in embs)
    near = Neighborhood.from_embeddings(
        data.to(device), user, item, weights, edge_type
    )
    users, zeros = torch.arange(40), torch.zeros(40, 30)
    score = near.add_to(zeros.to(device), users.to(device))
    torch.testing.assert_close(score.cpu(), expected)
    assert not score.requires_grad

    # A factor multiplies what a copy adds:
    other = near.scaled(-0.5)
    assert other.weights == [-0.5 * weight for weight in near.weights]
    out = other.add_to(score.clone(), users.to(device))
    torch.testing.assert_close(out, 0.5 * score)
    again = near.add_to(torch.zeros_like(score), users.to(device))
    torch.testing.assert_close(again, score)


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'weights': {'near': 1.0}}, r"'item', 'near', 'item'.*'BuildDual"),
        ({'weights': {'refined': float('inf')}}, r"weights\['refined'\].*inf"),
        ({'edge_type': ('user', 'had', 'item')}, r"'user', 'had', 'item'"),
        ({'user_emb': torch.ones(39, 4)}, r"'history\[0\]' .* \(got 39\)"),
        ({'item_emb': torch.rand(29, 4)}, r"'history\[1\]' .* \(got 29\)"),
    ],
)
def test_neighborhood_from_embeddings_errors(data, embs, kwargs, match):
    kwargs = dict(zip(('user_emb', 'item_emb'), embs, strict=True)) | kwargs
    with pytest.raises(ValueError, match=match):
        Neighborhood.from_embeddings(data, **kwargs)


@pytest.mark.parametrize('factor', [float('nan'), float('-inf')])
def test_neighborhood_scaled_errors(history, graphs, factor):
    near = Neighborhood(history, graphs, SIZE)
    with pytest.raises(ValueError, match=rf"'factor' .* \(got {factor}\)"):
        near.scaled(factor)


@withCUDA
@pytest.mark.parametrize('offset', [0.0, 2.0, -30.0])
@pytest.mark.parametrize(
    'dtype', [torch.half, torch.bfloat16, torch.float, torch.double]
)
def test_product_std(small_embs, offset, dtype, device):
    user, item = ((x + offset).to(device, dtype) for x in small_embs)
    expected = (user.double() @ item.double().t()).std(unbiased=False)
    out = product_std(user.requires_grad_(), item)
    double = dtype == torch.double
    assert out.dtype == (torch.double if double else torch.float)
    assert not out.requires_grad
    tol = 1e-12 if double else 1e-5
    torch.testing.assert_close(out.double(), expected, atol=tol, rtol=tol)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(product_std(user, item), out)


def test_product_std_of_some(small_embs):
    user, item = small_embs
    for x, y in [
        (user[:1], item),
        (user, item[:1]),
        (user[:, :1], item[:, :1]),
    ]:
        expected = (x @ y.t()).std(unbiased=False)
        torch.testing.assert_close(product_std(x, y), expected)


@pytest.mark.parametrize('dtype', [torch.half, torch.float, torch.double])
@pytest.mark.parametrize('value', [0.0, 0.3, -70.0])
def test_product_std_of_constant_products(dtype, value):
    user = torch.full((SIZE[0], 4), value, dtype=dtype)
    item = torch.full((SIZE[1], 4), value, dtype=dtype)
    tol = 1e-6 * value**2
    assert 0 <= float(product_std(user, item)) <= tol
    # Users differ, and none of it is in the direction of any item:
    user[:, 0] += torch.linspace(-3, 3, SIZE[0], dtype=dtype)
    item[:, 0] = 0.0
    assert 0 <= float(product_std(user, item)) <= tol
