import math
import re
import time

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.data import HeteroData

from crane_pyg.datasets import FakeMultimodalDataset

RATES = ('user', 'rates', 'item')


def splits(data):
    store = data[RATES]
    return [
        store.edge_index,
        store.val_edge_label_index,
        store.test_edge_label_index,
    ]


def dense(data, edge_index):
    out = torch.zeros(data['user'].num_nodes, data['item'].num_nodes)
    out[edge_index[0], edge_index[1]] = 1
    return out


def recall(data, score, k=20):
    train, _, test = splits(data)
    score = score.masked_fill(dense(data, train) > 0, -math.inf)
    target = dense(data, test)
    hits = target.gather(1, score.topk(k).indices).sum(dim=1)
    return float((hits / target.sum(dim=1)).mean())


def similarity(x):
    x = F.normalize(x - x.mean(dim=0), dim=1)
    return x @ x.t()


def profile(data):
    history = dense(data, data[RATES].edge_index)
    return history / history.sum(dim=1, keepdim=True)


def test_fake():
    begin = time.process_time()
    dataset = FakeMultimodalDataset()
    assert time.process_time() - begin < 2
    assert str(dataset) == 'FakeMultimodalDataset()'
    assert len(dataset) == 1
    assert dataset.num_users == 2000
    assert dataset.num_items == 1200
    assert dataset.modalities == ['image', 'text']

    data = dataset[0]
    assert isinstance(data, HeteroData)
    data.validate()
    assert data.node_types == ['user', 'item']
    assert data.edge_types == [RATES]
    assert data['user'].num_nodes == 2000
    assert data['item'].num_nodes == 1200
    assert data['item'].x_image.shape == (1200, 64)
    assert data['item'].x_text.shape == (1200, 32)
    assert data['item'].x_image.dtype == torch.float32
    assert data['item'].x_image.isfinite().all()
    assert data[RATES].num_edges == data[RATES].edge_index.size(1)
    assert len(data[RATES]) == 3


@pytest.mark.parametrize(
    ('num_users', 'num_items', 'avg_degree'),
    [(2000, 1200, 8), (1500, 60, 20), (30, 400, 5), (1, 5, 5), (40, 6, 6)],
)
def test_fake_pairs(num_users, num_items, avg_degree):
    data = FakeMultimodalDataset(
        num_users, num_items, avg_degree=avg_degree, seed=3
    )[0]
    pairs = torch.cat(splits(data), dim=1)
    assert pairs.dtype == torch.long
    assert pairs.unique(dim=1).size(1) == pairs.size(1)
    assert pairs[0].unique().tolist() == list(range(num_users))
    assert pairs[1].unique().tolist() == list(range(num_items))
    assert int(pairs[0].bincount().min()) >= 5

    # The rule of the field, written once more and user by user:
    counts = [split[0].bincount(minlength=num_users) for split in splits(data)]
    for train, val, test in zip(*[c.tolist() for c in counts], strict=True):
        degree = train + val + test
        if degree < 10:
            assert (train, val, test) == (degree - 2, 1, 1)
        else:
            held_out = int(0.2 * degree)
            assert val == held_out // 2
            assert test == held_out - val


def test_fake_degree():
    for avg_degree in [5, 8, 12.5]:
        data = FakeMultimodalDataset(4000, 300, avg_degree=avg_degree)[0]
        degree = torch.cat(splits(data), dim=1)[0].bincount()
        assert float(degree.float().mean()) == pytest.approx(avg_degree, 0.05)
        assert int(degree.max()) > 10 or avg_degree == 5


def test_fake_split_is_random():
    # Training pairs are no likelier to be of popular items than test pairs:
    data = FakeMultimodalDataset(5000)[0]
    train, _, test = splits(data)
    popularity = torch.cat(splits(data), dim=1)[1].bincount().float()
    ratio = popularity[train[1]].mean() / popularity[test[1]].mean()
    assert float(ratio) == pytest.approx(1, abs=0.05)


def test_fake_seed():
    state = torch.get_rng_state()
    data = FakeMultimodalDataset(missing_rate=0.1, seed=1)[0]
    same = FakeMultimodalDataset(missing_rate=0.1, seed=1)[0]
    other = FakeMultimodalDataset(missing_rate=0.1, seed=2)[0]
    assert torch.equal(torch.get_rng_state(), state)
    for x, y in zip(splits(data), splits(same), strict=True):
        assert torch.equal(x, y)
    for name in ['x_image', 'x_text']:
        x = data['item'][name]
        assert x.allclose(same['item'][name], 0, 0, equal_nan=True)
        assert not x.allclose(other['item'][name], equal_nan=True)
    assert not torch.equal(splits(data)[0], splits(other)[0])


def test_fake_modalities():
    modalities = {'text': 3, 'audio': 7, 'image': 1}
    dataset = FakeMultimodalDataset(50, 40, modalities, num_factors=2)
    assert dataset.modalities == ['audio', 'image', 'text']
    for name, width in modalities.items():
        assert dataset[0]['item'][f'x_{name}'].shape == (40, width)


