import copy

import pytest
import torch
from torch_geometric.explain.algorithm.utils import set_hetero_masks
from torch_geometric.testing import withCUDA
from toys import (
    ITEMS,
    OPTIONS,
    RATES,
    REV,
    SIMILAR,
    SIZES,
    USERS,
    all_scores,
    get_data,
    get_model,
)

from crane_pyg.explain import PairScores, explain_scores


def with_weights(data, user, scale):
    r"""Multiplies the weights of the edges from and to the items of a user."""
    data = copy.copy(data)
    for edge_type, row in [(RATES, 0), (REV, 1)]:
        edge_index = data[edge_type].edge_index.as_tensor()
        weight = data[edge_type].edge_weight.double()
        factor = torch.where(
            edge_index[row] == user, scale[edge_index[1 - row]], 1.0
        )
        data[edge_type].edge_weight = weight * factor
    return data


@pytest.mark.parametrize('kwargs', OPTIONS)
def test_parts_sum_to_score(kwargs):
    data, model = get_data(), get_model(dropout=0.5, **kwargs)
    expected, items = all_scores(model, data), torch.tensor([7, 0, 39, 7])
    assert expected.std() > 0.01
    for user in [0, 11, USERS - 1]:
        out = explain_scores(model, data, user, items)
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        torch.testing.assert_close(out.score, expected[user, items])
        total = sum(out.parts.values())
        torch.testing.assert_close(total, out.score, atol=1e-5, rtol=0)


def test_parts_follow_the_ranking():
    data, model = get_data(), get_model()
    top = model.recommend(data, torch.tensor([4]), k=10)[0]
    score = explain_scores(model, data, 4, top).score
    assert torch.equal(score.sort(descending=True).values, score)
    assert len(score.unique()) == 10


def test_parts_by_hand():
    r"""Each part is what is left of the score without all others."""
    data = get_data()
    model = get_model(neighbor_weights={'co_rated': 7.0, 'similar_to': 14.0})
    user, items = 5, torch.arange(ITEMS)
    parts = explain_scores(model, data, user, items).parts
    names = ['behavior', 'semantic_image', 'semantic_text']
    assert list(parts) == [*names, 'item_graph', 'neighbors_co_rated']

    bare = copy.deepcopy(model).eval()
    bare.num_item_layers, bare.neighbor_weights = 0, {}
    with torch.no_grad():
        out = bare(data)
    for i, name in enumerate(names):
        x = torch.zeros_like(out.user[user])
        x[16 * i : 16 * (i + 1)] = out.user[user, 16 * i : 16 * (i + 1)]
        torch.testing.assert_close(parts[name], out.item @ x)

    rest = copy.deepcopy(model)
    del rest.neighbor_weights['co_rated']
    expected = (all_scores(model, data) - all_scores(rest, data))[user]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(
        parts['neighbors_co_rated'], expected, atol=1e-5, rtol=1e-4
    )


def test_item_graph_part():
    data = get_data()
    model = get_model(neighbor_weights={'similar_to': 2.0})
    out = explain_scores(model, data, 5, torch.arange(ITEMS))
    rest = copy.deepcopy(model)
    rest.num_item_layers, rest.neighbor_weights = 0, {}
    expected = (all_scores(model, data) - all_scores(rest, data))[5]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(
        out.parts['item_graph'], expected, atol=1e-5, rtol=1e-4
    )
    # In dense matrices, what each item carries along the edges:
    adj = torch.zeros(ITEMS, ITEMS)
    src, dst = data[SIMILAR].edge_index.as_tensor()
    adj[src, dst] = 2.0 * data[SIMILAR].edge_weight
    bare = copy.deepcopy(model)
    bare.neighbor_weights = {}
    adj *= all_scores(bare, data).std(unbiased=False)
    carried = out.carriers['neighbors_similar_to']
    torch.testing.assert_close(carried, adj[out.history].t())
    assert carried.count_nonzero() > 0


@pytest.mark.parametrize('scale', [0.0, 0.5])
def test_parts_by_the_factor_of_the_neighborhood(scale):
    data, model = get_data(), get_model()
    model.neighbor_scale.fill_(scale)
    out = explain_scores(model, data, 5, torch.arange(ITEMS))
    torch.testing.assert_close(out.score, all_scores(model, data)[5])
    total = sum(out.parts.values())
    torch.testing.assert_close(total, out.score, atol=1e-5, rtol=0)
    assert ('neighbors_co_rated' in out.parts) == (scale > 0)
    model.neighbor_scale.fill_(1.0)
    whole = explain_scores(model, data, 5, torch.arange(ITEMS))
    assert out.parts['behavior'].equal(whole.parts['behavior'])
    for name in set(out.parts) & {'neighbors_co_rated', 'neighbors_refined'}:
        part = scale * whole.parts[name]
        torch.testing.assert_close(out.parts[name], part)


