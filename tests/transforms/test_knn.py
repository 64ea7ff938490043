import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex

import crane_pyg.transforms as T
import crane_pyg.transforms._search as search
from crane_pyg.transforms.knn import merge_item_graphs


def naive_knn(x, k):
    x = x.double()
    valid = [
        i
        for i in range(x.size(0))
        if not x[i].isnan().any() and x[i].abs().sum() > 0
    ]
    edges, sims = [], []
    for i in valid:
        pairs = []
        for j in valid:
            if i != j:
                sim = (x[i] * x[j]).sum() / (x[i].norm() * x[j].norm())
                pairs.append((-float(sim.float()), j))
        for sim, j in sorted(pairs)[:k]:
            edges.append((j, i))
            sims.append(-sim)
    edge_index = torch.tensor(edges, dtype=torch.long).view(-1, 2).t()
    return edge_index, torch.tensor(sims)


def assert_knn(x, k, block_sizes=(1, 7, 1024)):
    expected = naive_knn(x, k)
    for block_size in block_sizes:
        edge_index, sim = T.knn_item_graph(x, k, block_size)
        assert edge_index.dtype == torch.long
        assert sim.dtype == torch.float
        assert edge_index.tolist() == expected[0].tolist()
        torch.testing.assert_close(sim, expected[1], atol=1e-6, rtol=0)
    return edge_index, sim


@pytest.mark.parametrize('k', [1, 5, 39, 100])
def test_knn_matches_brute_force(k):
    torch.manual_seed(0)
    x = torch.randn(40, 16)
    edge_index, _ = assert_knn(x, k)
    assert edge_index.size(1) == 40 * min(k, 39)
    assert (edge_index[0] != edge_index[1]).all()


def test_knn_without_some_rows():
    torch.manual_seed(0)
    x = torch.randn(20, 8)
    x[3] = 0.0
    x[[0, 7, 11]] = float('nan')
    for k in [3, 50]:
        edge_index, _ = assert_knn(x, k)
        assert not {0, 3, 7, 11} & set(edge_index.view(-1).tolist())
    assert edge_index.size(1) == 16 * 15


@pytest.mark.parametrize('num_valid', [0, 1])
def test_knn_without_pairs(num_valid):
    x = torch.full((4, 3), float('nan'))
    x[:num_valid] = 1.0
    edge_index, sim = T.knn_item_graph(x, k=2)
    assert edge_index.shape == (2, 0)
    assert edge_index.dtype == torch.long
    assert sim.shape == (0,)
    assert sim.dtype == torch.float


@pytest.mark.parametrize('shape', [(0, 3), (3, 0), (0, 0)])
def test_knn_empty(shape):
    edge_index, sim = T.knn_item_graph(torch.randn(*shape), k=2)
    assert edge_index.shape == (2, 0)
    assert sim.shape == (0,)


def test_knn_duplicates():
    torch.manual_seed(0)
    x = torch.randn(60, 33)
    x[[2, 5, 8, 13, 21, 34, 55]] = x[1].clone()
    x[[40, 50]] = x[30].clone()
    for k in [1, 2, 3, 6, 8, 20]:
        assert_knn(x, k)
    edge_index, _ = T.knn_item_graph(x, k=3)
    assert edge_index[0, edge_index[1] == 1].tolist() == [2, 5, 8]
    assert edge_index[0, edge_index[1] == 5].tolist() == [1, 2, 8]
    assert edge_index[0, edge_index[1] == 55].tolist() == [1, 2, 5]


def test_knn_all_rows_equal():
    x = torch.randn(1, 5).expand(30, 5)
    edge_index, _ = assert_knn(x, k=4)
    assert edge_index[0, edge_index[1] == 29].tolist() == [0, 1, 2, 3]
    assert edge_index[0, edge_index[1] == 2].tolist() == [0, 1, 3, 4]


def test_knn_ties_of_distinct_rows():
    torch.manual_seed(0)
    x = torch.randint(2, (60, 6)).float()  # Few values of the similarity.
    x = x * torch.tensor([1.0, 2.0, 0.5]).repeat(20).unsqueeze(1)
    for k in [1, 3, 10, 40]:
        assert_knn(x, k)


