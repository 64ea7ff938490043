import numpy as np
import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.testing import withCUDA
from toy_ranking import (
    NUM_ITEMS,
    NUM_USERS,
    naive_ranking,
    pairs_by_user,
    random_pairs,
)

from crane_pyg.ranking import Neighborhood, evaluate, top_k


@pytest.mark.parametrize('k', [1, 5, NUM_ITEMS])
@pytest.mark.parametrize('block_size', [1, 4, NUM_USERS, 1024])
@pytest.mark.parametrize('excluded', [False, True])
def test_top_k(embs, k, block_size, excluded):
    exclude = random_pairs(60, seed=1) if excluded else None
    before = [x if x is None else x.clone() for x in (*embs, exclude)]

    out, score = top_k(*embs, k, exclude=exclude, block_size=block_size)
    assert out.size() == (NUM_USERS, k)
    assert out.dtype == torch.long

    excluded = pairs_by_user(exclude)
    for user, items in enumerate(out.tolist()):
        expected = naive_ranking(*embs, user, excluded.get(user, set()))[:k]
        assert items == expected + [-1] * (k - len(expected))
        value = (embs[1] @ embs[0][user])[expected]
        torch.testing.assert_close(score[user, : len(expected)], value)
        assert (score[user, len(expected) :] == float('-inf')).all()

    for x, y in zip((*embs, exclude), before, strict=True):
        assert x is y is None or torch.equal(x, y)


def test_top_k_equals_argsort(embs):
    expected = (embs[0] @ embs[1].t()).argsort(dim=-1, descending=True)
    assert torch.equal(top_k(*embs, NUM_ITEMS).index, expected)
    assert torch.equal(top_k(*embs, 3).index, expected[:, :3])


@pytest.mark.parametrize('block_size', [1, 2, 1024])
def test_top_k_of_some_users(embs, block_size):
    exclude = random_pairs(60, seed=1)
    user_index = torch.tensor([12, 3, 3, 0, 7])
    out = top_k(*embs, 5, user_index, exclude, block_size).index
    assert torch.equal(out, top_k(*embs, 5, exclude=exclude).index[user_index])

    out = top_k(*embs, 5, user_index[:0], exclude, block_size).index
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
    out = top_k(*embs, 3, exclude=exclude).index.tolist()
    assert out[1] == [-1, -1, -1]
    assert out[2] == [NUM_ITEMS - 1, -1, -1]

    expected = top_k(*embs, 3).index.tolist()
    assert out[0] == expected[0]
    assert out[3:] == expected[3:]


def without(pairs, others):
    key = [user * NUM_ITEMS + item for user, item in (pairs, others)]
    return pairs[:, ~torch.isin(*key)]


def test_ranking_records_no_gradient(embs):
    user_emb, item_emb = (emb.clone().requires_grad_() for emb in embs)
    exclude = random_pairs(60, seed=1)
    pairs = without(random_pairs(40, seed=2), exclude)
    saved = []
    hooks = (saved.append, lambda x: x)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        out = top_k(user_emb, item_emb, 5, exclude=exclude).index
        evaluate(user_emb, item_emb, pairs, exclude)
    assert len(saved) == 0
    assert torch.equal(out, top_k(*embs, 5, exclude=exclude).index)


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


@withCUDA
def test_ranking_on_device(embs, device):
    user_emb, item_emb = (emb.to(device) for emb in embs)
    exclude = random_pairs(100, seed=1).to(device)
    pairs = without(random_pairs(40, seed=2), exclude.cpu())
    out = top_k(user_emb, item_emb, 5, exclude=exclude)
    assert out.index.device == out.score.device == device
    expected = top_k(*embs, 5, exclude=exclude.cpu())
    assert torch.equal(out.index.cpu(), expected.index)
    values = evaluate(user_emb, item_emb, pairs.to(device), exclude, ks=5)
    expected = evaluate(*embs, pairs, exclude.cpu(), ks=5)
    assert values == pytest.approx(expected, rel=1e-5)


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
    match = rf"'ks?' .* integer \(got {k}\)"
    pairs = random_pairs(5, seed=2)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, k)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, ks=(5, k))


@pytest.mark.parametrize('k', [0, -2, NUM_ITEMS + 1])
def test_ranking_invalid_k(embs, k):
    match = rf"'ks?' .* number of items {NUM_ITEMS} \(got {k}\)"
    pairs = random_pairs(5, seed=2)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, k)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, ks=(5, k))


@pytest.mark.parametrize('block_size', [0, -3])
def test_ranking_invalid_block_size(embs, block_size):
    match = rf"'block_size' needs to be at least 1 \(got {block_size}\)"
    pairs = random_pairs(5, seed=2)
    with pytest.raises(ValueError, match=match):
        top_k(*embs, 5, block_size=block_size)
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs, block_size=block_size)


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
    expected = top_k(*embs, 3, exclude=barred).index
    assert (expected >= 0).any()
    for items in (candidates, candidates.tolist(), candidates.int()):
        out = top_k(*embs, 3, exclude=exclude, candidates=items)
        assert torch.equal(out.index, expected)

    held_out = without(random_pairs(40, seed=2), exclude)
    held_out = held_out[:, torch.isin(held_out[1], candidates)]
    out = evaluate(*embs, held_out, exclude, ks=2, candidates=candidates)
    assert out == evaluate(*embs, held_out, barred, ks=2)