@pytest.mark.parametrize('weights', [None, {'co_rated': 3.0}])
def test_neighbor_carriers(weights):
    data, model = get_data(), get_model(neighbor_weights=weights)
    row, item = data[RATES].edge_index.as_tensor()
    for user in [2, 17]:
        out = explain_scores(model, data, user, torch.arange(ITEMS))
        assert out.history.tolist() == sorted(item[row == user].tolist())
        names = [f'neighbors_{name}' for name in model.neighbor_weights]
        assert list(out.carriers) == ['embeddings', *names]
        for name in set(names) & set(out.parts):
            total = out.carriers[name].sum(dim=1)
            torch.testing.assert_close(total, out.parts[name])
            assert total.abs().max() > 0


def test_embedding_carriers():
    r"""They are the change of the inner product with the weights of edges."""
    # The mean of a profile has no weights, so there is none here:
    data = get_data()
    model = get_model(profile='contrast', neighbor_weights={})
    user, items = 9, torch.tensor([1, 20])
    out = explain_scores(model, data, user, items)
    carried = out.carriers['embeddings']
    assert carried.size() == (2, out.history.numel())
    assert carried.abs().max() > 1e-3

    model = model.double()
    for name in SIZES:
        data['item'][f'x_{name}'] = data['item'][f'x_{name}'].double()
    step = 1e-4
    for j, item in enumerate(out.history.tolist()):
        scores = []
        for scale in [1 + step, 1 - step]:
            factor = torch.ones(ITEMS, dtype=torch.double)
            factor[item] = scale
            scores.append(all_scores(model, with_weights(data, user, factor)))
        difference = (scores[0] - scores[1])[user, items] / (2 * step)
        torch.testing.assert_close(
            carried[:, j].double(), difference, atol=1e-5, rtol=1e-4
        )


def test_carriers_agree_with_masks():
    r"""Profiles included, PyG's edge masks find the same derivatives."""
    data, model = get_data(), get_model(neighbor_weights={})
    user, item = 9, 20
    out = explain_scores(model, data, user, torch.tensor([item]))
    scores = PairScores(model, data)
    x, edge_index = scores.inputs()
    masks = {
        key: torch.nn.Parameter(torch.ones(e.size(1)))
        for key, e in edge_index.items()
    }
    set_hetero_masks(scores, masks, edge_index, apply_sigmoid=False)
    scores(x, edge_index, torch.tensor([[user], [item]])).sum().backward()
    total = torch.zeros(ITEMS)
    for key, row in [(RATES, 0), (REV, 1)]:
        edges = edge_index[key].as_tensor()
        grad = masks[key].grad * (edges[row] == user)
        total.index_add_(0, edges[1 - row], grad)
    torch.testing.assert_close(
        out.carriers['embeddings'][0], total[out.history], atol=1e-6, rtol=1e-4
    )


def test_given_neighborhood():
    r"""It is taken as it is, instead of what the model would return."""
    data, model = get_data(), get_model()
    with torch.no_grad():
        neighbors = model.eval().neighborhood(data, model(data))
    expected = explain_scores(model, data, 4, torch.arange(6))
    out = explain_scores(model, data, 4, torch.arange(6), neighbors=neighbors)
    assert torch.equal(out.score, expected.score)
    for graph in neighbors.graphs:
        graph.value = 2 * graph.value
    out = explain_scores(model, data, 4, torch.arange(6), neighbors=neighbors)
    name = 'neighbors_co_rated'
    assert expected.parts[name].abs().max() > 0.1
    torch.testing.assert_close(out.parts[name], 2 * expected.parts[name])
    total = sum(out.parts.values())
    torch.testing.assert_close(total, out.score, atol=1e-5, rtol=0)


def test_plain_edge_index():
    r"""A graph without any caches has the same parts and carriers."""
    data, model = get_data(), get_model()
    expected = explain_scores(model, data, 4, torch.arange(6))
    for edge_type in data.edge_types:
        edge_index = data[edge_type].edge_index.as_tensor()
        data[edge_type].edge_index = edge_index
    out = explain_scores(model, data, 4, torch.arange(6))
    for x, y in [
        (out.parts, expected.parts),
        (out.carriers, expected.carriers),
    ]:
        for name in y:
            torch.testing.assert_close(x[name], y[name], atol=1e-5, rtol=1e-4)


