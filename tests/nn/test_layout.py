import copy
import gc
import weakref

import pytest
import torch
from torch_geometric import EdgeIndex

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE, CRANEConv
from crane_pyg.nn.layout import GraphCache

SIZE = (4, 3)


def get_edges():
    return torch.tensor([[3, 0, 1, 2, 0], [0, 1, 1, 1, 2]])


def test_layout_holds_the_same_edges():
    edge_index = get_edges()
    out = GraphCache()(edge_index, SIZE)
    assert isinstance(out, EdgeIndex)
    assert torch.equal(out.as_tensor(), edge_index)
    assert out.sparse_size() == SIZE
    out.validate()
    x, weight = torch.randn(4, 2), torch.rand(5)
    conv = CRANEConv(normalize=False)
    expected = torch.zeros(3, 2)
    for (src, dst), w in zip(edge_index.t().tolist(), weight, strict=True):
        expected[dst] += w * x[src]
    for edges in (out, edge_index):
        y = conv((x, None), edges, weight, size=SIZE)
        torch.testing.assert_close(y, expected)


def test_layout_is_kept_while_its_edges_live():
    cache, edge_index = GraphCache(), get_edges()
    out = cache(edge_index, SIZE)
    assert cache(edge_index, SIZE) is out
    assert cache(edge_index.clone(), SIZE) is not out
    assert cache(edge_index, (5, 3)).sparse_size() == (5, 3)
    # Once written to, it is another graph:
    edge_index[0, 0] = 2
    assert cache(edge_index, SIZE).as_tensor()[0, 0] == 2
    kept = weakref.ref(cache(edge_index, SIZE))
    assert kept() is not None
    del edge_index, out
    gc.collect()
    assert kept() is None
    assert len(copy.deepcopy(cache)._kept) == 0


def test_layout_leaves_other_edges_alone():
    cache, edge_index = GraphCache(), get_edges().flip(1)
    assert torch.equal(cache(edge_index, SIZE), edge_index)
    assert not isinstance(cache(edge_index, SIZE), EdgeIndex)
    edge_index = EdgeIndex(get_edges(), sparse_size=SIZE, sort_order='col')
    assert cache(edge_index, SIZE) is edge_index


def test_layout_in_inference_mode():
    cache = GraphCache()
    with torch.inference_mode():
        edge_index = get_edges()
        assert torch.equal(cache(edge_index, SIZE).as_tensor(), edge_index)


@pytest.mark.parametrize('size', [(3, 3), (4, 2)])
def test_layout_needs_edges_of_its_nodes(size):
    with pytest.raises(ValueError, match=r"'edge_index\[[01]\]' .* \(got"):
        GraphCache()(get_edges(), size)


def test_crane_takes_edges_in_any_order():
    data = FakeMultimodalDataset(30, 20, {'image': 4, 'text': 3})[0]
    data = T.BuildDualGraph(k=3)(data)
    model = CRANE(30, 20, {'image': 4, 'text': 3}, channels=4).eval()
    expected = model(data)
    for edge_type in data.edge_types:
        store = data[edge_type]
        perm = torch.randperm(store.edge_weight.numel())
        store.edge_index = store.edge_index[:, perm]
        store.edge_weight = store.edge_weight[perm]
    for x, y in zip(model(data), expected, strict=True):
        assert x is y is None or torch.allclose(x, y, atol=1e-6)


def test_crane_lays_out_a_graph_once():
    data = FakeMultimodalDataset(30, 20, {'image': 4, 'text': 3})[0]
    data = T.BuildDualGraph(k=3)(data)
    model = CRANE(30, 20, {'image': 4, 'text': 3}, channels=4)
    first, second = model.graphs(data), model.graphs(copy.copy(data))
    for x, y in zip(first, second, strict=True):
        assert isinstance(x[0], EdgeIndex)
        assert x[0] is y[0]
