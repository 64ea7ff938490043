import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData
from toy_shop import (
    ITEMS,
    RATES,
    USERS,
    get_data,
    get_history,
    naive_ease,
    naive_recall,
    naive_top,
)

from crane_pyg.ranking import ease, item_knn, popularity
from crane_pyg.ranking.relations import L2S


def get_scores(ranker):
    r"""All scores of the users with history."""
    index, score = ranker.top_k(ITEMS, exclude_seen=False)
    return torch.zeros_like(score).scatter_(1, index, score).numpy()


def naive_cosine(history, k):
    norm = np.sqrt(np.maximum(history.sum(axis=0), 1))
    out = history.T @ history / np.outer(norm, norm)
    np.fill_diagonal(out, 0.0)
    for row in out:
        row[np.argsort(-row, kind='stable')[k:]] = 0.0
    return out


def test_popularity():
    data = get_data(lonely=[3])
    history = get_history(data)
    out = popularity(data)
    expected = np.tile(history.sum(axis=0), (USERS, 1))
    np.testing.assert_allclose(get_scores(out), expected)
    top = out.top_k(5)
    count = np.where(history > 0, -np.inf, expected)
    np.testing.assert_allclose(top.score, -np.sort(-count, axis=1)[:, :5])
    result = out.evaluate(data[RATES].test_edge_label_index, ks=5)
    assert result['no_history/num_users'] == 1


@pytest.mark.parametrize('k', [3, 1000])
def test_item_knn(k, monkeypatch):
    monkeypatch.setattr('crane_pyg.ranking.closed_form.BLOCK', 100)
    data = get_data()
    history = get_history(data)
    weights = naive_cosine(history, k)
    out, score = item_knn(data, k), history @ weights
    scale = out.scale['item_knn']
    assert scale == pytest.approx(1 / score.std(), rel=1e-5)
    if k > ITEMS:  # Else some are as similar as others that are left out.
        np.testing.assert_allclose(get_scores(out), scale * score, rtol=1e-4)
    rows = out.neighborhood.relations['item_knn']
    assert rows.ptr.diff().max() == min(k, (weights > 0).sum(axis=1).max())
    edges = rows.get_edge_index()
    full = naive_cosine(history, ITEMS)
    np.testing.assert_allclose(rows.value, full[tuple(edges)], rtol=1e-5)
    with pytest.raises(ValueError, match=r"'k' .* at least 1 \(got 0\)"):
        item_knn(data, 0)


@pytest.mark.parametrize('l2', [2.0, None])
def test_ease(l2):
    data = get_data()
    history, store = get_history(data), data[RATES]
    out = ease(data, l2, metric='recall@5')
    if l2 is None:  # The best on validation pairs, the first of equals.
        pairs = store.val_edge_label_index
        means = []
        for option in L2S:
            score = history @ naive_ease(history, option)
            means.append(np.mean(naive_recall(score, history, pairs, 5)))
        l2 = L2S[int(np.argmax(means))]
    assert out.l2 == l2
    score = history @ naive_ease(history, l2)
    expected = score / score.std()
    np.testing.assert_allclose(get_scores(out), expected, atol=1e-3)
    top = out.recommend(k=5)
    assert (top.numpy() == naive_top(score, history, 5)).mean() > 0.99

    pairs = store.test_edge_label_index
    mean = np.mean(naive_recall(score, history, pairs, 5))
    result = out.evaluate(pairs, ['recall'], 5)
    assert result['recall@5'] == pytest.approx(mean, abs=0.01)
    assert result['recall@5'] > popularity(data).evaluate(pairs)['recall@10']


def test_ease_never_looks_at_test_pairs():
    data, other = get_data(), get_data()
    del other[RATES].test_edge_label_index
    assert torch.equal(ease(data).recommend(k=3), ease(other).recommend(k=3))
    del other[RATES].val_edge_label_index
    assert ease(other).l2 == 16 * (6 * USERS / ITEMS) ** 0.5


@pytest.mark.parametrize('function', [popularity, item_knn, ease])
def test_baselines_need_pairs(function):
    match = r"'edge_index' is missing .*'buys'"
    with pytest.raises(ValueError, match=match):
        function(get_data(), edge_type=('user', 'buys', 'item'))


def test_ease_needs_a_matrix_that_fits():
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 1, 30_001
    data['user', 'rates', 'item'].edge_index = torch.tensor([[0], [5]])
    match = r"'data' needs to have at most 30000 items .* \(got 30001\)"
    with pytest.raises(ValueError, match=match):
        ease(data)
