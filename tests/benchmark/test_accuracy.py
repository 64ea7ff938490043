import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARK = Path(__file__).parent.parent.parent / 'benchmark'
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(BENCHMARK))
    accuracy = importlib.import_module('accuracy')


@pytest.fixture
def run(tmp_path, monkeypatch):
    r"""Runs the script on fake data, without training; returns the fits."""

    def fit(name, data, seed, args):
        fits.append((name, seed))
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

    fits = []
    monkeypatch.setattr(accuracy, 'REFERENCES', {})
    monkeypatch.setattr(accuracy, 'fit', fit)
    return run


@pytest.mark.parametrize(
    ('other', 'text'),
    [
        (['--set', 'lambda_reg=0.5'], r"overrides {} \(got {'lambda_reg': 0.5"),
        (['--patience', '9'], r"'patience': 10} \(got .*'patience': 9}"),
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

    assert run('--seeds', '1', *other, '--tag=-other') == [('mf-bpr', 1)]
    assert run('--seeds', '1') == [('mf-bpr', 1)]  # As it was: once more.
    record = json.loads(path.read_text())
    assert record['arguments'] == {'epochs': 200, 'patience': 10}
