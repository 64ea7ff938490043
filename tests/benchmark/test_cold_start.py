import argparse
import json

import cold_start
import pytest
import torch

from crane_pyg.datasets import FakeMultimodalDataset

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
        found = to_set(torch.stack([user, item_of[item + num_warm]]))
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
    score = cold_start.content_score(
        cold_start.history_matrix(warm), cold_start.top(near, 4)
    )
    score = score(torch.tensor([2, 9]))
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
    size = (NUM_USERS, NUM_COLD)
    ideal = {key: torch.zeros(size) for key in ('valid', 'test')}
    for key, score in ideal.items():
        score[tuple(getattr(part, key))] = 1.0
    scores = {key: score.__getitem__ for key, score in ideal.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cold_start, 'evaluate_scores', evaluate_at_3)
        result = cold_start.choose(scores, size, part)
    assert result['chosen'] == 'valid'
    assert result['valid']['valid'] > result['valid']['test']


EVALUATE = cold_start.evaluate_scores


def evaluate_at_3(scores, size, pairs):
    metrics = EVALUATE(scores, size, pairs, ks=(3,))
    return {'recall@20': metrics['recall@3']}


def test_result_file(tmp_path):
    data = FakeMultimodalDataset(150, 120)[0]
    args = argparse.Namespace(
        data=str(tmp_path / 'shop'),
        share=0.2,
        epochs=2,
        patience=5,
        batch_size=256,
        lr=0.01,
        device='cpu',
        results=tmp_path / 'results',
    )
    cold_start.save(args, 4, cold_start.run(data, 4, args))
    record = json.loads((tmp_path / 'results' / 'shop-4.json').read_text())
    assert record['dataset'] == 'shop'
    assert record['seed'] == 4
    assert record['cold_items']['items'] == 24
    assert record['arguments']['share'] == 0.2
    assert set(record['versions']) >= {'torch', 'torch_geometric'}
    assert record['revision']
    recalls = {
        name: group['test']['recall@20']
        for name, group in record['cold'].items()
    }
    names = {'content-knn', 'mean-of-neighbors', 'crane', 'crane, defaults'}
    assert set(recalls) == names | {'random'}
    for name in names:
        assert recalls['random'] < recalls[name] <= 1
    assert record['warm'].keys() == {
        'before',
        'after',
        'after, among all items',
    }
