import sys

import cold_start
import harness
import pytest
import torch
from records import path_of, read

from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.ranking import Neighborhood, Ranker

RATES = ('user', 'rates', 'item')
KEYS = ['edge_index', 'val_edge_label_index', 'test_edge_label_index']
NUM_USERS, NUM_ITEMS, NUM_COLD = 80, 60, 15


@pytest.fixture(scope='module')
def data():
    return FakeMultimodalDataset(NUM_USERS, NUM_ITEMS)[0]


@pytest.fixture(scope='module')
def part(data):
    torch.manual_seed(3)
    return cold_start.split(data, NUM_COLD / NUM_ITEMS)


def to_set(pairs):
    return set(map(tuple, pairs.t().tolist()))


def test_split_keeps_every_pair_once(data, part):
    num_warm = part.warm['item'].num_nodes
    assert num_warm == NUM_ITEMS - NUM_COLD
    # Features tell which item of the data has which place:
    x = torch.cat([part.warm['item'].x_image, part.features['image']])
    same = (x[:, None] == data['item'].x_image).all(dim=2)
    assert (same.sum(dim=1) == 1).all()
    item_of = same.int().argmax(dim=1)

    cold, warm = {}, {}
    for key in KEYS:
        pairs = part.warm[RATES][key]
        assert int(pairs[1].max()) < num_warm
        warm[key] = to_set(torch.stack([pairs[0], item_of[pairs[1]]]))
        assert warm[key] <= to_set(data[RATES][key])
        cold[key] = to_set(data[RATES][key]) - warm[key]
        left = {item for _, item in cold[key]}
        assert left <= set(item_of[num_warm:].tolist())

    # The pairs of users who have nothing left are given up:
    known = set(part.warm[RATES].edge_index[0].tolist())
    expected = {
        'valid': cold['val_edge_label_index'],
        'test': cold['edge_index'] | cold['test_edge_label_index'],
    }
    for key, pairs in expected.items():
        user, item = getattr(part, key)
        found = to_set(torch.stack([user, item_of[item]]))
        assert found == {pair for pair in pairs if pair[0] in known}
        assert found


def test_content_knn_and_mean_of_neighbors(data, part):
    warm = cold_start.T.BuildDualGraph()(part.warm)
    near = cold_start.content_similarity(warm, part.features)
    for cold, item in [(0, 3), (7, 20)]:
        cosines = [
            torch.cosine_similarity(x[cold], warm['item'][f'x_{m}'][item], 0)
            for m, x in part.features.items()
        ]
        torch.testing.assert_close(near[cold, item], sum(cosines) / 2)

    pairs, emb = warm[RATES].edge_index, torch.randn(45, 5)
    graph = cold_start.edges(cold_start.top(near, 4), 45)
    content = Neighborhood(pairs, {'content': graph}, (NUM_USERS, NUM_ITEMS))
    score = content.add_to(torch.zeros(2, NUM_ITEMS), torch.tensor([2, 9]))
    assert not score[:, :45].any()
    score = score[:, 45:]
    mean = cold_start.mean_of(cold_start.top(near, 4), emb)
    for cold in range(NUM_COLD):
        value, index = near[cold].sort(descending=True)
        best = {
            int(i): max(float(v), 0)
            for v, i in zip(value[:4], index[:4], strict=True)
        }
        total = sum(emb[i] * v for i, v in best.items())
        torch.testing.assert_close(mean[cold], total / sum(best.values()))
        for row, user in enumerate([2, 9]):
            history = pairs[1, pairs[0] == user].tolist()
            expected = sum(best.get(item, 0.0) for item in history)
            assert float(score[row, cold]) == pytest.approx(expected, rel=1e-5)


def test_choice_looks_at_validation_pairs_only(part):
    size = (NUM_USERS, NUM_ITEMS)
    history = part.warm[RATES].edge_index
    cold = torch.arange(NUM_ITEMS - NUM_COLD, NUM_ITEMS)

    def make(key):  # Knows all the pairs of one kind, as embeddings.
        item = torch.eye(NUM_ITEMS)
        user = torch.zeros(size)
        user[tuple(getattr(part, key))] = 1.0
        near = Neighborhood(history, {}, size)
        return Ranker(near, user, item, candidates=cold)

    keys = ['test', 'valid']
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_start, 'CHOSEN_BY', 'ndcg@10')
        out = cold_start.choose(make, keys, part)
        only = cold_start.choose(make, keys[:1], part)
    assert out['chosen'] == 'valid'
    assert only['chosen'] == 'test'


def test_lines(tmp_path, monkeypatch):
    def small(folder, seed):
        return FakeMultimodalDataset(150, 120, seed=seed)[0]

    monkeypatch.setattr(harness, 'read', small)
    argv = ['cold_start.py', '--demo', '--seeds', '4', '--share', '0.2']
    argv += ['--set', 'epochs=2', 'patience=null', '--results', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', argv)
    with torch.random.fork_rng(devices=[]):
        cold_start.main()
    path = path_of('cold-start', 'fake', tmp_path)
    lines = {line['model']: line for line in read(path)}
    assert set(lines) == {
        'crane',
        'crane + ranker',
        'crane, features alone',
        'content-knn',
        'mean-of-neighbors',
    }
    for line in lines.values():
        assert line['seed'] == 4
        assert line['cold_items']['items'] == 24
        assert 0 < line['test']['recall@20'] <= 1
    assert lines['crane']['epochs'] == 2
    assert 'epochs' not in lines['content-knn']

    # What is there is not trained again:
    monkeypatch.setattr(sys, 'argv', [*argv, '--keep'])
    monkeypatch.setattr(harness, 'train', None)
    cold_start.main()
    assert len(read(path)) == 5


def test_table():
    def record(model, seed, value, **about):
        test = {'recall@20': value, 'ndcg@20': value / 2}
        return {'model': model, 'seed': seed, 'test': test, **about}

    runs = [record('crane', 0, 0.3), record('crane', 1, 0.5)]
    runs.append(record('content-knn', 0, 0.2, form='other'))
    text = cold_start.table({'shop': runs, 'else': []}, {'shop': 'Shop'})
    assert text.splitlines()[2:] == [
        '| crane | .4000 ± .1414 / .2000 ± .0707 | - |',
        '| content-knn | .2000 / .1000 (earlier form) | - |',
    ]