def test_fake_missing_rate():
    data = FakeMultimodalDataset(missing_rate=0.25)[0]
    masks = []
    for name in ['x_image', 'x_text']:
        x = data['item'][name]
        mask = x.isnan().any(dim=1)
        assert int(mask.sum()) == 300
        assert x[mask].isnan().all()
        assert x[~mask].isfinite().all()
        masks.append(mask)
    both = int((masks[0] & masks[1]).sum())
    assert both == pytest.approx(1200 / 16, rel=0.4)


def test_fake_transforms():
    calls = []

    def pre_transform(data):
        calls.append('pre')
        data['item'].x_image = data['item'].x_image + 1
        return data

    def transform(data):
        calls.append('post')
        return data

    dataset = FakeMultimodalDataset(
        50, 40, transform=transform, pre_transform=pre_transform
    )
    assert calls == ['pre']
    plain = FakeMultimodalDataset(50, 40)[0]
    for _ in range(2):
        x = dataset[0]['item'].x_image
        assert torch.equal(x, plain['item'].x_image + 1)
    assert calls == ['pre', 'post', 'post']


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_fake_features_carry_signal(seed):
    data = FakeMultimodalDataset(seed=seed)[0]
    generator = torch.Generator().manual_seed(seed)
    history, sims = profile(data), {}
    popular = dense(data, data[RATES].edge_index).sum(dim=0)
    baseline = recall(data, popular.expand(2000, -1))
    for name in ['x_image', 'x_text']:
        x = data['item'][name]
        sims[name] = similarity(x)
        perm = torch.randperm(1200, generator=generator)
        assert recall(data, history @ sims[name]) > 1.4 * baseline
        assert recall(data, history @ similarity(x[perm])) < 0.5 * baseline

    # Modalities complement each other, and the second one is the noisier:
    image, text = (recall(data, history @ sim) for sim in sims.values())
    both = recall(data, history @ sum(sims.values()))
    assert both > 1.05 * image > 1.05 * 1.05 * text


@pytest.mark.parametrize('seed', [0, 1, 2])
def test_fake_features_add_to_interactions(seed):
    data = FakeMultimodalDataset(seed=seed)[0]
    history = profile(data)
    pairs = F.normalize(dense(data, data[RATES].edge_index), dim=0)
    behavior = history @ (pairs.t() @ pairs)
    content = history @ sum(similarity(x) for x in features(data))
    mixed = behavior / behavior.std() + content / content.std()
    assert recall(data, mixed) > 1.05 * recall(data, behavior)


def features(data):
    return [data['item'].x_image, data['item'].x_text]


def test_fake_noise():
    scores = []
    for noise in [0.0, 0.5, 2.0]:
        data = FakeMultimodalDataset(noise=noise)[0]
        sim = similarity(data['item'].x_text)
        scores.append(recall(data, profile(data) @ sim))
    assert scores[0] > scores[1] > 2 * scores[2]


def test_fake_neighbors_are_meaningful():
    # Nearest neighbors in one modality are close in the other one, too:
    data = FakeMultimodalDataset()[0]
    image, text = (similarity(x).fill_diagonal_(-1) for x in features(data))
    index = image.topk(10).indices
    assert text.gather(1, index).mean() > text.mean() + 0.2


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'num_users': 0}, "'num_users' needs to be at least 1 (got 0)"),
        ({'num_items': -1}, "'num_items' needs to be at least 1 (got -1)"),
        ({'num_factors': 0}, "'num_factors' needs to be at least 1 (got 0)"),
        ({'num_users': 9.5}, "'num_users' needs to be an integer (got 9.5)"),
        (
            {'modalities': {'image': 4, 'text': 0}},
            "'modalities['text']' needs to be at least 1 (got 0)",
        ),
        (
            {'modalities': {}},
            "'modalities' needs to name at least one (got {})",
        ),
        (
            {'avg_degree': 4.5},
            "'avg_degree' needs to be between 5 and 'num_items' (1200) "
            '(got 4.5)',
        ),
        (
            {'num_items': 7},
            "'avg_degree' needs to be between 5 and 'num_items' (7) (got 8.0)",
        ),
        ({'avg_degree': math.nan}, '(got nan)'),
        (
            {'noise': -0.1},
            "'noise' needs to be finite and non-negative (got -0.1)",
        ),
        ({'noise': math.inf}, '(got inf)'),
        (
            {'missing_rate': 1.0},
            "'missing_rate' needs to be in [0, 1) (got 1.0)",
        ),
        ({'missing_rate': -0.5}, '(got -0.5)'),
        ({'seed': 0.5}, "'seed' needs to be an integer (got 0.5)"),
        ({'seed': 'x'}, "'seed' needs to be an integer (got 'x')"),
    ],
)
def test_fake_bad_argument(kwargs, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        FakeMultimodalDataset(**kwargs)
