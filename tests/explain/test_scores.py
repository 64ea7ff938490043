import copy

import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.explain.algorithm.utils import set_hetero_masks
from torch_geometric.testing import withCUDA
from toys import (
    ITEMS,
    OPTIONS,
    RATES,
    RELATIONS,
    REV,
    SIMILAR,
    SIZES,
    USERS,
    all_scores,
    get_data,
    get_model,
    get_ranker,
)

from crane_pyg.explain import PairScores, explain_scores
from crane_pyg.ranking import Neighborhood, Ranker

CO_RATED = ('item', 'co_rated', 'item')


def score_pairs(model, data, user, items, ranker):
    r"""What :obj:`explain_scores` splits, by the model of the explainers."""
    scores = PairScores(model, data, ranker)
    pairs = torch.tensor([[user] * len(items), items])
    return scores(*scores.inputs(), edge_label_index=pairs)


def with_weights(data, user, scale):
    r"""Multiplies the weights of the edges from and to the items of a user."""
    data = copy.copy(data)
    for edge_type, row in [(RATES, 0), (REV, 1)]:
        edge_index = data[edge_type].edge_index
        weight = data[edge_type].edge_weight.double()
        factor = torch.where(
            edge_index[row] == user, scale[edge_index[1 - row]], 1.0
        )
        data[edge_type].edge_weight = weight * factor
    return data


@pytest.mark.parametrize('ranked', [False, True])
@pytest.mark.parametrize('kwargs', OPTIONS)
def test_parts_sum_to_score(kwargs, ranked):
    data, model = get_data(), get_model(dropout=0.5, **kwargs)
    ranker = get_ranker(model, data) if ranked else None
    expected = all_scores(model, data, ranker)
    assert expected.std() > 0.01
    items = torch.tensor([7, 0, 39, 7])
    for user in [0, 11, USERS - 1]:
        out = explain_scores(model, data, user, items, ranker)
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        torch.testing.assert_close(out.score, expected[user, items])
        total = sum(out.parts.values())
        torch.testing.assert_close(total, out.score, atol=1e-5, rtol=0)


def test_parts_follow_the_ranking():
    data, model = get_data(), get_model()
    for ranker in [None, get_ranker(model, data)]:
        ranking = model.recommend(data, [4], 10)
        if ranker is not None:
            ranking = ranker.recommend([4], 10)
        score = explain_scores(model, data, 4, ranking[0], ranker).score
        assert torch.equal(score.sort(descending=True).values, score)
        assert len(score.unique()) == 10


def test_parts_by_hand():
    r"""Each part is what is left of the score without all others."""
    data, model = get_data(), get_model()
    weights = {'co_rated': 1.0, 'similar_to': 2.0, 'refined': 3.0, 'ease': 4.0}
    ranker = get_ranker(model, data, **weights)
    user, items = 5, torch.arange(ITEMS)
    parts = explain_scores(model, data, user, items, ranker).parts
    names = ['behavior', 'semantic_image', 'semantic_text']
    near = ['neighbors_co_rated', 'neighbors_refined', 'neighbors_ease']
    assert list(parts) == [*names, 'item_graph', *near]

    bare = copy.deepcopy(model).eval()
    bare.num_item_layers = 0
    with torch.no_grad():
        out = bare(data)
    for i, name in enumerate(names):
        x = torch.zeros_like(out.user[user])
        x[16 * i : 16 * (i + 1)] = out.user[user, 16 * i : 16 * (i + 1)]
        torch.testing.assert_close(parts[name], out.item @ x)

    scores = all_scores(model, data, ranker)[user]
    bounds = {'atol': 1e-5, 'rtol': 1e-4}
    for name in near:
        fewer = {**weights, name.removeprefix('neighbors_'): 0.0}
        rest = all_scores(model, data, get_ranker(model, data, **fewer))[user]
        assert (scores - rest).abs().max() > 0.1
        torch.testing.assert_close(parts[name], scores - rest, **bounds)


