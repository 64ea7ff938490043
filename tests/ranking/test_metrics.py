import math

import pytest
import torch
from toy_ranking import (
    NUM_ITEMS,
    NUM_USERS,
    naive_ranking,
    pairs_by_user,
    random_pairs,
)

from crane_pyg.ranking import evaluate, top_k
from crane_pyg.ranking.metrics import METRICS


def naive_evaluate(user_emb, item_emb, edge_label_index, exclude, ks):
    labels, excluded = pairs_by_user(edge_label_index), pairs_by_user(exclude)
    out = {}
    for k in ks:
        recalls, ndcgs = [], []
        for user, items in labels.items():
            ranking = naive_ranking(
                user_emb, item_emb, user, excluded.get(user, set())
            )[:k]
            hits = [item in items for item in ranking]
            gains = [1 / math.log2(pos + 2) for pos in range(k)]
            dcg = sum(
                gain for gain, hit in zip(gains, hits, strict=False) if hit
            )
            recalls.append(sum(hits) / len(items))
            ndcgs.append(dcg / sum(gains[: len(items)]))
        out[f'recall@{k}'] = sum(recalls) / len(recalls)
        out[f'ndcg@{k}'] = sum(ndcgs) / len(ndcgs)
    return out


@pytest.mark.parametrize('block_size', [1, 4, NUM_USERS, 1024])
@pytest.mark.parametrize('excluded', [False, True])
@pytest.mark.parametrize('ks', [(10, 1, 3), (NUM_ITEMS,), (5, 5)])
def test_evaluate(embs, block_size, excluded, ks):
    # The last three users have no held-out pair.
    edge_label_index = random_pairs(40, seed=2, users=NUM_USERS - 3)
    exclude = None
    if excluded:  # None of them is held out.
        exclude = random_pairs(100, seed=1)
        key, held_out = (
            x[0] * NUM_ITEMS + x[1] for x in (exclude, edge_label_index)
        )
        exclude = exclude[:, ~torch.isin(key, held_out)]
    pairs = [edge_label_index, exclude]
    before = [x if x is None else x.clone() for x in (*embs, *pairs)]

    out = evaluate(*embs, *pairs, ks=ks, block_size=block_size)
    expected = naive_evaluate(*embs, *pairs, ks)
    assert list(out) == list(expected)
    assert all(isinstance(value, float) for value in out.values())
    assert out == pytest.approx(expected, rel=1e-5)
    assert 0 < out[f'recall@{ks[0]}'] <= 1

    for x, y in zip((*embs, *pairs), before, strict=True):
        assert x is y is None or torch.equal(x, y)


def test_evaluate_defaults():
    user_emb, item_emb = torch.randn(5, 4), torch.randn(30, 4)
    edge_label_index = torch.tensor([[0, 0, 1, 3], [1, 29, 0, 5]])
    out = evaluate(user_emb, item_emb, edge_label_index)
    expected = naive_evaluate(
        user_emb, item_emb, edge_label_index, None, (10, 20)
    )
    assert list(out) == ['recall@10', 'ndcg@10', 'recall@20', 'ndcg@20']
    assert out == pytest.approx(expected, rel=1e-5)


def test_evaluate_averages_over_users_with_held_out_pairs():
    # User 0 finds one of two, user 2 all; users 1 and 3 hold nothing out.
    user_emb, item_emb = torch.ones(4, 1), torch.tensor([[3.0], [2.0], [1.0]])
    edge_label_index = torch.tensor([[2, 0, 0], [0, 2, 1]])
    out = evaluate(user_emb, item_emb, edge_label_index, ks=2)
    ndcg = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert out == pytest.approx(
        {'recall@2': (0.5 + 1) / 2, 'ndcg@2': (ndcg + 1) / 2}
    )


def test_evaluate_never_counts_padding():
    # User 1 has but item 3 left, so that its list is [3, -1, -1]. Flattened
    # as `user * 4 + item`, -1 is item 3 of user 0, which user 0 holds out.
    user_emb = torch.ones(2, 1)
    item_emb = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    edge_label_index = torch.tensor([[0, 1], [3, 3]])
    exclude = torch.tensor([[1, 1, 1], [0, 1, 2]])
    index = top_k(user_emb, item_emb, 3, exclude=exclude).index
    assert index[1].tolist() == [3, -1, -1]
    # User 0 finds none, and user 1 the one that is left:
    found = {'recall': 1, 'ndcg': 1, 'mrr': 1, 'hit_ratio': 1, 'map': 1}
    found |= {'precision': 1 / 3, 'f1': 1 / 2}
    args = user_emb, item_emb, edge_label_index, exclude
    out = evaluate(*args, metrics=list(found), ks=3)
    expected = {f'{name}@3': value / 2 for name, value in found.items()}
    assert out == pytest.approx(expected)
    # Both users find item 3 or items 0 to 2, and padding covers none:
    assert evaluate(*args, ['coverage'], ks=3) == {'coverage@3': 1.0}
    out = evaluate(*args, ['coverage'], ks=3, candidates=[0, 1, 3])
    assert out == {'coverage@3': 0.75}


