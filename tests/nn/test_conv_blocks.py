r"""CRANEConv on samples of a graph, and in the place of other layers."""

import pytest
import torch
from torch_geometric.loader import LinkNeighborLoader
from torch_geometric.nn import HeteroConv, LGConv, LightGCN, to_hetero
from torch_geometric.testing import onlyNeighborSampler
from torch_geometric.utils import degree

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANEConv
from crane_pyg.transforms.norm import symmetric_norm

CHANNELS = 4
RATES = ('user', 'rates', 'item')
OWN = 'own'  # The block's degrees.
SUM = 'edge_weight'  # The full graph's weights.
MEAN = 'mean_weight'  # The same, such that their mean estimates their sum.

# PyG announces that it will need pyg-lib:
ignore_deprecation = pytest.mark.filterwarnings(
    "ignore:Using 'NeighborSampler' without a:UserWarning"
)


def make_conv(kind):
    if kind == OWN:
        return CRANEConv()
    return CRANEConv(normalize=False, aggr='mean' if kind == MEAN else 'add')


class HeteroNet(torch.nn.Module):
    def __init__(self, kind, edge_types, num_layers):
        super().__init__()
        self.convs = torch.nn.ModuleList(
            HeteroConv({key: make_conv(kind) for key in edge_types})
            for _ in range(num_layers)
        )

    def forward(self, x_dict, edge_index_dict, edge_weight_dict):
        out = x_dict
        for conv in self.convs:
            x_dict = conv(
                x_dict, edge_index_dict, edge_weight_dict=edge_weight_dict
            )
            out = {key: out[key] + x for key, x in x_dict.items()}
        return out