@pytest.mark.parametrize('seed', range(5))
def test_knn_does_not_depend_on_block_size(seed):
    torch.manual_seed(seed)
    x = torch.randn(300, 257)
    x[100:200] = x[:100].clone()  # Ties at many ranks.
    outs = [T.knn_item_graph(x, 5, b) for b in [1, 2, 17, 64, 299, 300, 5000]]
    for edge_index, sim in outs[1:]:
        assert torch.equal(edge_index, outs[0][0])
        assert torch.equal(sim, outs[0][1])
    # Source ids ascend within equal similarities, which descend:
    edge_index, sim = outs[0]
    same = edge_index[1, 1:] == edge_index[1, :-1]
    assert (edge_index[1].diff() >= 0).all()
    assert (sim.diff()[same] <= 0).all()
    assert (edge_index[0].diff()[same & (sim.diff() == 0)] > 0).all()


def test_knn_repairs_inexact_products(monkeypatch):
    # The search sees products with an error, the result does not:
    torch.manual_seed(0)
    x = torch.randn(50, 12)
    x[10:20] = x[:10].clone()
    expected = T.knn_item_graph(x, k=4)
    unit = search.Rows.unit

    def noisy(rows, index):
        x = unit(rows, index)
        return x + 2e-7 * torch.randn_like(x)

    monkeypatch.setattr(search.Rows, 'unit', noisy)
    out = T.knn_item_graph(x, k=4)
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1], expected[1])


@pytest.mark.parametrize('scale', [1e-40, 1e-30, 1e30])
def test_knn_is_scale_free(scale):
    torch.manual_seed(0)
    x = torch.randint(1, 9, (30, 4)).float()
    expected = T.knn_item_graph(x, k=3)
    out = T.knn_item_graph((x.double() * scale).float(), k=3)
    torch.testing.assert_close(out[1], expected[1], atol=1e-4, rtol=0)
    if scale > 1e-38:
        assert torch.equal(out[0], expected[0])
    out = T.knn_item_graph(x.double() * scale**5, k=3)
    if scale > 1e-38:
        assert torch.equal(out[0], expected[0])


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16, torch.double])
def test_knn_dtypes(dtype):
    torch.manual_seed(0)
    x = torch.randint(1, 9, (30, 4)).to(dtype)
    edge_index, sim = T.knn_item_graph(x, k=3)
    expected = naive_knn(x, 3)
    assert torch.equal(edge_index, expected[0])
    torch.testing.assert_close(sim, expected[1], atol=1e-7, rtol=0)


@pytest.mark.parametrize('k', [1, 10, 40])
@pytest.mark.parametrize('sort', [False, True])
def test_knn_of_many_rows(k, sort):
    # More than one tile of many groups; neighbors may all be in one group:
    torch.manual_seed(0)
    x = torch.randn(700, 3)
    x[300:400] = x[:100]
    x = x[x[:, 0].argsort()] if sort else x
    sim = torch.nn.functional.normalize(x.double(), dim=1)
    sim = (sim @ sim.t()).float().fill_diagonal_(-2)
    expected, index = sim.sort(dim=1, descending=True, stable=True)
    for block_size in [64, 256, 1024]:
        edge_index, out = T.knn_item_graph(x, k, block_size)
        out = out.view(700, k)
        torch.testing.assert_close(out, expected[:, :k], atol=1e-6, rtol=0)
        same = edge_index[0].view(700, k) == index[:, :k]
        assert same.float().mean() > 0.99  # But for ties after rounding.