def test_evaluate_counts_repeated_pairs_once(embs):
    pairs = random_pairs(40, seed=2, users=NUM_USERS - 3)
    expected = evaluate(*embs, pairs, ks=(3, NUM_ITEMS), block_size=4)
    assert expected[f'recall@{NUM_ITEMS}'] == 1.0
    repeated = torch.cat([pairs, pairs[:, ::3], pairs[:, ::2]], dim=1)
    out = evaluate(*embs, repeated, ks=(3, NUM_ITEMS), block_size=4)
    assert out == expected


def test_evaluate_leaves_out_what_is_excluded(embs):
    pairs, others = random_pairs(40, seed=2), random_pairs(90, seed=3)
    key = [x[0] * NUM_ITEMS + x[1] for x in (pairs, others)]
    both = torch.isin(*key)
    users = pairs[0, both].unique().numel()
    assert 0 < both.sum() < 40
    match = (
        rf"^{both.sum()} of 40 pairs of 'edge_label_index' are left out, .*: "
        rf"{both.sum()} of {users} user\(s\) that 'exclude' holds too$"
    )
    with pytest.warns(UserWarning, match=match) as record:
        out = evaluate(*embs, pairs, others)
    assert record[0].filename == __file__
    expected = naive_evaluate(*embs, pairs[:, ~both], others, (10, 20))
    assert out == pytest.approx(expected, rel=1e-5)
    with (
        pytest.warns(UserWarning, match='^40 of 40 pairs'),
        pytest.raises(ValueError, match='at least one pair'),
    ):
        evaluate(*embs, pairs, pairs)


def test_evaluate_without_pairs(embs):
    pairs = torch.empty(2, 0, dtype=torch.long)
    match = r"'edge_label_index' .* at least one pair .* shape \[2, 0\]\)"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs)


def naive_metrics(user_emb, item_emb, labels, k):
    r"""The other metrics by hand, for users who have seen nothing."""
    sums = dict.fromkeys(['precision', 'f1', 'map', 'mrr', 'hit_ratio'], 0.0)
    for user, items in labels.items():
        ranking = naive_ranking(user_emb, item_emb, user, set())[:k]
        hits = [item in items for item in ranking]
        places = [n for n, hit in enumerate(hits, start=1) if hit]
        precision, recall = sum(hits) / k, sum(hits) / len(items)
        sums['precision'] += precision
        if places:
            sums['f1'] += 2 * precision * recall / (precision + recall)
            found = [sum(hits[:n]) / n for n in places]
            sums['map'] += sum(found) / min(k, len(items))
            sums['mrr'] += 1 / places[0]
            sums['hit_ratio'] += 1
    return {f'{n}@{k}': x / len(labels) for n, x in sums.items()}


@pytest.mark.parametrize('k', [1, 4, 10])
def test_evaluate_other_metrics(embs, k):
    pairs = random_pairs(40, seed=2, users=NUM_USERS - 3)
    expected = naive_metrics(*embs, pairs_by_user(pairs), k)
    names = [name.partition('@')[0] for name in expected]
    out = evaluate(*embs, pairs, metrics=names, ks=k, block_size=4)
    assert out == pytest.approx(expected, rel=1e-5)
    users = torch.arange(NUM_USERS - 3)
    items = top_k(*embs, k, users).index.unique().numel()
    out = evaluate(*embs, pairs, metrics='coverage', ks=k, block_size=4)
    assert out == pytest.approx({f'coverage@{k}': items / NUM_ITEMS})


def test_evaluate_leaves_negative_pairs_out(embs):
    pairs, others = random_pairs(40, seed=2), random_pairs(60, seed=3)
    both = torch.cat([others, pairs], dim=1)
    label = torch.cat([torch.zeros(60), torch.ones(40)])
    for x in (label, label.long(), label.tolist(), label.numpy()):
        out = evaluate(*embs, both.numpy(), edge_label=x)
        assert out == evaluate(*embs, pairs)
    with pytest.raises(ValueError, match=r"'edge_label' .* \[100\] \(got \[99"):
        evaluate(*embs, both, edge_label=label[1:])
    with pytest.raises(ValueError, match='at least one pair'):
        evaluate(*embs, both, edge_label=0 * label)


def test_evaluate_unknown_metric(embs):
    match = r"'metrics' .*'recall', .*'coverage'.* \(got 'auc'\)"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, random_pairs(5, seed=2), metrics=['ndcg', 'auc'])
    assert len(METRICS) == 8