@withCUDA
def test_explain_on_device(device):
    r"""The items and candidates may be anywhere."""
    data, model = get_data(), get_model()
    items = torch.arange(6)
    expected = explain_scores(model, data, 4, items, items)
    data, model = data.to(device), model.to(device)
    out = explain_scores(model, data, 4, items.to(device), items)
    assert out.score.device == out.history.device == device
    torch.testing.assert_close(
        out.score.cpu(), expected.score, atol=1e-4, rtol=1e-4
    )
    assert list(out.carriers) == list(expected.carriers)
    for name, x in out.parts.items():
        torch.testing.assert_close(
            x.cpu(), expected.parts[name], atol=1e-4, rtol=1e-4
        )


def test_user_without_history():
    data, model = get_data(lonely=6), get_model()
    out = explain_scores(model, data, 6, torch.arange(5))
    assert out.history.tolist() == []
    assert all(x.size() == (5, 0) for x in out.carriers.values())
    assert out.parts['behavior'].abs().min() > 0
    assert out.parts['neighbors_co_rated'].tolist() == [0.0] * 5
    total = sum(out.parts.values())
    torch.testing.assert_close(total, out.score, atol=1e-5, rtol=0)


def test_no_items():
    out = explain_scores(get_model(), get_data(), 0, torch.arange(0))
    assert out.score.size() == out.parts['behavior'].size() == (0,)
    size = (0, out.history.numel())
    assert all(x.size() == size for x in out.carriers.values())


@pytest.mark.parametrize(
    ('user', 'item', 'candidates', 'match'),
    [
        (USERS, 0, None, r"'user_index' .* 0 and 29 \(got 30\)"),
        (-1, 0, None, r"'user_index' .* \(got -1\)"),
        (1.5, 0, None, r"'user_index' .* integer \(got 1.5\)"),
        (0, ITEMS, None, r"'item_index' .* 0 and 39 \(got 40\)"),
        (0, -2, None, r"'item_index' .* \(got -2\)"),
        (0, 7, [1, 2], r"'item_index' .* 'candidates' only \(got 7\)"),
        (0, 7, [], r"'item_index' .* 'candidates' only \(got 7\)"),
    ],
)
def test_bad_input(user, item, candidates, match):
    if candidates is not None:
        candidates = torch.tensor(candidates, dtype=torch.long)
    item = torch.tensor([item, item])
    with pytest.raises(ValueError, match=match):
        explain_scores(get_model(), get_data(), user, item, candidates)


def test_candidates():
    items = torch.tensor([3, 3, 8])
    out = explain_scores(get_model(), get_data(), 0, items, torch.arange(9))
    assert out.score[0] == out.score[1] != out.score[2]


def test_explain_leaves_frozen_modules_alone():
    data, model = get_data(), get_model()
    model.rca.eval()
    explain_scores(model, data, 3, [1, 2])
    assert model.training
    assert not model.rca.training


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_explain_without_gradients(mode):
    data, model, items = get_data(), get_model(), [7, 0]
    expected = explain_scores(model, data, 11, items)
    with mode():
        out = explain_scores(model, data, 11, items)
        assert not torch.is_grad_enabled()
    for name in ['score', 'history']:
        assert torch.equal(getattr(out, name), getattr(expected, name))
    for name in ['parts', 'carriers']:
        found, known = getattr(out, name), getattr(expected, name)
        assert found.keys() == known.keys()
        assert all(torch.equal(found[key], known[key]) for key in known)
    assert out.carriers['embeddings'].abs().max() > 1e-3


def test_explain_in_half_precision():
    data, model = get_data(), get_model()
    expected = explain_scores(model, data, 11, [7, 0])
    out = explain_scores(model.bfloat16(), data, 11, [7, 0])
    for name, value in expected.parts.items():
        bounds = {'atol': 0.05, 'rtol': 0.05, 'check_dtype': False}
        torch.testing.assert_close(out.parts[name], value, **bounds)


@pytest.mark.parametrize('edge_type', [RATES, REV, SIMILAR])
@pytest.mark.parametrize('function', [explain_scores, PairScores])
def test_explain_needs_all_graphs(function, edge_type):
    data, model = get_data(), get_model()
    del data[edge_type]
    before = data.edge_types
    more = (3, [4]) if function is explain_scores else ()
    with pytest.raises(ValueError, match=rf"edge weights .*'{edge_type[1]}'"):
        function(model, data, *more)
    assert data.edge_types == before
