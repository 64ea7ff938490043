import json
import sys

import accuracy
import grids
import pytest
import torch


@pytest.fixture
def run(tmp_path, monkeypatch):
    r"""Runs the script on fake data, without training; returns the fits."""

    def fit(name, data, seed, args):
        fits.append((name, seed, *args.set))
        patience[name] = args.patience
        return {
            'test': {'recall@20': 0.5},
            'overrides': accuracy.overrides(args),
            'recall': torch.ones(2),
            'ndcg': torch.ones(2),
        }

    def run(*args):
        fits.clear()
        args = ['--models', 'mf-bpr', '--results', str(tmp_path), *args]
        monkeypatch.setattr(sys, 'argv', ['accuracy.py', '--demo', *args])
        accuracy.main()
        return fits.copy()

    fits, run.patience = [], (patience := {})
    monkeypatch.setattr(grids, 'RESULTS', tmp_path / 'tuning')
    monkeypatch.setattr(accuracy, 'REFERENCES', {})
    monkeypatch.setattr(accuracy, 'fit', fit)
    return run


@pytest.mark.parametrize(
    ('other', 'text'),
    [
        (['--set', 'lambda_reg=0.5'], r"overrides {} \(got {'lambda_reg': 0.5"),
        (['--patience', '11'], r"'patience': 10} \(got .*'patience': 11}"),
    ],
)
def test_keeps_what_was_made_otherwise(run, tmp_path, other, text):
    assert run('--seeds', '1') == [('mf-bpr', 1)]
    path = tmp_path / 'fake-mf-bpr-1.json'
    kept = path.read_text()
    with pytest.raises(ValueError, match=text) as error:
        run('--seeds', '0', '1', *other)
    assert str(path) in str(error.value)
    assert path.read_text() == kept
    assert len(list(tmp_path.iterdir())) == 2  # It failed before training.

    other_fit = ('mf-bpr', 1, *other[1:2][: other[0] == '--set'])
    assert run('--seeds', '1', *other, '--tag=-other') == [other_fit]
    assert run('--seeds', '1') == [('mf-bpr', 1)]  # As it was: once more.
    record = json.loads(path.read_text())
    assert record['arguments'] == {'epochs': 200, 'patience': 10}
    assert run('--seeds', '1', '--patience', '9') == []  # It had longer.
    assert json.loads(path.read_text()) == record


def test_trains_as_tuned(run, tmp_path):
    folder = tmp_path / 'tuning'
    folder.mkdir()
    best = {'lambda_reg': 0.3, 'lr': 0.003}
    for model in ('mf-bpr', 'crane'):
        for n, setting in enumerate(grids.settings(grids.GRIDS[model])):
            recall = 0.2 if setting == best else 0.1
            record = {
                'dataset': 'fake',
                'tuned': model,
                'overrides': setting,
                'valid': {'recall@20': recall},
            }
            (folder / f'{model}-{n}.json').write_text(json.dumps(record))
    args = ['--seeds', '0', '--models', 'mf-bpr', 'crane', 'vbpr']
    as_tuned = ('mf-bpr', 0, 'lambda_reg=0.3', 'lr=0.003')
    by_default = ('crane', 0), ('vbpr', 0)
    assert run(*args) == [as_tuned, *by_default]
    assert run.patience == {'mf-bpr': 10, 'crane': 10, 'vbpr': 20}
    assert run(*args[:4], '--set', 'lr=1', '--tag=-a') == [
        ('mf-bpr', 0, 'lr=1')
    ]
    (folder / 'mf-bpr-0.json').unlink()  # A grid with a gap has not chosen.
    assert run(*args, '--tag=-b') == [('mf-bpr', 0), *by_default]
