import math
import random

import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.testing import withCUDA

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.ranking import evaluate_item_graph, evaluate_popularity

NUM_USERS, NUM_ITEMS = 9, 12
RATES = ('user', 'rates', 'item')
BUYS = ('member', 'buys', 'product')


def get_data(edge_type=RATES, item_edge='similar_to'):
    r"""Item 11 is popular, item 0 is not, user 8 has no training pair, and
    every item has edges of other weights to all items.
    """
    rng = random.Random(12)
    user, _, item = edge_type
    pairs = [(u, i) for i in range(NUM_ITEMS) for u in range(8)]
    train = [pair for pair in pairs if pair[0] < pair[1] * 9 // 12]
    rest = [pair for pair in pairs if pair not in train]
    held_out = rng.sample(rest, 20) + [(8, 2), (8, 10), (8, 11)]
    rng.shuffle(train)

    data = HeteroData()
    data[user].num_nodes = NUM_USERS
    data[item].num_nodes = NUM_ITEMS
    data[edge_type].edge_index = torch.tensor(train).t().contiguous()
    data[edge_type].test_edge_label_index = torch.tensor(held_out).t()
    graph = data[item, item_edge, item]
    graph.edge_index = torch.cartesian_prod(*[torch.arange(NUM_ITEMS)] * 2).t()
    generator = torch.Generator().manual_seed(12)
    graph.edge_weight = torch.rand(NUM_ITEMS**2, generator=generator)
    return data


def naive_evaluate(score, train, held_out, ks):
    r"""Recall and NDCG of rankings by :obj:`score(user, item)`, which has no
    ties among the items that are ranked high.
    """
    out = {}
    for k in ks:
        recalls, ndcgs = [], []
        for user in sorted({u for u, _ in held_out}):
            labels = {i for u, i in held_out if u == user}
            items = [i for i in range(NUM_ITEMS) if (user, i) not in train]
            items.sort(key=lambda i, u=user: -score(u, i))
            hits = [i in labels for i in items[:k]]
            gains = [1 / math.log2(pos + 2) for pos in range(k)]
            dcg = sum(g for g, h in zip(gains, hits, strict=False) if h)
            recalls.append(sum(hits) / len(labels))
            ndcgs.append(dcg / sum(gains[: len(labels)]))
        out[f'recall@{k}'] = sum(recalls) / len(recalls)
        out[f'ndcg@{k}'] = sum(ndcgs) / len(ndcgs)
    return out


def as_pairs(edge_index):
    return [tuple(pair) for pair in edge_index.t().tolist()]


def naive_popularity(data, ks, edge_type=RATES):
    train = as_pairs(data[edge_type].edge_index)
    held_out = as_pairs(data[edge_type].test_edge_label_index)
    count = [sum(i == item for _, i in train) for item in range(NUM_ITEMS)]
    return naive_evaluate(lambda u, i: count[i], train, held_out, ks)


def naive_item_graph(data, ks, edge_type=RATES, item_edge='similar_to'):
    train = as_pairs(data[edge_type].edge_index)
    held_out = as_pairs(data[edge_type].test_edge_label_index)
    graph = data[edge_type[2], item_edge, edge_type[2]]
    weight = dict(
        zip(as_pairs(graph.edge_index), graph.edge_weight.tolist(), strict=True)
    )

    def score(user, item):
        seen = [i for u, i in train if u == user]
        return sum(weight.get((i, item), 0.0) for i in seen)

    return naive_evaluate(score, train, held_out, ks)


def without_ties(data):
    r"""The data where every item has another number of pairs."""
    train = [(u, i) for i in range(8) for u in range(i + 1)]
    data[RATES].edge_index = torch.tensor(train).t().contiguous()
    held_out = [(0, 9), (1, 0), (3, 1), (3, 0), (5, 3), (8, 2), (8, 7)]
    data[RATES].test_edge_label_index = torch.tensor(held_out).t()
    return data


def test_evaluate_popularity():
    data = without_ties(get_data())
    held_out = data[RATES].test_edge_label_index
    ks = (3, 1, 2)
    # No list reaches down to the items without pairs, whose order is open:
    held_out = held_out[:, 1:]
    data[RATES].test_edge_label_index = held_out
    out = evaluate_popularity(data, held_out, ks)
    expected = naive_popularity(data, ks)
    assert list(out) == list(expected)
    assert out == pytest.approx(expected, rel=1e-5)
    # User 8 has seen nothing, and gets item 7, the most popular, first:
    out = evaluate_popularity(data, torch.tensor([[8], [7]]), ks=[1])
    assert out == {'recall@1': 1.0, 'ndcg@1': 1.0}
    out = evaluate_popularity(data, torch.tensor([[8], [6]]), ks=[1])
    assert out == {'recall@1': 0.0, 'ndcg@1': 0.0}


def test_evaluate_popularity_excludes_training_pairs():
    # User 0 has items 0 to 7, so that the most popular one is no hit:
    data = without_ties(get_data())
    out = evaluate_popularity(data, torch.tensor([[0], [7]]), ks=[8])
    assert out == {'recall@8': 0.0, 'ndcg@8': 0.0}


@pytest.mark.parametrize('ks', [(4, 1, 2), (NUM_ITEMS,)])
@pytest.mark.parametrize('block_size', [1, 4, 1024])
def test_evaluate_item_graph(ks, block_size):
    data = get_data()
    held_out = data[RATES].test_edge_label_index
    keep = held_out[0] != 8  # All items are equal to who has none.
    data[RATES].test_edge_label_index = held_out = held_out[:, keep]
    out = evaluate_item_graph(data, held_out, ks, block_size=block_size)
    expected = naive_item_graph(data, ks)
    assert list(out) == list(expected)
    assert out == pytest.approx(expected, rel=1e-5)
    assert 0 < out[f'ndcg@{ks[0]}'] < 1

    # The direction of the edges matters:
    graph = data['item', 'similar_to', 'item']
    graph.edge_index = graph.edge_index.flip(0)
    other = evaluate_item_graph(data, held_out, ks)
    assert other == pytest.approx(naive_item_graph(data, ks), rel=1e-5)
    assert other != pytest.approx(out, rel=1e-5)


@pytest.mark.parametrize('undirected', [False, True])
def test_evaluate_item_graph_of_transform(undirected):
    data = get_data()
    del data['item', 'similar_to', 'item']
    torch.manual_seed(12)
    data['item'].x_image = torch.rand(NUM_ITEMS, 4)
    transform = T.BuildDualGraph(k=NUM_ITEMS - 1, undirected=undirected)
    held_out = data[RATES].test_edge_label_index
    held_out = held_out[:, held_out[0] != 8]
    data[RATES].test_edge_label_index = held_out
    data = transform(data)
    out = evaluate_item_graph(data, held_out, (2, 5))
    assert out == pytest.approx(naive_item_graph(data, (2, 5)), rel=1e-5)


def test_reference_type_names():
    data, other = get_data(), get_data(BUYS, 'near')
    held_out = data[RATES].test_edge_label_index
    assert evaluate_popularity(
        other, held_out, edge_type=BUYS, ks=(3,)
    ) == evaluate_popularity(data, held_out, (3,))
    assert evaluate_item_graph(
        other, held_out, edge_type=BUYS, item_edge='near', ks=(3,)
    ) == evaluate_item_graph(data, held_out, (3,))
    with pytest.raises(ValueError, match='at least one pair'):
        evaluate_popularity(data, held_out[:, :0], (3,))
    with pytest.raises(ValueError, match='at least one pair'):
        evaluate_item_graph(data, held_out[:, :0], (3,))
    for func in [evaluate_popularity, evaluate_item_graph]:
        with pytest.raises(ValueError, match=r"'k' .* 12 \(got 13\)"):
            func(data, held_out, (13,))


@withCUDA
def test_reference_on_device(device):
    data = get_data()
    held_out = data[RATES].test_edge_label_index
    expected = [
        evaluate_popularity(without_ties(get_data()), held_out, (3,)),
        evaluate_item_graph(data, held_out[:, :20], (3,)),
    ]
    held_out = held_out.to(device)
    outs = [
        evaluate_popularity(
            without_ties(get_data()).to(device), held_out, (3,)
        ),
        evaluate_item_graph(data.to(device), held_out[:, :20], (3,)),
    ]
    for out, value in zip(outs, expected, strict=True):
        assert out == pytest.approx(value, rel=1e-5)


def test_item_graph_is_missing():
    data = FakeMultimodalDataset(30, 20)[0]
    edge_types = list(data.edge_types)
    held_out = data['user', 'rates', 'item'].test_edge_label_index
    with pytest.raises(ValueError, match="'similar_to'"):
        evaluate_item_graph(data, held_out)
    with pytest.raises(ValueError, match="'buys'"):
        evaluate_popularity(data, held_out, edge_type=('user', 'buys', 'item'))
    assert data.edge_types == edge_types
    data['item', 'similar_to', 'item'].edge_index = torch.tensor([[0], [1]])
    with pytest.raises(ValueError, match=r"'edge_weight' .* 'similar_to'"):
        evaluate_item_graph(data, held_out)