def test_knn_survives_rows_of_one_code(monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(50, 4)
    x[30:] = x[1].clone()
    expected = T.knn_item_graph(x, k=3)
    monkeypatch.setattr(search, 'hash_rows', lambda x: x[:, 0].long() * 0)
    out = T.knn_item_graph(x, k=3)
    assert torch.equal(out[0], expected[0])
    assert torch.equal(out[1], expected[1])


def test_knn_of_rows_of_one_code_and_copies(monkeypatch):
    def hash_rows(x):
        return torch.zeros(x.size(0), dtype=torch.long)

    monkeypatch.setattr(search, 'hash_rows', hash_rows)
    x = torch.tensor([[0.0, -1.0], [0, 1], [0, 1], [0, -1], [0, -1]])
    for k in (1, 2, 3):
        assert_knn(x, k)


def test_knn_of_tags():
    # Signs and round numbers have few bits to tell them apart:
    x = torch.randint(-1, 2, (200, 5)).float()
    codes = search.hash_rows(x).unique()
    assert codes.numel() == (x + 0.0).unique(dim=0).size(0)
    for k in (1, 5, 300):
        assert_knn(x, k, block_sizes=(64, 1024))


@pytest.mark.parametrize('sign', [1.0, -1.0])
def test_knn_of_rows_that_are_much_alike(monkeypatch, sign):
    calls, alike = [], search.search_alike
    monkeypatch.setattr(
        search,
        'search_alike',
        lambda *args: calls.append(args) or alike(*args),
    )
    x = sign * torch.randn(1, 16) + 1e-4 * torch.randn(150, 16)
    x[3], x[40], x[149] = float('nan'), x[7], -x[8]
    assert_knn(x, 1, block_sizes=(64, 1024))
    assert len(calls) == 2


def test_sort_key():
    sim = torch.tensor([[-1.5, -1.0, -0.5, -0.0, 0.0, 1e-9, 0.5, 1.0, 1.0]])
    key = search.sort_key(sim.double(), 7)
    expected = [7, 8, 6, 5, 3, 4, 2, 0, 1]
    assert key[0].argsort(descending=True).tolist() == expected


def test_knn_equal_rows_with_two_zeros():
    x = torch.tensor([[1.0, 0.0], [1.0, -0.0], [0.0, 1.0]])
    code = search.hash_rows(x)
    assert code[0] == code[1] != code[2]


def test_knn_records_no_gradient():
    x = torch.randn(9, 4, requires_grad=True)
    assert not T.knn_item_graph(x, k=2)[1].requires_grad


def test_knn_is_bounded_in_memory():
    class Spy(torch.overrides.TorchFunctionMode):
        largest = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, tuple | list) else [out]:
                if isinstance(value, torch.Tensor):
                    self.largest = max(self.largest, value.numel())
            return out

    torch.manual_seed(0)
    x = torch.randn(1000, 4)
    x[500:] = x[0]  # A dense graph of ties.
    with Spy() as spy:
        T.knn_item_graph(x, k=2, block_size=16)
    assert 4000 <= spy.largest <= 16_000


def test_knn_matches_faiss():
    faiss = pytest.importorskip('faiss')
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(500, 32))
    index = faiss.IndexFlatIP(32)
    index.add(np.ascontiguousarray(x.numpy()))
    sim, ids = index.search(x.numpy(), 11)
    assert (ids[:, 0] == np.arange(500)).all()
    edge_index, out = T.knn_item_graph(x, k=10)
    assert edge_index[0].view(500, 10).tolist() == ids[:, 1:].tolist()
    torch.testing.assert_close(
        out.view(500, 10), torch.from_numpy(sim[:, 1:]), atol=1e-6, rtol=0
    )


def test_knn_errors():
    x = torch.randn(4, 3)
    for k in [0, -2]:
        with pytest.raises(ValueError, match=rf"'k' .* at least 1 \(got {k}\)"):
            T.knn_item_graph(x, k)
    with pytest.raises(ValueError, match=r"'block_size' .* \(got 0\)"):
        T.knn_item_graph(x, 1, block_size=0)
    with pytest.raises(ValueError, match=r'two-dimensional \(got \[12\]\)'):
        T.knn_item_graph(x.view(-1), 1)
    with pytest.raises(ValueError, match=r'floating \(got torch.int64\)'):
        T.knn_item_graph(x.long(), 1)
    x[1, 1] = -float('inf')
    with pytest.raises(ValueError, match=r'no infinite entries'):
        T.knn_item_graph(x, 1)


def dense(edge_index, weight, num_items):
    out = torch.zeros(num_items, num_items, dtype=torch.double)
    out.index_put_(tuple(edge_index), weight.double(), accumulate=True)
    return out


def test_merge_item_graphs():
    graphs = {
        'image': (torch.tensor([[1, 2, 0], [0, 0, 1]]), torch.ones(3) / 2),
        'text': (torch.tensor([[1, 3, 0], [0, 0, 2]]), torch.ones(3) / 2),
    }
    edge_index, weight = merge_item_graphs(
        graphs, {'image': 0.1, 'text': 0.9}, num_items=4
    )
    # Items 1 and 2 have one modality only, whose weight becomes one:
    assert edge_index.tolist() == [[1, 2, 3, 0, 0], [0, 0, 0, 1, 2]]
    torch.testing.assert_close(
        weight, torch.tensor([0.5, 0.05, 0.45, 0.5, 0.5])
    )

    # Only the ratio of the weights counts:
    out = merge_item_graphs(graphs, {'image': 2, 'text': 18}, 4)
    assert torch.equal(out[0], edge_index)
    torch.testing.assert_close(out[1], weight)

    for weights in [{'text': 3.0}, {'image': 0.0, 'text': 1.0}]:
        edge_index, weight = merge_item_graphs(graphs, weights, 4)
        assert edge_index.tolist() == [[1, 3, 0], [0, 0, 2]]
        assert weight.tolist() == [0.5, 0.5, 0.5]


