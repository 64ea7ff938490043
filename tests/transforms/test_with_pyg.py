r"""What the transforms leave is plain data, which all of PyG takes."""

import copy
import importlib.util

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import BaseStorage, EdgeStorage, NodeStorage
from torch_geometric.loader import (
    DataLoader,
    HGTLoader,
    LinkNeighborLoader,
    NeighborLoader,
)
from torch_geometric.nn import HeteroConv, HGTConv, SAGEConv, to_hetero
from torch_geometric.transforms import (
    RandomLinkSplit,
    RemoveIsolatedNodes,
    ToUndirected,
)

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset

RATES = ('user', 'rates', 'item')
REV = ('item', 'rev_rates', 'user')
SIMILAR = ('item', 'similar_to', 'item')
CAN_SAMPLE = any(map(importlib.util.find_spec, ['pyg_lib', 'torch_sparse']))
samples = pytest.mark.skipif(not CAN_SAMPLE, reason='Needs a sampler')


@pytest.fixture(params=['built', 'dropped'])
def data(request):
    data = FakeMultimodalDataset(50, 40, {'image': 6, 'text': 4})[0]
    for name in ['val', 'test']:
        del data[RATES][f'{name}_edge_label_index']
    data[RATES].time = torch.arange(data[RATES].num_edges)
    data = T.BuildDualGraph(k=3, num_co_rated=5)(data)
    if request.param == 'dropped':
        torch.manual_seed(12)
        data = T.DegreeDropEdges(0.3)(data)
        del data[RATES].edge_label_index
    data['user'].x, data['item'].x = torch.randn(50, 8), torch.randn(40, 8)
    return data


def weights_of(data, edge_type=RATES):
    r"""The weight of each edge, whatever their order."""
    pairs = zip(*data[edge_type].edge_index.tolist(), strict=True)
    return dict(zip(pairs, data[edge_type].edge_weight.tolist(), strict=True))


def assert_same_edges(out, data):
    assert out.edge_types == data.edge_types
    for edge_type in data.edge_types:
        assert weights_of(out, edge_type) == weights_of(data, edge_type)


def test_it_is_plain(data):
    for store in data.edge_stores:
        assert type(store.edge_index) is torch.Tensor
        assert store.edge_index.is_contiguous()
        assert (store.edge_index[1].diff() >= 0).all()
        assert len(weights_of(data, store._key)) == store.num_edges


def test_random_link_split(data):
    split = RandomLinkSplit(
        0.1,
        0.2,
        edge_types=[RATES],
        rev_edge_types=[REV],
        neg_sampling_ratio=0.0,
    )
    train, val, test = split(copy.copy(data))
    whole = weights_of(data)
    num_edges = len(whole)
    kept = weights_of(train)
    assert kept.items() < whole.items()
    assert len(kept) == num_edges - int(0.1 * num_edges) - int(0.2 * num_edges)
    assert weights_of(train, REV) == {
        pair[::-1]: weight for pair, weight in kept.items()
    }
    assert train[RATES].time.size(0) == len(kept)
    assert weights_of(val) == kept
    held_out = set(zip(*test[RATES].edge_label_index.tolist(), strict=True))
    assert held_out == whole.keys() - weights_of(test).keys()
    assert weights_of(train, SIMILAR) == weights_of(data, SIMILAR)


def test_sort_and_coalesce(data):
    out = data.sort(sort_by_row=True)
    for store in out.edge_stores:
        assert (store.edge_index[0].diff() >= 0).all()
    assert_same_edges(out, data)
    whole = weights_of(data)
    time = dict(zip(weights_of(out), out[RATES].time.tolist(), strict=True))
    before = dict(zip(whole, data[RATES].time.tolist(), strict=True))
    assert time == before

    out = data.coalesce()
    for edge_type in data.edge_types:
        edges = set(zip(*out[edge_type].edge_index.tolist(), strict=True))
        assert edges == weights_of(data, edge_type).keys()
    # Which leaves weights behind, for one of the transforms to set anew:
    out = T.DegreeDropEdges(0.0)(out)
    for edge_type in [RATES, REV]:
        weights = weights_of(out, edge_type)
        assert weights == pytest.approx(weights_of(data, edge_type))


def test_to_undirected(data):
    out = ToUndirected(merge=False)(copy.copy(data))
    pairs = out[REV].edge_index
    assert torch.equal(pairs.flip(0), data[RATES].edge_index)


