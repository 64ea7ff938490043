import copy
import os

import numpy as np
import pytest
import torch
from torch_geometric.testing import withCUDA
from toy_shop import (
    ITEMS,
    RATES,
    USERS,
    get_data,
    get_embs,
    get_history,
    naive_ease,
    naive_recall,
    naive_top,
    similar,
)
from toys import Trap

import crane_pyg.transforms as T
from crane_pyg.ranking import Neighborhood, Ranker, evaluate, top_k


def dense_scores(data, embs, weights, l2=None):
    r"""All scores in double precision, by the formula of the ranker."""
    history = get_history(data)
    product = (embs[0].double() @ embs[1].double().t()).numpy()
    graphs = {'similar_to': similar(data)}
    if l2 is not None:
        graphs['ease'] = naive_ease(history, l2)
    out = product.copy()
    for name, weight in weights.items():
        score = history @ graphs[name]
        known = score[history.sum(axis=1) > 0]
        out += weight * product.std() / known.std() * score
    return out


@pytest.mark.parametrize('block_size', [7, 1024])
@pytest.mark.parametrize(
    'weights', [{}, {'similar_to': 2.0}, {'similar_to': 0.5, 'ease': 3.0}]
)
def test_scores(weights, block_size):
    data, embs = get_data(), get_embs()
    out = Ranker.fit(
        data, *embs, weights=weights, l2=20.0, block_size=block_size
    )
    assert out.weights == weights
    expected = dense_scores(data, embs, weights, l2=20.0)
    index, score = out.top_k(9)
    assert (index.numpy() == naive_top(expected, get_history(data), 9)).all()
    value = np.take_along_axis(expected, index.numpy(), axis=1)
    np.testing.assert_allclose(score, value, rtol=1e-3, atol=1e-4)
    users = torch.tensor([5, 0])
    assert torch.equal(out.recommend(users, 9), index[users])
    seen = out.top_k(9, exclude_seen=False).index.numpy()
    assert (seen == np.argsort(-expected, axis=1)[:, :9]).all()


def test_evaluate():
    data, embs = get_data(), get_embs()
    out = Ranker.fit(data, *embs, weights={'similar_to': 2.0})
    score = dense_scores(data, embs, {'similar_to': 2.0})
    pairs = data[RATES].test_edge_label_index
    recalls = naive_recall(score, get_history(data), pairs, 5)
    result = out.evaluate(pairs.numpy(), ['recall', 'mrr'], 5)
    assert list(result) == ['recall@5', 'mrr@5']
    assert result['recall@5'] == pytest.approx(np.mean(recalls))
    others = pairs.flip(1)[:, :7].clone()
    others[1] = 0
    both, label = torch.cat([pairs, others], dim=1), [1] * 80 + [0] * 7
    assert out.evaluate(both, ks=5, edge_label=label) == out.evaluate(
        pairs, ks=5
    )


def test_fit_without_relations_is_the_inner_product():
    data, embs = get_data(), get_embs()
    del data[RATES].val_edge_label_index
    out = Ranker.fit(data, *embs, relations=())
    store = data[RATES]
    assert out.weights == {}
    expected = top_k(*embs, 5, exclude=store.edge_index)
    assert torch.equal(out.recommend(k=5), expected.index)
    pairs = store.test_edge_label_index
    assert out.evaluate(pairs) == evaluate(*embs, pairs, store.edge_index)


@pytest.mark.parametrize('metric', ['ndcg@20', 'recall@5'])
def test_fit_chooses_on_validation_pairs(metric):
    data, embs = get_data(), get_embs()
    out = Ranker.fit(data, *embs, metric=metric)
    assert list(out.weights) == ['similar_to', 'refined', 'ease']
    name, k = metric.split('@')
    pairs = data[RATES].val_edge_label_index
    alone = Ranker.fit(data, *embs, relations=())
    best, first = (x.evaluate(pairs, [name], int(k)) for x in (out, alone))
    assert best[metric] > first[metric] + 0.1
    assert out.weights['ease'] > 0  # The embeddings are noise.
    # Test pairs are never looked at, and the choice is the same each time:
    data[RATES].test_edge_label_index.fill_(0)
    again = Ranker.fit(data, *embs, metric=metric)
    assert (again.weights, again.l2) == (out.weights, out.l2)
    # What is known need not be chosen:
    del data[RATES].val_edge_label_index
    known = Ranker.fit(data, *embs, weights=out.weights, l2=out.l2)
    assert torch.equal(known.top_k(5).score, out.top_k(5).score)