def test_merge_item_graphs_random():
    torch.manual_seed(0)
    graphs, adjs, weights = {}, {}, {'a': 1.0, 'b': 2.0, 'c': 5.0}
    for name in weights:
        edge_index = torch.randint(20, (2, 25)).unique(dim=1)
        value = torch.rand(edge_index.size(1))
        graphs[name] = (edge_index, value)
        adjs[name] = dense(edge_index, value, 20)

    expected = torch.zeros(20, 20, dtype=torch.double)
    for item in range(20):
        has = [m for m in weights if adjs[m][:, item].any()]
        for m in has:
            share = weights[m] / sum(weights[n] for n in has)
            expected[:, item] += share * adjs[m][:, item]
    edge_index, weight = merge_item_graphs(graphs, weights, 20)
    torch.testing.assert_close(
        dense(edge_index, weight, 20), expected, atol=1e-6, rtol=0
    )
    assert edge_index.unique(dim=1).shape == edge_index.shape


def test_merge_item_graphs_drops_edges_of_weight_zero():
    graph = (torch.tensor([[1, 2], [0, 0]]), torch.tensor([0.0, 1.0]))
    edge_index, weight = merge_item_graphs({'a': graph}, {'a': 1.0}, 3)
    assert edge_index.tolist() == [[2], [0]]
    assert weight.tolist() == [1.0]


def test_merge_item_graphs_empty():
    empty = (torch.empty(2, 0, dtype=torch.long), torch.empty(0))
    edge_index, weight = merge_item_graphs({'a': empty}, {'a': 1.0}, 3)
    assert edge_index.shape == (2, 0)
    assert weight.shape == (0,)


@pytest.mark.parametrize(
    ('weights', 'match'),
    [
        ({'b': 1.0}, r"unknown modality \(got 'b', .* \['a'\]\)"),
        ({'a': -1.0}, r"non-negative \(got -1.0 for 'a'\)"),
        ({'a': float('nan')}, r"finite .* \(got nan for 'a'\)"),
        ({'a': float('inf')}, r"finite .* \(got inf for 'a'\)"),
        ({'a': 0.0}, r"positive entry \(got {'a': 0.0}\)"),
        ({}, r'positive entry \(got {}\)'),
    ],
)
def test_merge_item_graphs_errors(weights, match):
    graph = (torch.tensor([[1, 2], [0, 0]]), torch.ones(2))
    with pytest.raises(ValueError, match=match):
        merge_item_graphs({'a': graph}, weights, 3)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_merge_item_graphs_needs_finite_values(value):
    graph = (torch.tensor([[1, 2], [0, 0]]), torch.tensor([1.0, value]))
    match = r"'graphs' .* finite values \(got others in 'a'\)"
    with pytest.raises(ValueError, match=match):
        merge_item_graphs({'a': graph}, {'a': 1.0}, 3)


def test_merge_item_graphs_needs_floating_values():
    graph = (torch.tensor([[1, 2], [0, 0]]), torch.ones(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"floating .* torch.int64 in 'a'\)"):
        merge_item_graphs({'a': graph}, {'a': 1.0}, 3)


def test_merge_item_graphs_takes_any_edge_index():
    edges, value = torch.tensor([[1, 2], [0, 0]]), torch.tensor([1.0, 0.5])
    out = merge_item_graphs({'a': (edges, value)}, {'a': 1.0}, 3)
    other = merge_item_graphs({'a': (EdgeIndex(edges), value)}, {'a': 1.0}, 3)
    assert all(x.equal(y) for x, y in zip(out, other, strict=True))


def test_merge_item_graphs_index_out_of_range():
    graph = (torch.tensor([[1, 2], [0, 0]]), torch.ones(2))
    with pytest.raises(ValueError, match=r'between 0 and 1 \(got 2\)'):
        merge_item_graphs({'a': graph}, {'a': 1.0}, 2)


def test_merge_item_graphs_of_many_items_in_short_integers():
    edges = torch.tensor([[0, 69_999, 5], [69_999, 0, 69_998]])
    graphs = {'a': (edges.int(), torch.ones(3))}
    out = merge_item_graphs(graphs, {'a': 1.0}, 70_000)
    expected = merge_item_graphs(
        {'a': (edges, torch.ones(3))}, {'a': 1.0}, 70_000
    )
    for x, y in zip(out, expected, strict=True):
        assert torch.equal(x, y)