def test_remove_isolated_nodes(data):
    out = RemoveIsolatedNodes()(copy.copy(data))
    user = data[RATES].edge_index[0].unique()
    assert out['user'].num_nodes == user.numel()
    assert torch.equal(
        user[out[RATES].edge_index[0]], data[RATES].edge_index[0]
    )


def test_subgraph(data):
    user = torch.tensor([3, 7, 30])
    out = data.subgraph({'user': user})
    names = user.tolist()
    assert {(names[u], i): w for (u, i), w in weights_of(out).items()} == {
        (u, i): w for (u, i), w in weights_of(data).items() if u in names
    }
    assert weights_of(out, SIMILAR) == weights_of(data, SIMILAR)


def test_to_homogeneous(data):
    out = data.to_homogeneous(node_attrs=['x'])
    pairs = out.edge_index[:, out.edge_type == data.edge_types.index(RATES)]
    pairs = pairs - torch.tensor([[0], [50]])
    assert torch.equal(pairs, data[RATES].edge_index)


def test_save_and_load(data, tmp_path):
    torch.save(data, tmp_path / 'data.pt')
    with torch.serialization.safe_globals(
        [BaseStorage, NodeStorage, EdgeStorage]  # PyG's own, for any data.
    ):
        out = torch.load(tmp_path / 'data.pt', weights_only=True)
    assert_same_edges(out, data)
    torch.save(data.to_dict(), tmp_path / 'dict.pt')
    out = torch.load(tmp_path / 'dict.pt', weights_only=True)
    assert_same_edges(HeteroData.from_dict(out), data)


@pytest.mark.parametrize(
    'duplicate',
    [copy.copy, copy.deepcopy, lambda data: data.to('cpu')],
)
def test_copies(data, duplicate):
    out = duplicate(data)
    assert_same_edges(out, data)
    for store in out.edge_stores:
        assert type(store.edge_index) is torch.Tensor


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = SAGEConv((-1, -1), 8)
        self.conv2 = SAGEConv((-1, -1), 8)

    def forward(self, x, edge_index):
        return self.conv2(self.conv1(x, edge_index).relu(), edge_index)


def shuffled(data):
    r"""The same graphs in another order of edges."""
    out = copy.copy(data)
    for store in out.edge_stores:
        perm = torch.randperm(store.num_edges)
        store.edge_index = store.edge_index[:, perm]
    return out


@pytest.mark.parametrize('kind', ['to_hetero', 'hetero', 'hgt'])
def test_layers(data, kind):
    torch.manual_seed(12)
    if kind == 'to_hetero':
        net = to_hetero(Net(), data.metadata())
    elif kind == 'hetero':
        convs = {name: SAGEConv((-1, -1), 8) for name in data.edge_types}
        net = HeteroConv(convs)
    else:
        net = HGTConv(8, 8, data.metadata(), heads=2)
    with torch.no_grad():
        out = net(data.x_dict, data.edge_index_dict)
        other = shuffled(data)
        expected = net(other.x_dict, other.edge_index_dict)
    for name in ['user', 'item']:
        assert out[name].size() == (data[name].num_nodes, 8)
        torch.testing.assert_close(out[name], expected[name])
    assert out['user'].std() > 0


def test_batch(data):
    (out,) = DataLoader([data, data], batch_size=2)
    pairs = data[RATES].edge_index
    expected = torch.cat([pairs, pairs + torch.tensor([[50], [40]])], dim=1)
    assert torch.equal(out[RATES].edge_index, expected)
    assert_same_edges(out.get_example(1), data)


@samples
@pytest.mark.parametrize('loader', [NeighborLoader, HGTLoader])
def test_neighbor_loaders(data, loader):
    size = [-1, -1] if loader is NeighborLoader else [90, 90]
    batches = loader(data, size, input_nodes='user', batch_size=10)
    whole = weights_of(data)
    for batch in batches:
        user, item = batch['user'].n_id, batch['item'].n_id
        for (u, i), weight in weights_of(batch).items():
            assert whole[int(user[u]), int(item[i])] == weight


@samples
def test_link_neighbor_loader(data):
    pairs = data[RATES].edge_index
    batches = LinkNeighborLoader(
        data,
        [-1, -1],
        edge_label_index=(RATES, pairs),
        batch_size=64,
        neg_sampling='binary',
    )
    found = set()
    for batch in batches:
        store = batch[RATES]
        index = store.edge_label_index[:, store.edge_label == 1]
        user = batch['user'].n_id[index[0]].tolist()
        item = batch['item'].n_id[index[1]].tolist()
        found |= set(zip(user, item, strict=True))
    assert found == weights_of(data).keys()
