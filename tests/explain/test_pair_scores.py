import copy

import pytest
import torch
from torch_geometric.explain import Explainer, GNNExplainer
from torch_geometric.explain.algorithm import CaptumExplainer
from torch_geometric.explain.algorithm.utils import (
    clear_masks,
    set_hetero_masks,
)
from toys import (
    ITEMS,
    OPTIONS,
    RATES,
    RELATIONS,
    REV,
    SIMILAR,
    USERS,
    all_scores,
    get_data,
    get_model,
    get_ranker,
)

from crane_pyg.explain import PairScores

CO_RATED = ('item', 'co_rated', 'item')
NODES = {'user': (USERS, 48), 'item': (ITEMS, 62)}


@pytest.mark.parametrize('ranked', [False, True])
@pytest.mark.parametrize('kwargs', OPTIONS)
def test_pair_scores(kwargs, ranked):
    data, model = get_data(), get_model(dropout=0.5, **kwargs)
    ranker = get_ranker(model, data) if ranked else None
    scores = PairScores(model, data, ranker)
    pairs = torch.tensor([[0, 3, 3, 29], [39, 1, 2, 0]])
    out = scores(*scores.inputs(), edge_label_index=pairs)
    expected = all_scores(model, data, ranker)
    torch.testing.assert_close(out, expected[tuple(pairs)])
    assert model.training
    assert not scores.training
    for row, value in [(0, USERS), (1, ITEMS)]:
        wrong = pairs.clone()
        wrong[row, 2] = value
        with pytest.raises(ValueError, match=rf'\(got {value}\)'):
            scores(*scores.inputs(), edge_label_index=wrong)


@pytest.mark.parametrize('weight', [0.0, 0.5])
def test_edges_that_matter(weight):
    data, model = get_data(), get_model(num_layers=0)
    ranker = get_ranker(model, data, co_rated=weight, ease=0.1)
    scores = PairScores(model, data, ranker)
    assert (CO_RATED in scores.edge_index) == (weight > 0)
    assert RATES in scores.edge_index
    # The zeros of a full matrix, such as its diagonal, are no edges:
    src, dst = scores.edge_index['item', 'ease', 'item']
    assert (src != dst).all()
    assert src.numel() > 100
    ranker = get_ranker(model, data, co_rated=0.0)
    scores = PairScores(model, data, ranker)
    assert set(scores.edge_index) == {REV, SIMILAR}


@pytest.mark.parametrize('edge_type', [RATES, REV, SIMILAR, CO_RATED])
def test_masked_edge_changes_score(edge_type):
    r"""A mask of zero is the same as no such edge."""
    data, model = get_data(), get_model()
    ranker = get_ranker(model, data, co_rated=2.0)
    scores = PairScores(model, data, ranker)
    x, edge_index = scores.inputs()
    pairs = torch.cartesian_prod(torch.arange(USERS), torch.arange(ITEMS)).t()
    before = scores(x, edge_index, pairs)
    masks = {key: torch.ones(e.size(1)) for key, e in edge_index.items()}
    masks[edge_type][4] = 0.0
    set_hetero_masks(scores, masks, edge_index, apply_sigmoid=False)
    after = scores(x, edge_index, pairs)
    clear_masks(scores)
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(scores(x, edge_index, pairs), before)
    if edge_type in (SIMILAR, CO_RATED):
        other = copy.copy(data)
        weight = data[edge_type].edge_weight.clone()
        weight[4] = 0.0
        other[edge_type].edge_weight = weight
        # What scales the neighborhood stays as it is:
        ((name, factor),) = ranker.neighborhood.weights.items()
        adj, had = torch.zeros(ITEMS, ITEMS), torch.zeros(USERS, ITEMS)
        src, dst = other['item', name, 'item'].edge_index
        adj[src, dst] = factor * other['item', name, 'item'].edge_weight
        had[tuple(data[RATES].edge_index)] = 1.0
        expected = all_scores(model, other) + had @ adj
        torch.testing.assert_close(after, expected[tuple(pairs)])


@pytest.mark.parametrize('relation', ['refined', 'ease'])
def test_relation_without_edges_in_data(relation):
    r"""It has masks as well, one for each of its edges."""
    data, model = get_data(), get_model()
    ranker = get_ranker(model, data, **{relation: 1.0})
    scores, edge_type = (
        PairScores(model, data, ranker),
        ('item', relation, 'item'),
    )
    x, edge_index = scores.inputs()
    masks = {key: torch.ones(e.size(1)) for key, e in edge_index.items()}
    masks[edge_type].zero_()
    set_hetero_masks(scores, masks, edge_index, apply_sigmoid=False)
    pairs = torch.tensor([[8, 3, 3], [5, 1, 2]])
    out = scores(x, edge_index, pairs)
    torch.testing.assert_close(out, all_scores(model, data)[tuple(pairs)])
    expected = all_scores(model, data, ranker)[tuple(pairs)]
    assert (expected - out).abs().min() > 1e-3


