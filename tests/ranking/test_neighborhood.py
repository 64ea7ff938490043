import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.testing import withCUDA

from crane_pyg.ranking import Neighborhood, evaluate, neighborhood, top_k
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
    generator = torch.Generator().manual_seed(6)
    return {
        'near': get_graph(items, items, 30, seed=2),
        'far': get_graph(items, items, 11, seed=3),
        'all': torch.randn(items, items, generator=generator),
    }


WEIGHTS = {'near': 2.0, 'far': 0.5, 'all': -1.5}


def naive(history, graphs, weights=WEIGHTS):
    out = torch.zeros(SIZE)
    rates = dense(SIZE, history, torch.ones(history.size(1)))
    for name, weight in weights.items():
        adj = graphs[name]
        if isinstance(adj, tuple):
            adj = dense((SIZE[1], SIZE[1]), *adj)
        out += weight * rates @ adj
    return out


def to(graph, device):
    if isinstance(graph, tuple):
        return tuple(x.to(device) for x in graph)
    return graph.to(device)


@withCUDA
@pytest.mark.parametrize('part_size', [1, 3, 1 << 14])
def test_neighborhood(part_size, history, graphs, device, monkeypatch):
    monkeypatch.setattr(neighborhood, 'PART_SIZE', part_size)
    expected = naive(history, graphs)
    assert expected.count_nonzero() > 10
    graphs = {name: to(graph, device) for name, graph in graphs.items()}
    out = Neighborhood(history.to(device), graphs, SIZE, WEIGHTS)
    users = torch.tensor([5, 0, 5, 3], device=device)
    score = torch.ones(4, SIZE[1], device=device)
    assert out.add_to(score, users) is score
    torch.testing.assert_close(score.cpu(), 1 + expected[[5, 0, 5, 3]])


def test_neighborhood_takes_edge_index(history, graphs):
    edge_index, value = graphs['near']
    col = edge_index[1].argsort(stable=True)
    adj = EdgeIndex(
        edge_index[:, col], sparse_size=(SIZE[1],) * 2, sort_order='col'
    )
    users, zeros = torch.arange(SIZE[0]), torch.zeros(SIZE)
    out = Neighborhood(history, {'near': (adj, value[col])}, SIZE)
    expected = naive(history, graphs, {'near': 1.0})
    torch.testing.assert_close(out.add_to(zeros, users), expected)


@pytest.mark.parametrize('dtype', [torch.double, torch.bfloat16])
def test_neighborhood_precision(dtype, history, graphs):
    score = torch.zeros(SIZE, dtype=dtype)
    out = Neighborhood(history, graphs, SIZE, WEIGHTS)
    out.add_to(score, torch.arange(SIZE[0]))
    expected = naive(history, graphs).to(dtype)
    torch.testing.assert_close(score, expected, atol=0.05, rtol=0.02)


def test_rankings_add_neighborhood(history, graphs):
    generator = torch.Generator().manual_seed(4)
    user, item = (torch.randn(n, 3, generator=generator) for n in SIZE)
    score = user @ item.t() + naive(history, graphs)
    neighbors = Neighborhood(history, graphs, SIZE, WEIGHTS)
    kwargs = {'block_size': 2, 'neighbors': neighbors}

    top = top_k(user, item, 4, **kwargs).index
    assert top.equal(score.topk(4)[1])
    assert not top.equal(top_k(user, item, 4).index)

    first = torch.stack([torch.arange(SIZE[0]), score.argmax(dim=1)])
    out = evaluate(user, item, first, ks=1, **kwargs)
    assert out['recall@1'] == 1.0
    assert evaluate(user, item, first, ks=1)['recall@1'] < 1.0


@pytest.mark.parametrize(
    ('history', 'edge_index', 'match'),
    [
        ([[7], [0]], [[0], [0]], r"'history\[0\]' .* 0 and 6 \(got 7\)"),
        ([[0], [-1]], [[0], [0]], r"'history\[1\]' .* 0 and 8 \(got -1\)"),
        (
            [[0], [0]],
            [[0], [9]],
            r"graphs\['near'\]\[1\]' .* 0 and 8 \(got 9\)",
        ),
    ],
)
def test_neighborhood_errors(history, edge_index, match):
    graph = (torch.tensor(edge_index), torch.ones(1))
    with pytest.raises(ValueError, match=match):
        Neighborhood(torch.tensor(history), {'near': graph}, SIZE)


