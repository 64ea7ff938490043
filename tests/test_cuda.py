r"""What a GPU computes is what the CPU does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.testing import onlyCUDA
from torch_geometric.utils import sort_edge_index
from toys import ITEMS, OPTIONS, RATES, SIZES, USERS, get_data, get_model

import crane_pyg.transforms as T
from crane_pyg.explain import PairScores, explain_scores
from crane_pyg.nn import RCA, InfoNCELoss, SampledSoftmaxLoss
from crane_pyg.ranking import evaluate, top_k

NODES = USERS + ITEMS


def graphs_of(data):
    r"""All edges, in one order, and their weights."""
    out = []
    for edge_type in data.edge_types:
        store = data[edge_type]
        pairs = store.edge_index
        out += sort_edge_index(pairs, store.edge_weight, num_nodes=NODES)
    return out


def raw(data):
    r"""The pairs and features that graphs are built of."""
    out = copy.copy(data)
    for edge_type in data.edge_types:
        if edge_type != RATES:
            del out[edge_type]
    out[RATES].edge_index = data[RATES].edge_index
    del out[RATES].edge_weight
    return out


def build(data):
    return graphs_of(T.BuildDualGraph(k=5)(raw(data)))


def reduce(data):
    # Singular vectors are known but for their sign:
    out = T.ReduceFeatures(4)(data)
    xs = [out['item'][f'x_{name}'].nan_to_num() for name in SIZES]
    return [F.normalize(x @ x.t(), dim=-1) for x in xs]


def profiles(data):
    out = T.AddUserProfiles()(data)
    return [out['user'][f'x_{name}'] for name in SIZES]


def attach(data):
    features = {
        name: torch.linspace(-1, 1, 3 * size).view(3, size).sin()
        for name, size in SIZES.items()
    }
    device = data['item'].x_image.device
    features = {name: x.to(device) for name, x in features.items()}
    whole = T.attach_items(data, features, T.BuildDualGraph(k=5))
    model = get_model().to(device).extend(whole)
    return [*graphs_of(whole), *model(whole)[:2]]


def drop(data):
    # The draws of a GPU are others, but not how many there are:
    out = T.DegreeDropEdges(0.5)(data)
    kept, dropped = out[RATES].edge_index, out[RATES].edge_label_index
    count = [pairs.new_tensor(pairs.size(1)) for pairs in (kept, dropped)]
    both = torch.cat([kept, dropped], dim=1)
    return [*count, sort_edge_index(both, num_nodes=NODES)]


def losses(data):
    device = data['item'].x_image.device
    x, y, z = torch.linspace(0, 9, 3 * 20 * 4).sin().view(3, 20, 4).to(device)
    index = torch.arange(20, device=device) // 2
    return [InfoNCELoss()(x, y, index), SampledSoftmaxLoss()(x, y, z)]


def explain(data):
    device = data['item'].x_image.device
    model = get_model().to(device).eval()
    items = torch.tensor([0, 7], device=device)
    score, parts, history, carriers = explain_scores(model, data, 2, items)
    return [score, *parts.values(), history, *carriers.values()]


def pair_scores(data):
    device = data['item'].x_image.device
    scores = PairScores(get_model().to(device), data)
    pairs = torch.tensor([[0, 1], [2, 3]], device=device)
    return [scores(*scores.inputs(), edge_label_index=pairs)]


FUNCTIONS = [
    build,
    reduce,
    profiles,
    attach,
    drop,
    losses,
    explain,
    pair_scores,
]


@onlyCUDA
@pytest.mark.parametrize('function', FUNCTIONS)
def test_functions(function):
    data = get_data()
    assert_equal(function(data), function(data.clone().to('cuda')))


@onlyCUDA
@pytest.mark.parametrize('options', OPTIONS)
def test_crane(options):
    data = get_data()
    assert_equal(model_of(data, options), model_of(data.to('cuda'), options))


def model_of(data, options):
    r"""Losses, gradients, and all that ranks."""
    device = data['item'].x_image.device
    model = get_model(**options).to(device)
    pairs = data[RATES].edge_index
    user, pos = pairs[:, :16]
    neg = (torch.arange(64, device=device) % ITEMS).view(16, 4)
    out = model(data)
    loss = model.loss(
        out, user, pos, neg, contrast_weight=0.1 * (model.num_item_layers > 0)
    )
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    model.eval()
    out = model(data)
    neighbors = model.neighborhood(data, out)
    held_out = data[RATES].val_edge_label_index
    metrics = evaluate(*out[:2], held_out, pairs, neighbors=neighbors)
    top = top_k(*out[:2], 5, exclude=pairs, neighbors=neighbors)
    users = torch.tensor([0, 3], device=device)
    found = model.recommend(data, users, k=5)
    assert found.equal(top[users])
    tuned = model.tune_neighborhood(data, out, held_out)
    metrics = torch.tensor([*metrics.values(), *tuned.values()], device=device)
    return [
        *(loss.detach(), *grads, *out[:2]),
        *(metrics, top, model.neighbor_scale),
    ]


@onlyCUDA
@pytest.mark.parametrize('mode', ['correlation', 'token'])
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_autocast(mode, dtype):
    torch.manual_seed(0)
    rca = RCA(8, 3, 2, mode).cuda()
    xs = torch.randn(3, 10, 8, device='cuda').unbind()
    with torch.autocast('cuda', dtype):
        outs = rca(xs)
    for out, expected in zip(outs, rca(xs), strict=True):
        assert torch.allclose(out.float(), expected, atol=0.1)


def assert_equal(expected, outs):
    for x, y in zip(expected, outs, strict=True):
        assert y.is_cuda
        assert torch.allclose(y.cpu(), x, atol=1e-5, equal_nan=True)