def test_item_graph_part():
    data, model = get_data(), get_model()
    ranker = get_ranker(model, data, similar_to=2.0)
    out = explain_scores(model, data, 5, torch.arange(ITEMS), ranker)
    bare = copy.deepcopy(model)
    bare.num_item_layers = 0
    scores = all_scores(model, data, ranker)
    expected = (scores - all_scores(bare, data))[5]
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(
        out.parts['item_graph'], expected, atol=1e-5, rtol=1e-4
    )
    # In dense matrices, what each item carries along the edges:
    adj, had = torch.zeros(ITEMS, ITEMS), torch.zeros(USERS, ITEMS)
    src, dst = data[SIMILAR].edge_index
    adj[src, dst] = data[SIMILAR].edge_weight
    had[tuple(data[RATES].edge_index)] = 1.0
    scores = all_scores(model, data)
    deviation = [x.std(unbiased=False) for x in (scores, had @ adj)]
    adj *= 2.0 * deviation[0] / deviation[1]
    carried = out.carriers['neighbors_similar_to']
    torch.testing.assert_close(carried, adj[out.history].t())
    assert carried.count_nonzero() > 0


def test_relations_of_weight_zero_have_no_part():
    data, model = get_data(), get_model()
    ranker = get_ranker(model, data, co_rated=0.0, refined=0.5)
    out = explain_scores(model, data, 5, torch.arange(ITEMS), ranker)
    assert 'neighbors_refined' in out.parts
    assert list(out.carriers) == ['embeddings', 'neighbors_refined']
    torch.testing.assert_close(out.score, all_scores(model, data, ranker)[5])
    ranker = get_ranker(model, data, refined=1.0)
    more = explain_scores(model, data, 5, torch.arange(ITEMS), ranker)
    assert out.parts['behavior'].equal(more.parts['behavior'])
    twice = 2 * out.parts['neighbors_refined']
    torch.testing.assert_close(more.parts['neighbors_refined'], twice)


@pytest.mark.parametrize('size', [1, 256])
@pytest.mark.parametrize('weights', [{}, {'co_rated': 3.0}])
def test_neighbor_carriers(weights, size, monkeypatch):
    monkeypatch.setattr('crane_pyg.explain.scores.PART_SIZE', size)
    data, model = get_data(), get_model()
    ranker = get_ranker(model, data, **weights)
    row, item = data[RATES].edge_index
    for user in [2, 17]:
        out = explain_scores(model, data, user, torch.arange(ITEMS), ranker)
        assert out.history.tolist() == sorted(item[row == user].tolist())
        names = [f'neighbors_{name}' for name in weights or RELATIONS]
        assert list(out.carriers) == ['embeddings', *names]
        for name in set(names) & set(out.parts):
            total = out.carriers[name].sum(dim=1)
            torch.testing.assert_close(total, out.parts[name])
            assert total.abs().max() > 0


def test_embedding_carriers():
    r"""They are the change of the inner product with the weights of edges."""
    # The mean of a profile has no weights, so there is none here:
    data = get_data()
    model = get_model(profile='contrast')
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
    data, model = get_data(), get_model()
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
        edges = edge_index[key]
        grad = masks[key].grad * (edges[row] == user)
        total.index_add_(0, edges[1 - row], grad)
    torch.testing.assert_close(
        out.carriers['embeddings'][0], total[out.history], atol=1e-6, rtol=1e-4
    )


def test_duplicate_pairs():
    r"""A history that names an item twice counts it twice, as in ranking."""
    data, model = get_data(), get_model()
    once = get_ranker(model, data, co_rated=0.5)
    row, item = data[RATES].edge_index
    history = torch.tensor([[4], [int(item[row == 4][0])]])
    history = torch.cat([data[RATES].edge_index, history], dim=1)
    graphs = {
        'co_rated': (data[CO_RATED].edge_index, data[CO_RATED].edge_weight)
    }
    near = Neighborhood(history, graphs, (USERS, ITEMS))
    twice = Ranker(near, once.user_emb, once.item_emb)
    out = [
        explain_scores(model, data, 4, torch.arange(ITEMS), ranker)
        for ranker in (once, twice)
    ]
    torch.testing.assert_close(out[1].score, all_scores(model, data, twice)[4])
    assert torch.equal(out[0].history, out[1].history)
    share = [x.carriers['neighbors_co_rated'].sum(dim=0) for x in out]
    share = [x / x[1] for x in share]
    assert share[1][0] == pytest.approx(2 * share[0][0])


def test_edge_index_with_caches():
    r"""It has the same parts and carriers."""
    data, model = get_data(), get_model()
    expected = explain_scores(model, data, 4, torch.arange(6))
    for edge_type in data.edge_types:
        store = data[edge_type]
        adj = EdgeIndex(
            store.edge_index, sparse_size=store.size(), sort_order='col'
        )
        store.edge_index = adj.fill_cache_()
    out = explain_scores(model, data, 4, torch.arange(6))
    for x, y in [
        (out.parts, expected.parts),
        (out.carriers, expected.carriers),
    ]:
        for name in y:
            torch.testing.assert_close(x[name], y[name], atol=1e-5, rtol=1e-4)