@pytest.mark.parametrize('value', ['nan', 'inf'])
def test_neighborhood_needs_finite_weights(history, graphs, value):
    edge_index, bad = torch.zeros(2, 2).long(), float(value)
    matrix = torch.full((SIZE[1], SIZE[1]), bad)
    for graph in [(edge_index, torch.tensor([1.0, bad])), matrix]:
        with pytest.raises(ValueError, match=rf"\['a'\]' .* \(got .?{value}"):
            Neighborhood(history, {'a': graph}, SIZE)
    near = Neighborhood(history, graphs, SIZE)
    with pytest.raises(ValueError, match=rf"weights\['far'\]' .*{value}"):
        near.with_weights({'far': bad})


def test_neighborhood_needs_weights_of_all_edges(history):
    edge_index = torch.zeros(2, 2).long()
    match = r"'values of graphs\['a'\]' .* \[2\] \(got \[3\]\)"
    with pytest.raises(ValueError, match=match):
        Neighborhood(history, {'a': (edge_index, torch.ones(3))}, SIZE)
    match = r"graphs\['a'\]' .* \[9, 9\] \(got \[9, 8\]\)"
    with pytest.raises(ValueError, match=match):
        Neighborhood(history, {'a': torch.ones(9, 8)}, SIZE)


def test_neighborhood_with_other_weights(history, graphs):
    near, users = Neighborhood(history, graphs, SIZE), torch.arange(SIZE[0])
    assert near.weights == {'near': 1.0, 'far': 1.0, 'all': 1.0}
    other = near.with_weights({'far': -3.0})
    assert other.weights == {'near': 0.0, 'far': -3.0, 'all': 0.0}
    assert other.relations is near.relations  # Nothing is copied.
    expected = naive(history, graphs, {'far': -3.0})
    torch.testing.assert_close(other.add_to(torch.zeros(SIZE), users), expected)
    few = near.only({'far': -3.0})
    assert list(few.relations) == list(few.weights) == ['far']
    torch.testing.assert_close(few.add_to(torch.zeros(SIZE), users), expected)
    for name in graphs:
        expected = naive(history, graphs, {name: 1.0})
        out = other.scores(name, users)
        torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match=r"\['near', 'far', 'all'\] .*'b'"):
        near.with_weights({'b': 1.0})


def test_neighborhood_edges_of_items(history, graphs):
    relations = Neighborhood(history, graphs, SIZE).relations
    for name, graph in graphs.items():
        if isinstance(graph, tuple):
            graph = dense((SIZE[1], SIZE[1]), *graph)
        row, item, value = relations[name][torch.tensor([4, 2])]
        out = dense((2, SIZE[1]), torch.stack([row, item]), value)
        torch.testing.assert_close(out, graph[[4, 2]])


def test_neighborhood_counts_on_in_half_precision():
    # In bfloat16 itself, 256 + 1 is 256:
    history = torch.stack([torch.zeros(400).long(), torch.arange(400)])
    graph = torch.stack([torch.arange(400), torch.zeros(400).long()])
    near = Neighborhood(history, {'a': (graph, torch.ones(400))}, (1, 400))
    score = torch.zeros(1, 400, dtype=torch.bfloat16)
    near.add_to(score, torch.tensor([0]))
    assert float(score[0, 0]) == 400.0


@pytest.mark.parametrize('size', [(4, SIZE[1] - 1), (3, SIZE[1])])
def test_neighborhood_needs_scores_of_all_items(history, graphs, size):
    near = Neighborhood(history, graphs, SIZE)
    match = rf"'score' .* \[4, 9\] \(got \[{size[0]}, {size[1]}\]\)"
    with pytest.raises(ValueError, match=match):
        near.add_to(torch.zeros(size), torch.tensor([5, 0, 5, 3]))


@pytest.fixture
def small_embs():
    generator = torch.Generator().manual_seed(12)
    return tuple(torch.randn(n, 4, generator=generator) for n in SIZE)


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