def test_fit_takes_no_relation_that_does_not_help():
    data = get_data()
    store = data[RATES]
    wanted = torch.zeros(USERS, ITEMS)
    for pairs in (store.edge_index, store.val_edge_label_index):
        wanted[tuple(pairs)] = 1.0
    out = Ranker.fit(data, wanted, torch.eye(ITEMS))  # All is known.
    assert set(out.weights.values()) == {0.0}
    assert out.neighborhood.relations == {}


def test_fit_takes_pairs_and_candidates():
    data, embs = get_data(), get_embs()
    pairs = data[RATES].val_edge_label_index
    expected = Ranker.fit(data, *embs).weights
    negative = torch.stack([pairs[0], pairs[1].flip(0)])
    both = torch.cat([pairs, negative], dim=1)
    label = torch.arange(both.size(1)) < pairs.size(1)
    del data[RATES].val_edge_label_index
    out = Ranker.fit(
        data, *embs, edge_label_index=both.numpy(), edge_label=label.long()
    )
    assert out.weights == expected
    items = [2, 3, 5, 7, 11, 13]
    with pytest.warns(UserWarning, match="no 'candidates'$"):
        out = Ranker.fit(
            data,
            *embs,
            edge_label_index=pairs,
            metric='ndcg@3',
            candidates=items,
        )
    top = out.recommend(k=3)
    assert set(top.unique().tolist()) <= {-1, *items}
    top = out.recommend(k=2, candidates=[4, 6], exclude_seen=False)
    assert set(top.unique().tolist()) == {4, 6}
    with pytest.raises(ValueError, match=r"'candidates' only \(got "):
        out.evaluate(pairs)


def test_pairs_that_no_ranking_finds_are_counted():
    data, embs = get_data(lonely=[3]), get_embs()
    store = data[RATES]
    seen, pairs = store.edge_index[:, :7], store.val_edge_label_index
    both = torch.cat([pairs, seen], dim=1)
    known = pairs[:, pairs[0] != 3]
    expected = Ranker.fit(data, *embs, edge_label_index=known)
    with (
        pytest.warns(UserWarning, match=r"of items that are no 'candidates'$"),
        pytest.raises(ValueError, match=r'may be ranked \(got none\)'),
    ):
        Ranker.fit(data, *embs, edge_label_index=known, candidates=[])
    match = (
        r"^9 of 87 pairs of 'edge_label_index' are left out, .*: 2 of 1 "
        r'user\(s\) without any training pair, 7 of \d user\(s\) that are '
        r'training pairs too$'
    )
    with pytest.warns(UserWarning, match=match) as record:
        out = Ranker.fit(data, *embs, edge_label_index=both)
    assert record[0].filename == __file__
    assert out.weights == expected.weights
    result = expected.evaluate(pairs)
    with pytest.warns(UserWarning, match='^7 of 87 pairs') as record:
        assert out.evaluate(both) == result
    assert record[0].filename == __file__
    assert result['no_history/num_users'] == 1


def test_relations_of_the_transform():
    data, embs = get_data(), get_embs()
    data['item'].x_image = torch.randn(ITEMS, 6)
    del data['item', 'similar_to', 'item']
    out = Ranker.fit(T.BuildDualGraph(k=3)(data), *embs)
    names = ['co_rated', 'similar_to', 'refined', 'ease']
    assert list(out.weights) == names


def test_from_model():
    class Model(torch.nn.Module):
        def forward(self, data):
            assert not self.training
            assert not torch.is_grad_enabled()
            return (*get_embs(), None)

    data, model = get_data(), Model()
    out = Ranker.from_model(model, data, weights={'similar_to': 1.0})
    expected = Ranker.fit(data, *get_embs(), weights={'similar_to': 1.0})
    assert model.training
    assert torch.equal(out.recommend(), expected.recommend())


