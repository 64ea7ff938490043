import math

import numpy as np
import pytest
import torch
from toy_shop import ITEMS, RATES, USERS, get_data, get_history, naive_ease

from crane_pyg.ranking import ease as ease_ranker
from crane_pyg.ranking import relations
from crane_pyg.ranking.closed_form import ease_weights, gram_matrix, prune
from crane_pyg.ranking.relations import choose_ease, ease_graph

SIZE = (USERS, ITEMS)


@pytest.fixture
def data():
    return get_data(lonely=[3, 17])


@pytest.mark.parametrize('l2', [0.5, 30.0])
@pytest.mark.parametrize('double_items', [0, 8000])
def test_ease_weights(data, l2, double_items, monkeypatch):
    monkeypatch.setattr(
        'crane_pyg.ranking.closed_form.DOUBLE_ITEMS', double_items
    )
    history = data[RATES].edge_index
    out = ease_weights(torch.cat([history, history[:, ::3]], dim=1), SIZE, l2)
    assert out.dtype == torch.float
    assert out.is_contiguous()
    expected = naive_ease(get_history(data), l2)
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    assert (expected < -0.01).any()


@pytest.mark.parametrize('block', [1, 60, 1 << 24])
def test_gram_matrix(data, block, monkeypatch):
    monkeypatch.setattr('crane_pyg.ranking.closed_form.BLOCK', block)
    monkeypatch.setattr('crane_pyg.ranking.closed_form.PART_SIZE', 5)
    history = get_history(data)
    out = gram_matrix(data[RATES].edge_index, SIZE)
    assert np.array_equal(out.numpy(), history.T @ history)


def test_prune_keeps_the_largest_of_either_sign():
    weights = torch.tensor([[0.0, -3.0, 1.0], [0.5, 0.0, 0.2], [0.0, 0.0, 0.0]])
    edge_index, value = prune(weights, 1)
    assert edge_index.tolist() == [[0, 1], [1, 0]]
    assert value.tolist() == [-3.0, 0.5]
    edge_index, value = prune(weights, 9)
    assert torch.equal(weights[tuple(edge_index)], value)
    assert value.numel() == 4


@pytest.mark.parametrize('l2', [0.0, -1.0, float('nan')])
def test_ease_needs_a_positive_l2(data, l2):
    with pytest.raises(ValueError, match=rf"'l2' .* positive \(got {l2}\)"):
        ease_ranker(data, l2)


def test_ease_of_many_items(data, monkeypatch):
    history = data[RATES].edge_index
    monkeypatch.setattr(relations, 'FULL_ITEMS', ITEMS - 1)
    monkeypatch.setattr(relations, 'NUM_KEPT', 4)
    graph, l2 = ease_graph(history, SIZE, None, None)
    full, same = choose_ease(history, SIZE)
    assert l2 == same == 16 * math.sqrt(38 * 6 / ITEMS)
    assert graph[1].numel() == 4 * ITEMS
    assert torch.equal(full[tuple(graph[0])], graph[1])