@withCUDA
def test_explain_on_device(device):
    r"""The items may be anywhere."""
    data, model, items = get_data(), get_model(), torch.arange(6)
    ranker = get_ranker(model, data)
    expected = explain_scores(model, data, 4, items, ranker)
    data, model = data.to(device), model.to(device)
    ranker = get_ranker(model, data)
    out = explain_scores(model, data, 4, items, ranker)
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
    ranker = get_ranker(model, data)
    out = explain_scores(model, data, 6, torch.arange(5), ranker)
    assert out.history.tolist() == []
    assert all(x.size() == (5, 0) for x in out.carriers.values())
    assert out.parts['behavior'].abs().min() > 0
    assert out.parts['neighbors_co_rated'].tolist() == [0.0] * 5
    torch.testing.assert_close(
        out.score, all_scores(model, data, ranker)[6, :5]
    )


def test_no_items():
    data, model = get_data(), get_model()
    out = explain_scores(model, data, 0, [], get_ranker(model, data))
    assert out.score.size() == out.parts['behavior'].size() == (0,)
    size = (0, out.history.numel())
    assert all(x.size() == size for x in out.carriers.values())


@pytest.mark.parametrize(
    ('user', 'item', 'match'),
    [
        (USERS, 0, r"'user_index' .* 0 and 29 \(got 30\)"),
        (-1, 0, r"'user_index' .* \(got -1\)"),
        (1.5, 0, r"'user_index' .* integers \(got torch.float32\)"),
        ([0, 1], 0, r"'user_index' needs to be one user \(got 2 of them\)"),
        (0, ITEMS, r"'item_index' .* 0 and 39 \(got 40\)"),
        (0, -2, r"'item_index' .* \(got -2\)"),
    ],
)
def test_bad_index(user, item, match):
    with pytest.raises(ValueError, match=match):
        explain_scores(get_model(), get_data(), user, [item, item])


def test_candidates():
    data, model = get_data(), get_model()
    ranker = Ranker.from_model(
        model, data, weights={'co_rated': 0.5}, candidates=range(9)
    )
    out = explain_scores(model, data, 0, [3, 3, 8], ranker)
    assert out.score[0] == out.score[1] != out.score[2]
    match = r"'item_index' .* 'candidates' only \(got 9\)"
    with pytest.raises(ValueError, match=match):
        explain_scores(model, data, 0, [3, 9], ranker)


@pytest.mark.parametrize('function', [explain_scores, score_pairs])
@pytest.mark.parametrize('no_history', ['popularity', 'empty'])
def test_user_ranked_without_embeddings(function, no_history):
    data, model = get_data(lonely=6), get_model()
    ranker = get_ranker(model, data, no_history)
    function(model, data, 5, [0], ranker)
    with pytest.raises(ValueError, match=rf'{no_history}.*\(got user 6\)'):
        function(model, data, 6, [0], ranker)


@pytest.mark.parametrize('function', [explain_scores, score_pairs])
def test_ranker_of_something_else(function):
    data, model = get_data(), get_model()
    ranker = get_ranker(model, data)
    with pytest.raises(ValueError, match="'data' needs to hold"):
        function(model, get_data(lonely=6), 5, [0], ranker)
    model.item_id.data.mul_(1.5)
    with pytest.raises(ValueError, match=r"'ranker' needs .* of 'model'"):
        function(model, data, 5, [0], ranker)


def test_explain_leaves_frozen_modules_alone():
    data, model = get_data(), get_model()
    model.encoder.rca.eval()
    explain_scores(model, data, 3, [1, 2])
    assert model.training
    assert not model.encoder.rca.training


@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_explain_without_gradients(mode):
    data, model, items = get_data(), get_model(), [7, 0]
    expected = explain_scores(model, data, 11, items, get_ranker(model, data))
    with mode():
        ranker = get_ranker(model, data)
        out = explain_scores(model, data, 11, items, ranker)
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
    ranker = get_ranker(model, data)
    expected = explain_scores(model, data, 11, [7, 0], ranker)
    model = model.bfloat16()
    ranker = get_ranker(model, data)
    out = explain_scores(model, data, 11, [7, 0], ranker)
    scores = all_scores(model, data, ranker)
    torch.testing.assert_close(out.score, scores[11, [7, 0]])
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
