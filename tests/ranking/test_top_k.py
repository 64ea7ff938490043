import math

import pytest
import torch
from torch_geometric.testing import withCUDA

from crane_pyg.ranking import Neighborhood, evaluate, evaluate_scores, top_k

NUM_USERS, NUM_ITEMS = 13, 23


@pytest.fixture
def embs():
    generator = torch.Generator().manual_seed(12)
    return (
        torch.randn(NUM_USERS, 4, generator=generator),
        torch.randn(NUM_ITEMS, 4, generator=generator),
    )


def random_pairs(num_pairs, seed, users=NUM_USERS):
    r"""Distinct pairs in random order."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(users * NUM_ITEMS, generator=generator)[:num_pairs]
    return torch.stack([index // NUM_ITEMS, index % NUM_ITEMS])


def pairs_by_user(edge_index):
    out = {}
    if edge_index is not None:
        for user, item in edge_index.t().tolist():
            out.setdefault(user, set()).add(item)
    return out


def naive_ranking(user_emb, item_emb, user, excluded):
    score = (user_emb[user].double() @ item_emb.double().t()).tolist()
    items = [item for item in range(len(score)) if item not in excluded]
    return sorted(items, key=lambda item: -score[item])


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


@pytest.mark.parametrize('k', [1, 5, NUM_ITEMS])
@pytest.mark.parametrize('block_size', [1, 4, NUM_USERS, 1024])
@pytest.mark.parametrize('excluded', [False, True])
def test_top_k(embs, k, block_size, excluded):
    exclude = random_pairs(60, seed=1) if excluded else None
    before = [x if x is None else x.clone() for x in (*embs, exclude)]

    out = top_k(*embs, k, exclude=exclude, block_size=block_size)
    assert out.size() == (NUM_USERS, k)
    assert out.dtype == torch.long

    excluded = pairs_by_user(exclude)
    for user, items in enumerate(out.tolist()):
        expected = naive_ranking(*embs, user, excluded.get(user, set()))[:k]
        assert items == expected + [-1] * (k - len(expected))

    for x, y in zip((*embs, exclude), before, strict=True):
        assert x is y is None or torch.equal(x, y)


def test_top_k_equals_argsort(embs):
    expected = (embs[0] @ embs[1].t()).argsort(dim=-1, descending=True)
    assert torch.equal(top_k(*embs, NUM_ITEMS), expected)
    assert torch.equal(top_k(*embs, 3), expected[:, :3])


@pytest.mark.parametrize('block_size', [1, 2, 1024])
def test_top_k_of_some_users(embs, block_size):
    exclude = random_pairs(60, seed=1)
    user_index = torch.tensor([12, 3, 3, 0, 7])
    out = top_k(*embs, 5, user_index, exclude, block_size)
    assert torch.equal(out, top_k(*embs, 5, exclude=exclude)[user_index])

    out = top_k(*embs, 5, user_index[:0], exclude, block_size)
    assert out.size() == (0, 5)
    assert out.dtype == torch.long


def test_top_k_pads(embs):
    # User 1 has nothing left, user 2 one item, pairs may come twice.
    exclude = torch.tensor(
        [
            [1] * NUM_ITEMS + [2] * (NUM_ITEMS - 1) + [2],
            [*range(NUM_ITEMS), *range(NUM_ITEMS - 1), 0],
        ]
    )
    out = top_k(*embs, 3, exclude=exclude).tolist()
    assert out[1] == [-1, -1, -1]
    assert out[2] == [NUM_ITEMS - 1, -1, -1]

    expected = top_k(*embs, 3).tolist()
    assert out[0] == expected[0]
    assert out[3:] == expected[3:]


def test_ranking_records_no_gradient(embs):
    user_emb, item_emb = (emb.clone().requires_grad_() for emb in embs)
    pairs, exclude = random_pairs(40, seed=2), random_pairs(60, seed=1)
    saved = []
    hooks = (saved.append, lambda x: x)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        out = top_k(user_emb, item_emb, 5, exclude=exclude)
        evaluate(user_emb, item_emb, pairs, exclude)
    assert len(saved) == 0
    assert torch.equal(out, top_k(*embs, 5, exclude=exclude))


@pytest.mark.parametrize('block_size', [1, 4, NUM_USERS, 1024])
@pytest.mark.parametrize('excluded', [False, True])
@pytest.mark.parametrize('ks', [(10, 1, 3), (NUM_ITEMS,), (5, 5)])
def test_evaluate(embs, block_size, excluded, ks):
    # The last three users have no held-out pair.
    edge_label_index = random_pairs(40, seed=2, users=NUM_USERS - 3)
    exclude = random_pairs(100, seed=1) if excluded else None
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
    out = evaluate(user_emb, item_emb, edge_label_index, ks=[2])
    ndcg = (1 / math.log2(3)) / (1 + 1 / math.log2(3))
    assert out == pytest.approx(
        {'recall@2': (0.5 + 1) / 2, 'ndcg@2': (ndcg + 1) / 2}
    )


def test_evaluate_never_counts_padding():
    # User 1 has but item 3 left, so that its list is [3, -1, -1]. Flattened
    # as `user * 4 + item`, -1 is item 3 of user 0, which user 0 holds out.
    user_emb = torch.ones(2, 1)
    item_emb = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
    edge_label_index = torch.tensor([[0, 1], [3, 0]])
    exclude = torch.tensor([[1, 1, 1], [0, 1, 2]])
    assert top_k(user_emb, item_emb, 3, exclude=exclude)[1].tolist() == [
        3,
        -1,
        -1,
    ]
    out = evaluate(user_emb, item_emb, edge_label_index, exclude, ks=[3])
    assert out == {'recall@3': 0.0, 'ndcg@3': 0.0}


def test_evaluate_counts_repeated_pairs_once(embs):
    pairs = random_pairs(40, seed=2, users=NUM_USERS - 3)
    expected = evaluate(*embs, pairs, ks=(3, NUM_ITEMS), block_size=4)
    assert expected[f'recall@{NUM_ITEMS}'] == 1.0
    repeated = torch.cat([pairs, pairs[:, ::3], pairs[:, ::2]], dim=1)
    out = evaluate(*embs, repeated, ks=(3, NUM_ITEMS), block_size=4)
    assert out == expected


@pytest.mark.parametrize('dtype', [torch.float, torch.half])
@pytest.mark.parametrize(('place', 'name'), [(0, 'user_emb'), (1, 'item_emb')])
@pytest.mark.parametrize('value', ['nan', 'inf', '-inf'])
def test_ranking_needs_finite_embeddings(embs, place, name, dtype, value):
    embs = [emb.to(dtype) for emb in embs]
    embs[place][3, 1] = float(value)
    match = rf"'{name}' needs to be finite \(got '{value}'\)"
    with pytest.raises(ValueError, match=match):
        top_k(*embs, 5)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, random_pairs(5, seed=2))


def test_evaluate_scores(embs):
    edge_label_index = random_pairs(40, seed=2, users=NUM_USERS - 3)
    exclude = random_pairs(100, seed=1)
    expected = evaluate(*embs, edge_label_index, exclude, ks=(3, 7))

    # Users without held-out pairs may be among the scores, in any order:
    scores = (
        (users, embs[0][users] @ embs[1].t())
        for users in torch.randperm(NUM_USERS).split(4)
    )
    out = evaluate_scores(
        scores, (NUM_USERS, NUM_ITEMS), edge_label_index, exclude, ks=(3, 7)
    )
    assert out == pytest.approx(expected, rel=1e-6)


def test_evaluate_scores_needs_no_gradient(embs):
    edge_label_index = random_pairs(40, seed=2)
    exclude = random_pairs(100, seed=1)
    score = (embs[0] @ embs[1].t()).requires_grad_()
    scores = iter([(torch.arange(NUM_USERS), score)])
    out = evaluate_scores(
        scores, (NUM_USERS, NUM_ITEMS), edge_label_index, exclude
    )
    expected = evaluate(
        *(emb.requires_grad_() for emb in embs), edge_label_index, exclude
    )
    assert out == pytest.approx(expected, rel=1e-6)


@withCUDA
def test_ranking_on_device(embs, device):
    user_emb, item_emb = (emb.to(device) for emb in embs)
    edge_label_index = random_pairs(40, seed=2).to(device)
    exclude = random_pairs(100, seed=1).to(device)
    out = top_k(user_emb, item_emb, 5, exclude=exclude)
    assert out.device == device
    assert torch.equal(out.cpu(), top_k(*embs, 5, exclude=exclude.cpu()))
    values = evaluate(user_emb, item_emb, edge_label_index, exclude, ks=[5])
    assert values == pytest.approx(
        naive_evaluate(*embs, edge_label_index.cpu(), exclude.cpu(), [5]),
        rel=1e-5,
    )


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda u, i: (u.double(), i), 'same type .*float64 and torch.float32'),
        (lambda u, i: (u.long(), i.long()), 'floating .* torch.int64'),
        (lambda u, i: (u, i[:, :3]), rf"'item_emb' .* \[{NUM_ITEMS}, 4\]"),
    ],
)
def test_ranking_invalid_embeddings(embs, change, match):
    with pytest.raises(ValueError, match=match):
        top_k(*change(*embs), 3)
    with pytest.raises(ValueError, match=match):
        evaluate(*change(*embs), random_pairs(5, seed=2))


@pytest.mark.parametrize('k', [2.5, True])
def test_ranking_needs_integer_k(embs, k):
    match = rf"'k' .* integer \(got {k}\)"
    pairs = random_pairs(5, seed=2)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, k)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, ks=(5, k))


@pytest.mark.parametrize('k', [0, -2, NUM_ITEMS + 1])
def test_ranking_invalid_k(embs, k):
    match = rf"'k' .* number of items {NUM_ITEMS} \(got {k}\)"
    pairs = random_pairs(5, seed=2)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, k)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, ks=(5, k))
    with pytest.raises(ValueError, match=match):
        evaluate_scores(iter([]), (NUM_USERS, NUM_ITEMS), pairs, ks=(5, k))


@pytest.mark.parametrize('block_size', [0, -3])
def test_ranking_invalid_block_size(embs, block_size):
    match = rf"'block_size' needs to be at least 1 \(got {block_size}\)"
    pairs = random_pairs(5, seed=2)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, 5, block_size=block_size)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, block_size=block_size)


def test_evaluate_without_pairs(embs):
    pairs = torch.empty(2, 0, dtype=torch.long)
    match = r"'edge_label_index' .* at least one pair .* shape \[2, 0\]\)"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs)
    with pytest.raises(ValueError, match=match):
        evaluate_scores(iter([]), (NUM_USERS, NUM_ITEMS), pairs)


@pytest.mark.parametrize(
    ('row', 'value'), [(0, NUM_USERS), (0, -1), (1, NUM_ITEMS), (1, -2)]
)
def test_ranking_index_out_of_range(embs, row, value):
    size = (NUM_USERS, NUM_ITEMS)
    pairs = random_pairs(5, seed=2)
    invalid = pairs.clone()
    invalid[row, 3] = value
    suffix = rf' needs to be between 0 and {size[row] - 1} \(got {value}\)'

    match = rf"'edge_label_index\[{row}\]'{suffix}"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, invalid)
    with pytest.raises(ValueError, match=match):
        evaluate_scores(iter([]), size, invalid)

    match = rf"'exclude\[{row}\]'{suffix}"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, exclude=invalid)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, 5, exclude=invalid)

    if row == 0:
        with pytest.raises(ValueError, match=rf"'user_index'{suffix}"):
            top_k(*embs, 5, user_index=invalid[0])


def test_candidates(embs):
    exclude, candidates = random_pairs(60, seed=1), torch.tensor([4, 11, 20])
    others = torch.ones(NUM_ITEMS).index_fill(0, candidates, 0).nonzero()[:, 0]
    barred = torch.cartesian_prod(torch.arange(NUM_USERS), others).t()
    barred = torch.cat([exclude, barred], dim=1)
    expected = top_k(*embs, 3, exclude=barred)
    assert (expected >= 0).any()
    for items in (candidates, candidates.tolist(), candidates.int()):
        out = top_k(*embs, 3, exclude=exclude, candidates=items)
        assert torch.equal(out, expected)

    held_out = random_pairs(40, seed=2)
    held_out = held_out[:, torch.isin(held_out[1], candidates)]
    out = evaluate(*embs, held_out, exclude, [2], candidates=candidates)
    assert out == evaluate(*embs, held_out, barred, [2])


def test_candidates_errors(embs):
    held_out = torch.tensor([[0, 1], [4, 5]])
    with pytest.raises(ValueError, match=r"'candidates' only \(got 5\)"):
        evaluate(*embs, held_out, candidates=[4])
    with pytest.raises(ValueError, match=r"'candidates' .* 22 \(got 23\)"):
        top_k(*embs, 3, candidates=[23])


@pytest.mark.parametrize('index', [[3, 0], (3, 0), torch.tensor([3, 0])])
def test_top_k_takes_lists_of_users(embs, index):
    out = top_k(*embs, 4, index)
    assert torch.equal(out, top_k(*embs, 4)[[3, 0]])


@pytest.mark.parametrize(
    ('index', 'match'),
    [
        ([NUM_USERS], r"'user_index' .* 12 \(got 13\)"),
        ([0.5], r"'user_index' .* integers \(got torch.float32\)"),
        ([True], r"'user_index' .* integers \(got torch.bool\)"),
        ([[1]], r"'user_index' .* one dimension \(got shape \[1, 1\]\)"),
    ],
)
def test_top_k_index_errors(embs, index, match):
    with pytest.raises(ValueError, match=match):
        top_k(*embs, 4, index)


def test_pairs_of_another_shape(embs):
    pairs = random_pairs(30, seed=1)
    with pytest.raises(ValueError, match=r"'exclude' .* \(got \[30, 2\]\)"):
        top_k(*embs, 4, exclude=pairs.t())
    match = r"'edge_label_index' .* \(got \[30, 2\]\)"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs.t())
    with pytest.raises(ValueError, match=r"'ks' .* \(got \[\]\)"):
        evaluate(*embs, pairs, ks=[])


@pytest.mark.parametrize('dtype', [torch.float, torch.bool, torch.uint8])
def test_pairs_of_another_type(embs, dtype):
    pairs = random_pairs(30, seed=1)
    match = rf"' needs to hold integers \(got {dtype}\)"
    with pytest.raises(ValueError, match=f"'exclude{match}"):
        top_k(*embs, 4, exclude=pairs.to(dtype))
    with pytest.raises(ValueError, match=f"'edge_label_index{match}"):
        evaluate(*embs, pairs.to(dtype))


@pytest.mark.parametrize('size', [(3, NUM_ITEMS), (NUM_USERS, 7)])
def test_neighbors_of_all_users_and_items(embs, size):
    graph = torch.tensor([[0], [1]]), torch.ones(1), 1.0
    history = torch.tensor([[0], [0]])
    near = Neighborhood(history, [graph], (NUM_USERS, NUM_ITEMS))
    some = [x[:n] for x, n in zip(embs, size, strict=True)]
    with pytest.raises(ValueError, match=r'all \(13, 23\) .* \(got \('):
        top_k(*some, 2, neighbors=near)
