import json
import sys

import grids
import models
import pytest
import torch
import tune

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset


@pytest.fixture(scope='module')
def data():
    return T.BuildDualGraph()(FakeMultimodalDataset(20, 15)[0])


def test_budgets_are_equal():
    assert grids.GRIDS.keys() == models.MODELS.keys()
    budgets = {len(grids.settings(grid)) for grid in grids.GRIDS.values()}
    assert budgets == {8}


@pytest.mark.parametrize('name', grids.GRIDS)
def test_grids_are_arguments_of_models(data, name):
    for setting in grids.settings(grids.GRIDS[name]):
        recipe = vars(models.MODELS[name](data, **setting).recipe)
        assert recipe == recipe | {
            key: value for key, value in setting.items() if key in recipe
        }


@pytest.mark.parametrize('name', grids.GRIDS)
def test_grids_stand_on_ladders(name):
    for key, values in grids.GRIDS[name].items():
        if not isinstance(values[0], bool):
            ladder = grids.LADDERS[key]
            assert ladder == sorted(set(ladder))
            assert set(values) <= set(ladder)


@pytest.mark.parametrize(
    ('peak', 'runs'), [(1, 3), (2, 3), (0, 3), (4, 4), (9, 4)]
)
def test_goes_beyond_the_border(monkeypatch, peak, runs):
    ladder = [0, 1, 2, 3, 4]
    grid = {'lr': ladder[1:3], 'disjoint': [True]}
    monkeypatch.setattr(grids, 'GRIDS', {'crane': grid})
    monkeypatch.setattr(grids, 'LADDERS', {'lr': ladder})
    records = []
    while left := grids.to_run('crane', records):
        for setting in left:
            assert setting['disjoint'] is True
            valid = {'recall@20': 1 - abs(setting['lr'] - peak)}
            records.append({'overrides': setting, 'valid': valid})
    tried = [record['overrides']['lr'] for record in records]
    assert len(tried) == len(set(tried)) == runs
    assert grids.best(records)['overrides']['lr'] == min(peak, 4)


def test_shows_what_is_left(tmp_path, capsys):
    best = {'lambda_reg': 0.03, 'lr': 0.001}
    for n, setting in enumerate(grids.settings(grids.FACTORIZATION)):
        record = {
            'dataset': 'shop',
            'tuned': 'vbpr',
            'overrides': setting,
            'valid': {'recall@20': 0.2 if setting == best else 0.1},
            'revision': 'abc1234',
            'date': '2026-01-01',
            'versions': {'torch': '1', 'torch_geometric': '2', 'numpy': '3'},
        }
        (tmp_path / f'{n}.json').write_text(json.dumps(record))
    tune.show(tmp_path, write=False)
    assert '| vbpr | 8 (1 to go) |' in capsys.readouterr().out
    (tmp_path / '0.json').unlink()  # One of the grid goes first.
    tune.show(tmp_path, write=False)
    assert '| vbpr | 7 (1 to go) |' in capsys.readouterr().out


def test_tunes_and_trains_the_best(tmp_path, monkeypatch, capsys):
    fits = []

    def fit(name, data, seed, args):
        overrides = tune.accuracy.overrides(args)
        fits.append((name, seed, *overrides.values()))
        # Chosen on the validation pairs, against the test pairs:
        recall = 1 - abs(overrides['lambda_reg'] - 2) / 10
        return {
            'valid': {'recall@20': recall},
            'test': {'recall@20': 1 - recall},
            'overrides': overrides,
            'recall': torch.ones(2),
            'ndcg': torch.ones(2),
        }

    grid = {'lambda_reg': [1, 2, 3]}
    monkeypatch.setattr(grids, 'GRIDS', {'crane': grid, 'mf-bpr': grid})
    monkeypatch.setattr(grids, 'LADDERS', {'lambda_reg': [0, 1, 2, 3, 4]})
    monkeypatch.setattr(tune.accuracy, 'load_data', lambda args: None)
    monkeypatch.setattr(tune.accuracy, 'fit', fit)
    page = tmp_path / 'page.md'
    page.write_text(f'a\n{tune.BEGIN}\nold\n{tune.END}\nb')
    monkeypatch.setattr(tune, 'PAGE', page)
    folder = tmp_path / 'tuning'
    args = ['tune.py', '--data', 'a/shop', '--models', 'crane', 'mf-bpr']
    args += ['--seeds', '0', '1', '--write']
    args += ['--results', str(folder), '--best', str(tmp_path / 'best')]
    monkeypatch.setattr(sys, 'argv', args)

    tune.main()
    assert fits == [
        *(('crane', 0, n) for n in (1, 2, 3)),
        *(('mf-bpr', 0, n) for n in (1, 2, 3)),
        *(('mf-bpr', seed, 2) for seed in (0, 1)),
    ]
    names = {path.name for path in (tmp_path / 'best').glob('*.json')}
    assert names == {'shop-mf-bpr-0.json', 'shop-mf-bpr-1.json'}
    record = json.loads(
        (folder / 'shop-mf-bpr-lambda-reg-3-0.json').read_text()
    )
    assert (record['tuned'], record['overrides']) == (
        'mf-bpr',
        {'lambda_reg': 3},
    )
    text = capsys.readouterr().out.strip()
    row = '| shop | mf-bpr | 3 | 0.9000, 1.0000 | lambda_reg=2 |'
    assert row in text
    assert text in page.read_text()
    assert 'old' not in page.read_text()

    fits.clear()
    tune.main()  # Nothing is missing.
    assert fits == []
    path = tmp_path / 'best' / 'shop-mf-bpr-1.json'
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, 'overrides': {'lambda_reg': 3}}))
    tune.main()
    assert fits == [('mf-bpr', 1, 2)]

    fits.clear()
    for patience in (11, 9):  # One of longer patience will do.
        arguments = {'epochs': 200, 'patience': patience}
        path.write_text(json.dumps({**record, 'arguments': arguments}))
        tune.main()
        assert fits == [('mf-bpr', 1, 2)] * (patience < 10)