@pytest.mark.parametrize('kwargs', [{}, {'num_item_layers': 0}])
def test_gradients_are_those_of_the_model(kwargs):
    r"""What is learned about items stands behind their features, in order."""
    data, model = get_data(), get_model(**kwargs).eval()
    scores = PairScores(model, data, get_ranker(model, data, co_rated=2.0))
    users, items = torch.randint(30, (2, 9))
    x, edge_index = scores.inputs()
    x = {key: value.requires_grad_() for key, value in x.items()}
    scores(x, edge_index, torch.stack([users, items])).sum().backward()

    out = model(data)
    learned = [*model.preference.values(), model.user_id]
    learned += [*model.offset.values(), model.item_id]
    grads = torch.autograd.grad(
        (out.user[users] * out.item[items]).sum(), learned
    )
    assert all(grad.any() for grad in grads)
    features, rest = x['item'].grad.split([14, 48], dim=1)
    assert features.any()
    torch.testing.assert_close(x['user'].grad, torch.cat(grads[:3], dim=1))
    torch.testing.assert_close(rest, torch.cat(grads[3:], dim=1))
    # Of features, nothing but their direction counts:
    along = features * x['item'].detach()[:, :14]
    for part in along.split([8, 6], dim=1):
        torch.testing.assert_close(
            part.sum(dim=1), torch.zeros(ITEMS), atol=1e-5, rtol=0
        )


def explain(algorithm, node_mask_type, edge_mask_type):
    data, model = get_data(), get_model()
    scores = PairScores(model, data, get_ranker(model, data))
    explainer = Explainer(
        scores,
        algorithm=algorithm,
        explanation_type='model',
        node_mask_type=node_mask_type,
        edge_mask_type=edge_mask_type,
        model_config={'mode': 'regression', 'task_level': 'edge'},
    )
    pair = torch.tensor([[8], [5]])
    return scores, explainer(*scores.inputs(), edge_label_index=pair)


@pytest.mark.parametrize('node_mask_type', [None, 'object', 'attributes'])
def test_gnn_explainer(node_mask_type):
    torch.manual_seed(0)
    scores, out = explain(GNNExplainer(epochs=3), node_mask_type, 'object')
    relations = {('item', name, 'item') for name in RELATIONS}
    assert set(out.edge_types) == {RATES, REV} | relations
    for key, edge_index in scores.edge_index.items():
        mask = out[key].edge_mask
        assert mask.size() == edge_index.size()[1:]
        assert 0 < mask.max() < 1
    # The direct edges from the items of the user are the only ones there:
    row, item = out[RATES].edge_index
    src, dst = out[CO_RATED].edge_index
    used = torch.isin(src, item[row == 8]) & (dst == 5)
    assert used.any()
    assert torch.equal(out[CO_RATED].edge_mask > 0, used)
    for key, size in NODES.items():
        if node_mask_type is None:
            assert 'node_mask' not in out[key]
        else:
            mask = out[key].node_mask
            last = 1 if node_mask_type == 'object' else size[1]
            assert mask.size() == (size[0], last)
            assert mask.isfinite().all()
            assert mask.max() > 0


@pytest.mark.filterwarnings('ignore:Input Tensor . did not already require')
@pytest.mark.parametrize('method', ['IntegratedGradients', 'Saliency'])
@pytest.mark.parametrize('edge_mask_type', [None, 'object'])
def test_captum_explainer(method, edge_mask_type):
    pytest.importorskip('captum')
    out = explain(CaptumExplainer(method), 'attributes', edge_mask_type)[1]
    for key, size in NODES.items():
        assert out[key].node_mask.size() == size
        assert out[key].node_mask.isfinite().all()
        assert out[key].node_mask.count_nonzero() > 0
    for key in out.edge_types:
        if edge_mask_type is None:
            assert 'edge_mask' not in out[key]
        else:
            mask = out[key].edge_mask
            assert mask.size() == out[key].edge_index.size()[1:]
            assert mask.count_nonzero() > 0


def test_captum_edges_add_up():
    r"""Integrated gradients sum to the difference of two scores."""
    pytest.importorskip('captum')
    algorithm = CaptumExplainer('IntegratedGradients', n_steps=100)
    scores, out = explain(algorithm, None, 'object')
    total = sum(out[key].edge_mask.sum().item() for key in out.edge_types)
    # PyG masks by the sigmoid of what goes from zero to one:
    ends = []
    x, edge_index = scores.inputs()
    for value in [0.0, 1.0]:
        masks = {
            key: torch.full((edges.size(1),), value)
            for key, edges in edge_index.items()
        }
        set_hetero_masks(scores, masks, edge_index)
        pair = torch.tensor([[8], [5]])
        ends.append(scores(x, edge_index, pair).item())
        clear_masks(scores)
    assert abs(ends[1] - ends[0]) > 0.01
    assert total == pytest.approx(ends[1] - ends[0], rel=1e-3)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_pair_scores_of_features_in_half_precision(dtype):
    data, model = get_data(), get_model()
    data['item'].x_image = data['item'].x_image.to(dtype)
    scores = PairScores(model, data)
    pairs = torch.tensor([[0, 3, 29], [39, 1, 0]])
    out = scores(*scores.inputs(), edge_label_index=pairs)
    torch.testing.assert_close(out, all_scores(model, data)[tuple(pairs)])