def test_candidates_errors(embs):
    held_out = torch.tensor([[0, 1], [4, 5]])
    with pytest.raises(ValueError, match=r"'candidates' only \(got 5\)"):
        evaluate(*embs, held_out, candidates=[4])
    with pytest.raises(ValueError, match=r"'candidates' .* 22 \(got 23\)"):
        top_k(*embs, 3, candidates=[23])


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_top_k_of_half_precision(embs, dtype):
    # Scores far beyond the largest number of half precision, 65,504:
    user, item = (100 * emb.to(dtype) + 100 for emb in embs)
    score = user.float() @ item.float().t()
    assert score.max() > 1e5
    out = top_k(user, item, NUM_ITEMS)
    assert out.score.dtype == torch.float
    torch.testing.assert_close(out.score, score.sort(descending=True)[0])
    assert torch.equal(out.score, score.gather(1, out.index))
    out = top_k(user, -item, 3)
    assert torch.equal(out.score, -score.topk(3, largest=False)[0])


def test_top_k_of_double_precision(embs):
    user, item = (emb.double() for emb in embs)
    out = top_k(user, item, 4)
    assert torch.equal(out.score, (user @ item.t()).topk(4)[0])


def test_top_k_needs_finite_products(embs):
    match = (
        r"'user_emb' and 'item_emb' .* finite .* \(got entries up to 1e\+20 "
    )
    with pytest.raises(ValueError, match=match):
        top_k(embs[0].clone().fill_(1e20), embs[1].clone().fill_(-1e20), 2)


@pytest.mark.parametrize(
    'index',
    [
        [3, 0],
        (3, 0),
        torch.tensor([3, 0]),
        np.array([3, 0], dtype=np.uint16),
        np.array([3, 0], dtype='>u8'),
        np.array([0, 3])[::-1],
    ],
)
def test_top_k_takes_any_indices(embs, index):
    out = top_k(*embs, 4, index).index
    assert torch.equal(out, top_k(*embs, 4).index[[3, 0]])
    assert torch.equal(top_k(*embs, 4, index[0]).index, out[:1])


def test_top_k_takes_any_pairs(embs):
    pairs = random_pairs(60, seed=1)
    expected = top_k(*embs, 4, exclude=pairs).index
    for exclude in [
        pairs.numpy().astype(np.uint32),
        pairs.tolist(),
        tuple(pairs.int()),
        EdgeIndex(pairs),
        pairs.to(torch.uint8),
    ]:
        assert torch.equal(top_k(*embs, 4, exclude=exclude).index, expected)


@pytest.mark.parametrize(
    ('index', 'match'),
    [
        ([NUM_USERS], r"'user_index' .* 12 \(got 13\)"),
        ([0.5], r"'user_index' .* integers \(got torch.float32\)"),
        ([True], r"'user_index' .* integers \(got torch.bool\)"),
        ([[1]], r"'user_index' .* one dimension \(got shape \[1, 1\]\)"),
        ({3, 0}, r"'user_index' .* list \(got a set\)"),
        ('30', r"'user_index' .* list \(got a str\)"),
        ([None], r"'user_index' .* integers \("),
        (np.array([0.5]), r"'user_index' .* integers \(got float64\)"),
    ],
)
def test_top_k_index_errors(embs, index, match):
    with pytest.raises(ValueError, match=match):
        top_k(*embs, 4, index)


def test_pairs_of_another_shape(embs):
    pairs = random_pairs(30, seed=1)
    with pytest.raises(ValueError, match=r"'exclude' .* \(got \[30, 2\]\)"):
        top_k(*embs, 4, exclude=pairs.t())
    with pytest.raises(ValueError, match=r"'exclude' .* \(got 3 and 2\)"):
        top_k(*embs, 4, exclude=([0, 1, 2], [0, 1]))
    match = r"'edge_label_index' .* \(got \[30, 2\]\)"
    with pytest.raises(ValueError, match=match):
        evaluate(*embs, pairs.t())
    with pytest.raises(ValueError, match=r"'ks' .* \(got \[\]\)"):
        evaluate(*embs, pairs, ks=[])


@pytest.mark.parametrize('dtype', [torch.float, torch.bool, torch.cfloat])
def test_pairs_of_another_type(embs, dtype):
    pairs = random_pairs(30, seed=1)
    match = rf"' needs to hold integers \(got {dtype}\)"
    with pytest.raises(ValueError, match=f"'exclude{match}"):
        top_k(*embs, 4, exclude=pairs.to(dtype))
    with pytest.raises(ValueError, match=f"'edge_label_index{match}"):
        evaluate(*embs, pairs.to(dtype))


@pytest.mark.parametrize('size', [(3, NUM_ITEMS), (NUM_USERS, 7)])
def test_neighbors_of_all_users_and_items(embs, size):
    graph = torch.tensor([[0], [1]]), torch.ones(1)
    history = torch.tensor([[0], [0]])
    near = Neighborhood(history, {'near': graph}, (NUM_USERS, NUM_ITEMS))
    some = [x[:n] for x, n in zip(embs, size, strict=True)]
    with pytest.raises(ValueError, match=r'all \(13, 23\) .* \(got \('):
        top_k(*some, 2, neighbors=near)
