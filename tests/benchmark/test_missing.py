import sys

import harness
import missing
import torch
from records import path_of, read
from torch_geometric.data import HeteroData

from crane_pyg.datasets import FakeMultimodalDataset


def lacks(share, seed=0):
    data = HeteroData()
    data['item'].x_image = torch.ones(100, 3)
    data['item'].x_text = torch.ones(100, 2)
    data['item'].num_nodes = 100
    out = missing.strip(data, share, seed)
    assert not data['item'].x_image.isnan().any()
    masks = [out['item'][f'x_{m}'].isnan() for m in ('image', 'text')]
    for mask in masks:
        assert torch.equal(mask.any(dim=1), mask.all(dim=1))
    return torch.stack([mask.any(dim=1) for mask in masks])


def test_strip():
    assert not lacks(0.0).any()
    count = lacks(0.3).sum(dim=0).bincount().tolist()
    assert count == [70, 15, 15]
    assert lacks(0.9).any(dim=0).sum() == 90
    assert torch.equal(lacks(0.3), lacks(0.3))
    assert not torch.equal(lacks(0.3), lacks(0.3, seed=1))
    # What one share takes, the larger one takes as well:
    assert (lacks(0.3) <= lacks(0.7)).all()
    assert lacks(0.3)[0].any()
    assert lacks(0.3)[1].any()


def test_lines(tmp_path, monkeypatch):
    def small(folder, seed):
        return FakeMultimodalDataset(60, 40, seed=seed)[0]

    monkeypatch.setattr(harness, 'read', small)
    argv = ['missing.py', '--demo', '--seeds', '0', '--shares', '0', '0.5']
    argv += ['--set', 'epochs=1', '--results', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', argv)
    with torch.random.fork_rng(devices=[]):
        missing.main()
    lines = read(path_of('missing', 'fake', tmp_path))
    assert [(x['model'], x['share']) for x in lines] == [
        ('crane', 0.0),
        ('crane', 0.5),
        ('freedom-same-recipe', 0.0),
        ('freedom-same-recipe', 0.5),
        ('lightgcn-same-recipe', 0.0),
    ]
    assert lines[0]['test'] != lines[1]['test']


def test_table():
    def record(model, share, recall, seed=0):
        test = {'alone': {'recall@20': recall}}
        return {'model': model, 'share': share, 'seed': seed, 'test': test}

    runs = [
        record('crane', 0.0, 0.3),
        record('crane', 0.0, 0.1, seed=1),
        record('crane', 0.5, 0.15),
        record('lightgcn-same-recipe', 0.0, 0.05),
        {**record('freedom-same-recipe', 0.0, 0.1), 'form': 'other'},
    ]
    lines = missing.table({'shop': runs}, {'shop': 'Shop'}).splitlines()
    assert lines[0].endswith('| 0% | 50% |')
    assert lines[2:] == [
        '| Shop, crane | .2000 | .1500 |',
        # It reads no features, so that nothing is missing:
        '| Shop, lightgcn-same-recipe | .0500 | .0500 |',
        '| Shop, freedom-same-recipe (earlier form) | .1000 | - |',
    ]