class Net(torch.nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.conv1 = make_conv(kind)
        self.conv2 = make_conv(kind)

    def forward(self, x, edge_index, edge_weight):
        x1 = self.conv1(x, edge_index, edge_weight)
        return x + x1 + self.conv2(x1, edge_index, edge_weight)


def make_model(kind, data, num_layers=2, wrapper=HeteroConv):
    if wrapper is HeteroConv:
        return HeteroNet(kind, data.edge_types, num_layers)
    return to_hetero(Net(kind), data.metadata())


def run(model, kind, data):
    weight_dict = {} if kind == OWN else data.collect(kind)
    return model(data.x_dict, data.edge_index_dict, weight_dict)


def random_data():
    data = FakeMultimodalDataset(60, 40, pre_transform=T.BuildDualGraph(k=5))[0]
    generator = torch.Generator().manual_seed(12)
    for store in data.node_stores:
        size = (store.num_nodes, CHANNELS)
        store.x = torch.randn(size, generator=generator).requires_grad_()
    for store in data.edge_stores:
        col = store.edge_index[1]
        store[MEAN] = store[SUM] * degree(col, store.size(1))[col]
    return data


def dense_reference(data, num_layers):
    r"""The sum of all layers on dense matrices, with double precision."""
    adjs = {}
    for edge_type in data.edge_types:
        store = data[edge_type]
        adj = torch.zeros(store.size(), dtype=torch.double)
        adj[tuple(store.edge_index)] = 1.0
        if edge_type[0] == edge_type[2]:  # Has weights before normalization.
            adj[tuple(store.edge_index)] = store.edge_weight.double()
        else:
            adj /= (adj.sum(0) * adj.sum(1, keepdim=True)).sqrt().clamp(min=1)
        adjs[edge_type] = adj
    out = x_dict = {key: x.detach().double() for key, x in data.x_dict.items()}
    for _ in range(num_layers):
        x_dict = {
            key: sum(
                adj.t() @ x_dict[src]
                for (src, _, dst), adj in adjs.items()
                if dst == key
            )
            for key in x_dict
        }
        out = {key: out[key] + x for key, x in x_dict.items()}
    return out


def make_loader(data, pairs, num_neighbors, batch_size, **kwargs):
    return LinkNeighborLoader(
        data,
        num_neighbors=num_neighbors,
        edge_label_index=(RATES, pairs),
        batch_size=batch_size,
        **kwargs,
    )


def get_seeds(block, pairs):
    r"""Where the nodes of the given pairs are in a block, type by type."""
    out = {}
    for key, index in zip(['user', 'item'], pairs, strict=True):
        n_id = block[key].n_id.tolist()
        out[key] = [n_id.index(i) for i in index.unique().tolist()]
    return out


@pytest.mark.parametrize('wrapper', [HeteroConv, to_hetero])
@pytest.mark.parametrize('kind', [SUM, MEAN])
def test_crane_conv_mean_of_all_edges_is_their_sum(kind, wrapper):
    data = random_data()
    model = make_model(kind, data, wrapper=wrapper)
    out, expected = run(model, kind, data), dense_reference(data, 2)
    for key in ['user', 'item']:
        torch.testing.assert_close(
            out[key].double(), expected[key], rtol=0, atol=1e-5
        )


@onlyNeighborSampler
@ignore_deprecation
@pytest.mark.parametrize('wrapper', [HeteroConv, to_hetero])
@pytest.mark.parametrize('kind', [SUM, MEAN])
def test_crane_conv_blocks_of_all_neighbors(kind, wrapper):
    data = random_data()
    model = make_model(kind, data, wrapper=wrapper)
    full = run(model, kind, data)
    pairs = data[RATES].edge_index[:, ::9]
    loader = make_loader(data, pairs, [-1, -1], batch_size=4)
    num_blocks, num_partial = 0, 0
    for block, batch_pairs in zip(loader, pairs.split(4, dim=1), strict=True):
        out = run(model, kind, block)
        loss, full_loss = 0.0, 0.0
        for key, index in get_seeds(block, batch_pairs).items():
            expected = full[key][block[key].n_id[index]]
            torch.testing.assert_close(
                out[key][index], expected, rtol=0, atol=1e-5
            )
            loss = loss + out[key][index].sum()
            full_loss = full_loss + expected.sum()

        # So are the gradients, of all nodes, in the block or not:
        params = [data['user'].x, data['item'].x]
        grads = torch.autograd.grad(loss, params)
        expected = torch.autograd.grad(full_loss, params, retain_graph=True)
        for grad, expected_grad in zip(grads, expected, strict=True):
            torch.testing.assert_close(
                grad, expected_grad, rtol=1e-5, atol=1e-5
            )
        num_blocks += 1
        num_partial += block.num_edges < data.num_edges
    assert num_blocks == -(-pairs.size(1) // 4) >= 8
    assert num_partial == num_blocks  # Else, this would show nothing.


@onlyNeighborSampler
@ignore_deprecation
def test_crane_conv_own_degrees_of_blocks_differ():
    data = random_data()
    model = make_model(OWN, data)
    full = run(model, OWN, data)
    pairs = data[RATES].edge_index[:, :4]
    block = next(iter(make_loader(data, pairs, [-1, -1], batch_size=4)))
    out = run(model, OWN, block)
    for key, index in get_seeds(block, pairs).items():
        expected = full[key][block[key].n_id[index]]
        assert (out[key][index] - expected).abs().max() > 0.05


def check_estimate(outs, expected, num_errors=5.0):
    r"""Whether a mean is within Monte-Carlo error of what it estimates."""
    mean, error = outs.mean(dim=0), outs.std(dim=0) / len(outs) ** 0.5
    return bool(((mean - expected).abs() <= num_errors * error + 1e-5).all())


@onlyNeighborSampler
@ignore_deprecation
@pytest.mark.parametrize('num_layers', [1, 2])
def test_crane_conv_expectation_over_blocks(num_layers):
    torch.manual_seed(12)
    data = random_data()
    expected = dense_reference(data, num_layers)
    models = {k: make_model(k, data, num_layers) for k in [OWN, SUM, MEAN]}
    pairs = data[RATES].edge_index[:, ::40]
    outs = {(kind, key): [] for kind in models for key in ['user', 'item']}
    with torch.no_grad():
        # With replacement, since only this is uniform in `torch_sparse`:
        for block in make_loader(
            data,
            pairs.repeat(1, 1000),
            num_neighbors=[2] * num_layers,
            batch_size=pairs.size(1),
            replace=True,
        ):
            seeds = get_seeds(block, pairs)
            for kind, model in models.items():
                out = run(model, kind, block)
                for key, index in seeds.items():
                    outs[kind, key].append(out[key][index])

    for key, index in zip(['user', 'item'], pairs, strict=True):
        target, distance = expected[key][index.unique()], {}
        for kind in models:
            value = torch.stack(outs[kind, key]).double()
            assert value.size(0) == 1000
            assert check_estimate(value, target) == (kind == MEAN), (kind, key)
            distance[kind] = float((value.mean(dim=0) - target).norm())
        assert distance[MEAN] < 0.5 * min(distance[OWN], distance[SUM])


def sample_edges(col, num_neighbors, num_samples):
    r"""Samples of edges into every node, uniform and without replacement."""
    outs = []
    for i in col.unique():
        edges = (col == i).nonzero().view(-1)
        order = torch.rand(num_samples, edges.numel()).argsort(dim=1)
        outs.append(edges[order[:, :num_neighbors]])
    return torch.cat(outs, dim=1)


@pytest.mark.parametrize('self_loops', [False, True])
@pytest.mark.parametrize('num_layers', [1, 2])
def test_crane_conv_expectation_without_replacement(num_layers, self_loops):
    torch.manual_seed(12)
    num_nodes, num_copies = 6, 4000
    adj = torch.rand(num_nodes, num_nodes) < 0.7
    edge_index = adj.fill_diagonal_(self_loops).nonzero().t()
    weight = symmetric_norm(edge_index, num_nodes, num_nodes)
    deg = degree(edge_index[1], num_nodes)
    assert deg.min() > 2
    x = torch.randn(num_nodes, CHANNELS)
    expected = x
    dense = torch.zeros(num_nodes, num_nodes)
    dense[tuple(edge_index)] = weight
    for _ in range(num_layers):
        expected = dense.t() @ expected

    # All samples make up one graph, each on a copy of the nodes:
    index = sample_edges(edge_index[1], 2, num_copies)
    offset = num_nodes * torch.arange(num_copies).unsqueeze(1)
    block = (edge_index[:, index] + offset).flatten(start_dim=1)
    index = index.flatten()
    assert degree(block[1]).unique().tolist() == [2.0]
    weights = {
        OWN: None,
        SUM: weight[index],
        MEAN: (weight * deg[edge_index[1]])[index],
    }
    for kind, edge_weight in weights.items():
        out = x.repeat(num_copies, 1)
        for _ in range(num_layers):
            out = make_conv(kind)(out, block, edge_weight)
        # A self-loop makes a path use the same sampled edges twice:
        is_unbiased = kind == MEAN and not (self_loops and num_layers == 2)
        out = out.view(num_copies, num_nodes, CHANNELS)
        assert check_estimate(out, expected) == is_unbiased, kind


@onlyNeighborSampler
@ignore_deprecation
def test_crane_conv_rejects_weights_of_other_edges():
    data = random_data()
    pairs = data[RATES].edge_index[:, :4]
    block = next(iter(make_loader(data, pairs, [2, 2], batch_size=4)))
    num_edges = block[RATES].num_edges
    assert num_edges < data[RATES].num_edges
    model = make_model(SUM, data)
    match = rf'shape \[{num_edges}\] \(got \[{data[RATES].num_edges}\]\)'
    with pytest.raises(ValueError, match=match):
        model(block.x_dict, block.edge_index_dict, data.collect(SUM))


class MisnamedNet(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = CRANEConv(normalize=False)

    def forward(self, x, edge_index, weight):
        return self.conv(x, edge_index, weight)


def test_crane_conv_rejects_weights_that_are_no_tensor():
    data = random_data()
    # `to_hetero` takes what has no 'edge' in its name for one value per node:
    model = to_hetero(MisnamedNet(), data.metadata())
    match = r"'edge_weight' needs to be a tensor \(got 'tuple'\)"
    with pytest.raises(ValueError, match=match):
        run(model, SUM, data)


def test_crane_conv_in_place_of_lg_conv():
    data = random_data()
    edge_type = ('item', 'similar_to', 'item')
    args = [data.x_dict, {edge_type: data[edge_type].edge_index}]
    kwargs = {'edge_weight_dict': {edge_type: data[edge_type].edge_weight}}
    out = HeteroConv({edge_type: CRANEConv()})(*args, **kwargs)
    expected = HeteroConv({edge_type: LGConv()})(*args, **kwargs)
    torch.testing.assert_close(out, expected)

    torch.manual_seed(12)
    model = LightGCN(40, CHANNELS, num_layers=2)
    edge_index = data[edge_type].edge_index
    expected = model.get_embedding(edge_index)
    assert model.get_embedding(edge_index[:, 1:]).sub(expected).abs().max() > 0
    model.convs = torch.nn.ModuleList([CRANEConv(), CRANEConv()])
    torch.testing.assert_close(model.get_embedding(edge_index), expected)