@pytest.mark.parametrize('mode', ['popularity', 'embedding', 'empty'])
def test_users_without_history(mode):
    data, embs = get_data(lonely=[3, 17]), get_embs()
    history = get_history(data)
    weights = {'similar_to': 2.0}
    out = Ranker.fit(data, *embs, weights=weights, no_history=mode)
    pairs = data[RATES].test_edge_label_index
    result = out.evaluate(pairs, ['recall'], 5)  # Tells without a warning.
    if mode == 'popularity':
        with pytest.warns(UserWarning, match=r'^2 of 40 users have no hist'):
            index, score = out.top_k(5)
        assert torch.equal(out.recommend(k=5), index)  # It says so once.
    else:
        index, score = out.top_k(5)
    for user in (3, 17):
        if mode == 'popularity':
            count = np.sort(history.sum(axis=0))[::-1]
            assert score[user].tolist() == count[:5].tolist()
        elif mode == 'embedding':
            product = embs[1] @ embs[0][user]
            assert torch.equal(index[user], product.topk(5).indices)
        else:
            assert index[user].tolist() == [-1] * 5
            assert (score[user] == float('-inf')).all()

    # Means of those with history, and of the others apart:
    hits = {'': [], 'no_history/': []}
    for user in range(USERS):
        held_out = set(pairs[1][pairs[0] == user].tolist())
        found = len(held_out & set(index[user].tolist())) / len(held_out)
        hits['no_history/' if user in (3, 17) else ''].append(found)
    assert len(hits['']) == 38
    assert result == pytest.approx(
        {f'{prefix}recall@5': np.mean(x) for prefix, x in hits.items()}
        | {'no_history/num_users': 2}
    )
    known = pairs[:, ~torch.isin(pairs[0], torch.tensor([3, 17]))]
    assert list(out.evaluate(known, ['recall'], 5)) == ['recall@5']


def test_no_warning_for_users_with_history():
    out = Ranker.fit(get_data(lonely=[3]), *get_embs(), relations=())
    assert out.recommend([0, 1, 2]).size() == (3, 20)
    with pytest.warns(UserWarning, match='1 of 2 users'):
        out.recommend([3, 4])


def test_without_embeddings():
    data = get_data()
    out = Ranker.fit(data)
    assert list(out.weights) == ['similar_to', 'ease']
    one = Ranker.fit(data, weights={'similar_to': 1.0})
    score = get_history(data) @ similar(data)
    value = -np.sort(-np.where(get_history(data) > 0, -np.inf, score), axis=1)
    expected = value[:, :3] / score.std()
    np.testing.assert_allclose(one.top_k(3).score, expected, rtol=1e-4)


@pytest.mark.parametrize(
    'dtype', [torch.half, torch.bfloat16, torch.float, torch.double]
)
def test_save_and_load(dtype, tmp_path):
    embs = [emb.to(dtype) for emb in get_embs()]
    data = get_data()
    data['item', 'near', 'item'].edge_index = torch.empty(2, 0).long()
    data['item', 'near', 'item'].edge_weight = torch.empty(0)
    weights = {'similar_to': 0.5, 'ease': 1.0, 'near': 2.0}
    kwargs = {'candidates': range(20), 'no_history': 'empty'}
    out = Ranker.fit(data, *embs, weights=weights, **kwargs)
    out.save(tmp_path / 'ranker.pt')
    other = Ranker.load(str(tmp_path / 'ranker.pt'))
    for x, y in zip(out.top_k(5), other.top_k(5), strict=True):
        assert torch.equal(x, y)
    assert repr(other) == repr(out)
    assert (other.l2, other.weights) == (out.l2, out.weights)
    assert other.user_emb.dtype == dtype
    assert other.weights == weights
    assert os.listdir(tmp_path) == ['ranker.pt']


def test_load_refuses_other_files(tmp_path):
    path, flag = tmp_path / 'ranker.pt', tmp_path / 'flag'
    out = Ranker.fit(get_data(), *get_embs(), relations=())
    out.save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    match = r"ranker.pt' is no ranker \(got "
    with pytest.raises(ValueError, match=match):
        Ranker.load(path)
    for other in [{'format': 'x'}, [1, 2], torch.ones(3), Trap(flag)]:
        torch.save(other, path)
        with pytest.raises(ValueError, match=match):
            Ranker.load(path)
    assert not flag.exists()
    out.save(path)
    saved = torch.load(path, weights_only=True)
    for key, value in [
        ('user_emb', torch.ones(3, 4)),
        ('history', torch.tensor([[0], [ITEMS]])),
        ('no_history', 'x'),
        ('weights', None),
    ]:
        torch.save({**saved, key: value}, path)
        with pytest.raises(ValueError, match=match):
            Ranker.load(path)
    with pytest.raises(FileNotFoundError):
        Ranker.load(tmp_path / 'missing.pt')


