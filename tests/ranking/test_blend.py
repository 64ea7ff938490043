import itertools

import pytest
import torch
from torch_geometric.metrics import LinkPredMetricCollection
from toy_shop import (
    ITEMS,
    RATES,
    USERS,
    get_data,
    get_embs,
    get_history,
    naive_recall,
    similar,
)

from crane_pyg.ranking import Neighborhood, blend
from crane_pyg.ranking.blend import (
    Judge,
    Pool,
    blend_metric,
    choose_weights,
    get_judge,
    list_metric,
    make_pool,
    spread,
)
from crane_pyg.ranking.metrics import METRICS
from crane_pyg.ranking.per_user import METRICS as PER_USER

SIZE = (USERS, ITEMS)


def test_per_user_metrics_are_those_of_pyg():
    generator = torch.Generator().manual_seed(12)
    label = torch.rand(50, 20, generator=generator) < 0.3
    label[:, 0] |= ~label.any(dim=1)
    top = torch.rand(50, 20, generator=generator).argsort(dim=1)[:, :7]
    hit, count = label.gather(1, top).float(), label.sum(dim=1).float()
    metrics = LinkPredMetricCollection(
        {name: METRICS[name](k=7) for name in PER_USER}
    )
    metrics.update(top, label.nonzero().t())
    for name, value in metrics.compute().items():
        out = PER_USER[name](hit, count)
        assert out.size() == (50,)
        torch.testing.assert_close(out.mean(), value)
    assert set(METRICS) == {*PER_USER, 'coverage'}


@pytest.fixture
def near():
    data = get_data()
    graph = data['item', 'similar_to', 'item']
    graphs = {
        'similar_to': (graph.edge_index, graph.edge_weight),
        'noise': torch.rand(ITEMS, ITEMS),
    }
    return Neighborhood(data[RATES].edge_index, graphs, SIZE)


def test_spread(near):
    history = torch.from_numpy(get_history(get_data()))
    adj = torch.from_numpy(similar(get_data()))
    out = spread(near)
    expected = float((history @ adj).std(correction=0))
    assert out['similar_to'] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('weights', [(0.0, 0.0), (2.0, 0.0), (0.5, 4.0)])
@pytest.mark.parametrize('block_size', [7, 256])
def test_pool_ranks_as_all_items(near, weights, block_size):
    data, embs = get_data(), get_embs()
    pairs = data[RATES].val_edge_label_index
    judge = get_judge(near, pairs, metric='recall@5')
    scale = {'similar_to': 3.0, 'noise': 0.2}
    pool = make_pool(*embs, near, scale, judge, block_size)
    out = blend_metric(pool, weights, judge)
    score = embs[0] @ embs[1].t()
    for weight, name in zip(weights, scale, strict=True):
        score += weight * scale[name] * near.scores(name, torch.arange(USERS))
    expected = naive_recall(score.numpy(), get_history(data), pairs, 5)
    assert out.tolist() == pytest.approx(expected)
    assert 0 < out.mean() < 1


def test_pool_of_few_items(near, monkeypatch):
    # What is in no list of a component is not ranked, a held-out item or not:
    monkeypatch.setattr(blend, 'POOL_SIZE', 4)
    data, embs = get_data(), get_embs()
    judge = get_judge(near, data[RATES].val_edge_label_index, metric='ndcg@2')
    pool = make_pool(*embs, near, {'similar_to': 1.0}, judge)
    assert pool.score.size() == (2, USERS, 12)
    kept = (pool.score[0] > float('-inf')).sum(dim=1)
    assert 4 <= kept.min() < kept.max() <= 12
    assert pool.found.size(1) < pool.total.sum() == 2 * USERS


def test_list_metric(near):
    data = get_data()
    pairs = data[RATES].val_edge_label_index
    judge = get_judge(near, pairs, metric='recall@5')
    out = list_metric(near.only({'noise': 1.0}), judge)
    score = near.scores('noise', torch.arange(USERS)).numpy()
    expected = naive_recall(score, get_history(data), pairs, 5)
    assert out.tolist() == pytest.approx(expected)


def toy_pool(gains, num_users=400, seed=0):
    r"""One held-out item a user among 30, to which each relation adds."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.randn(1 + len(gains), num_users, 30, generator=generator)
    for part, gain in zip(score[1:], gains, strict=True):
        part[:, 0] += gain
    row = torch.arange(num_users)
    found = torch.stack([row, torch.zeros_like(row)])
    return Pool(score, found, torch.ones(num_users).long())


def toy_judge(name='ndcg', k=5):
    return Judge(torch.empty(2, 0), PER_USER[name], k, None)


def test_choose_weights_takes_what_helps():
    pool, judge = toy_pool([2.0, 0.0, 1.5]), toy_judge()
    out = choose_weights(pool, judge)
    assert out[0] > 0
    assert out[1] == 0.0
    assert out[2] > 0
    # No other weights of the grid for both are much better:
    best = max(
        float(blend_metric(pool, [a, 0.0, b], judge).mean())
        for a, b in itertools.product([0.0, *blend.GRID], repeat=2)
    )
    assert float(blend_metric(pool, out, judge).mean()) > best - 0.005
    assert choose_weights(pool, judge) == out


@pytest.mark.parametrize('seed', range(4))
def test_choose_weights_takes_no_chance(seed):
    # Noise helps nobody, though some weight of it is better by chance:
    pool, judge = toy_pool([-0.5, -0.5], num_users=60, seed=seed), toy_judge()
    assert choose_weights(pool, judge) == [0.0, 0.0]


def test_choose_weights_of_equals():
    pool, judge = toy_pool([1.0]), toy_judge()
    score = torch.cat([pool.score, pool.score[1:]])  # The same once more.
    assert choose_weights(pool._replace(score=score), judge)[0] > 0.0
    zero = pool._replace(score=0 * score)
    assert choose_weights(zero, judge) == [0.0, 0.0]


@pytest.mark.parametrize(
    ('metric', 'match'),
    [
        ('auc@5', r"'metric' .*'ndcg'.* \(got 'auc'\)"),
        ('coverage@5', r"'metric' .* \(got 'coverage'\)"),
        ('ndcg', r"'metric' .* as in 'ndcg@20' \(got 'ndcg'\)"),
        ('ndcg@-1', r"'metric' .* \(got 'ndcg@-1'\)"),
        ('ndcg@26', r"'k' .* 25 \(got 26\)"),
    ],
)
def test_metric_errors(near, metric, match):
    with pytest.raises(ValueError, match=match):
        get_judge(near, torch.tensor([[0], [1]]), metric=metric)
