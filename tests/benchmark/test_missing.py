import json
import sys

import missing
import torch
from torch_geometric.data import HeteroData


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


def record(model, share, recall, seed=0):
    return {
        'dataset': 'shop',
        'model': f'{model}-{share}',
        'seed': seed,
        'share': share,
        'test': {'recall@20': recall},
        'revision': 'abc',
        'date': '2026-01-01',
        'versions': dict.fromkeys(('torch', 'torch_geometric', 'numpy'), '2'),
    }


def test_table_and_picture(tmp_path, monkeypatch, capsys):
    runs = [
        record('crane', 0.0, 0.3),
        record('crane', 0.0, 0.1, seed=1),
        record('crane', 0.5, 0.15),
        record('lightgcn-same-recipe', 0.0, 0.05),
        record('freedom-same-recipe', 0.0, 0.1),
    ]
    for n, run in enumerate(runs):
        (tmp_path / f'{n}.json').write_text(json.dumps(run))
    page = tmp_path / 'page.md'
    page.write_text(f'a\n{missing.BEGIN}\nold\n{missing.END}\nb')
    monkeypatch.setattr(missing, 'PAGE', page)
    args = ['missing.py', '--results', str(tmp_path), '--write']
    monkeypatch.setattr(sys, 'argv', args)
    missing.main()
    text = capsys.readouterr().out
    assert '| | 0% | 50% |' in text
    assert '| crane | 0.2000 | 0.1500 |' in text
    # It reads no features, so that nothing is missing:
    assert '| lightgcn-same-recipe | 0.0500 | 0.0500 |' in text
    assert '| freedom-same-recipe | 0.1000 | - |' in text
    assert 'seed 0, 1' in text
    assert text.strip() in page.read_text()
    assert 'old' not in page.read_text()
    assert (tmp_path / 'shop.png').stat().st_size > 0