def test_check():
    data = get_data()
    out = Ranker.fit(data, *get_embs(), relations=())
    order = torch.randperm(data[RATES].edge_index.size(1))
    same = copy.deepcopy(data)
    same[RATES].edge_index = same[RATES].edge_index[:, order]
    out.check(same)
    same[RATES].edge_index = same[RATES].edge_index[:, 1:]
    with pytest.raises(ValueError, match=r"'data' .* 240 training .* 239"):
        out.check(same)
    data['user'].num_nodes = USERS + 1
    match = r"'data' .* \(40, 25\) .* \(got \(41, 25\)\)"
    with pytest.raises(ValueError, match=match):
        out.check(data)


def test_repr():
    out = Ranker.fit(get_data(), *get_embs(), weights={'similar_to': 2.0})
    assert repr(out) == (
        "Ranker(num_users=40, num_items=25, weights={'similar_to': 2.0}, "
        "no_history='popularity')"
    )


def without_validation():
    data = get_data()
    del data[RATES].val_edge_label_index
    return data


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'data': without_validation()}, "'edge_label_index' is missing"),
        ({'relations': ['near']}, r"'item', 'near', 'item'"),
        ({'relations': ['co_rated']}, r"'item', 'co_rated', 'item'"),
        ({'metric': 'auc@20'}, r"'metric' .* \(got 'auc'\)"),
        ({'weights': {'near': 1.0}}, r"'item', 'near', 'item'"),
        ({'weights': {'similar_to': float('nan')}}, r"\['similar_to'\]' .*nan"),
        (
            {'weights': {'ease': 1.0}, 'relations': ['similar_to']},
            r"'weights' .* \['similar_to'\] \(got 'ease'\)",
        ),
        ({'no_history': 'random'}, r"'no_history' .* \(got 'random'\)"),
        ({'block_size': 0}, r"'block_size' .* \(got 0\)"),
        ({'candidates': [ITEMS]}, r"'candidates' .* 24 \(got 25\)"),
        ({'user_emb': torch.ones(39, 4)}, r"'user_emb' .* \[40, 4\]"),
        ({'item_emb': torch.ones(ITEMS, 3)}, r"'item_emb' .* \[25, 4\]"),
        ({'item_emb': None}, "'user_emb' and 'item_emb' need to come"),
        ({'edge_type': ('user', 'had', 'item')}, "'user', 'had', 'item'"),
        ({'l2': -1.0}, r"'l2' .* \(got -1.0\)"),
    ],
)
def test_fit_errors(kwargs, match):
    embs = dict(zip(('user_emb', 'item_emb'), get_embs(), strict=True))
    with pytest.raises(ValueError, match=match):
        Ranker.fit(**{'data': get_data(), **embs, **kwargs})


def test_ease_of_too_many_items(monkeypatch):
    monkeypatch.setattr('crane_pyg.ranking.relations.MAX_ITEMS', ITEMS - 1)
    match = r"'ease' is left out: .* at most 24 \(got 25\)"
    with pytest.warns(UserWarning, match=match):
        out = Ranker.fit(get_data(), *get_embs())
    assert list(out.weights) == ['similar_to', 'refined']


@withCUDA
def test_on_device(device):
    data, embs = get_data(), get_embs()
    expected = Ranker.fit(data, *embs)
    out = Ranker.fit(data.to(device), *(emb.to(device) for emb in embs))
    assert out.weights == expected.weights
    top = out.top_k(5)
    assert top.index.device == device
    torch.testing.assert_close(top.score.cpu(), expected.top_k(5).score)


def test_of_a_neighborhood():
    store = get_data()[RATES]
    near = Neighborhood(store.edge_index, {}, (USERS, ITEMS))
    out = Ranker(near, *get_embs())
    expected = top_k(*get_embs(), 3, exclude=store.edge_index)
    assert torch.equal(out.recommend(k=3), expected.index)


def test_save_as_a_whole_or_not_at_all(tmp_path):
    # No file of an earlier ranker is lost to a failure:
    out = Ranker.fit(get_data(), *get_embs(), relations=())
    out.save(tmp_path / 'ranker.pt')
    out.l2 = Trap(tmp_path / 'flag')
    with pytest.raises(ValueError, match='The ranker needs to hold tensors'):
        out.save(tmp_path / 'ranker.pt')
    assert Ranker.load(tmp_path / 'ranker.pt').l2 is None
    assert os.listdir(tmp_path) == ['ranker.pt']
