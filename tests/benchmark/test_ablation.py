import sys

import ablation
import harness
import pytest
import torch
from models import MODELS
from records import path_of, read

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset


def small(folder, seed=0):
    return FakeMultimodalDataset(60, 40, seed=seed)[0]


@pytest.mark.parametrize('name', ablation.VARIANTS)
def test_variants_are_known(name):
    setting = ablation.VARIANTS[name]
    recipe, loss, kwargs = harness.split(MODELS['crane'], setting)
    data = T.BuildDualGraph()(small(None))
    model = MODELS['crane'].make(data, **kwargs)
    user, pos = data['user', 'rates', 'item'].edge_index[:, :20]
    neg = torch.zeros(20, recipe.num_negatives, dtype=torch.long)
    assert model.loss(model(data), user, pos, neg, **loss).isfinite()


def test_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, 'read', small)
    argv = ['ablation.py', '--demo', '--seeds', '0', '1', '--variants']
    argv += ['no contrast', 'channels 16', '--results', str(tmp_path)]
    argv += ['--set', 'epochs=1']
    monkeypatch.setattr(sys, 'argv', argv)
    with torch.random.fork_rng(devices=[]):
        ablation.main()
    lines = read(path_of('ablation', 'fake', tmp_path))
    names = ['channels 16', 'no contrast']
    assert [x['model'] for x in lines] == [names[0]] * 2 + [names[1]] * 2
    assert [x['seed'] for x in lines] == [0, 1, 0, 1]
    assert lines[0]['overrides'] == {'channels': 16, 'epochs': 1}


def record(model, seed, recall, **about):
    test = {'alone': {'recall@20': recall}}
    return {'model': model, 'seed': seed, 'test': test, **about}


def test_difference_is_to_the_same_seeds():
    runs = [record('no IDs', 0, 0.3), record('no IDs', 1, 0.4)]
    runs += [record('layers 1', 0, 0.25), record('layers 3', 7, 0.25)]
    reference = [record('crane', seed, 0.2 + seed) for seed in (0, 1, 2)]
    reference.append(record('peer', 0, 0.9))
    text = ablation.table({'shop': runs}, {'shop': reference}, {'shop': 'Shop'})
    assert text.splitlines() == [
        '| Recall@20 alone | Shop |',
        '| --- | --- |',
        '| no IDs | .3500 (-0.3500), 2 seeds |',
        '| layers 1 | .2500 (+0.0500) |',
        '| layers 3 | .2500 |',
    ]


def test_earlier_form_has_a_table_of_its_own():
    runs = [
        record('crane', 0, 0.2, form='earlier'),
        record('crane', 1, 0.3, form='earlier'),
        record('layers-1', 0, 0.1, form='earlier'),
        record('layers-3', 0, 0.4, form='earlier'),
        record('layers 1', 0, 0.5),
    ]
    text = ablation.table({'a': runs[4:], 'b': runs[:4]}, {}, {'b': 'Shop'})
    present, earlier = text.split('\n\n')
    assert present.splitlines()[2:] == ['| layers 1 | .5000 |']
    assert earlier.splitlines()[0] == '| Recall@20, earlier form | Shop |'
    assert '| CRANE | .2500 |' in earlier
    assert '| layers | 3 .4000, 1 .1000 |' in earlier
    # Where there is one of the present form, that is all:
    assert ablation.table({'a': runs}, {}, {}) == present
