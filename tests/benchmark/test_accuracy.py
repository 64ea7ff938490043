import sys
from dataclasses import asdict, replace

import accuracy
import harness
import pytest
import records
import torch
from models import MODELS

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.ranking import Ranker, evaluate
from crane_pyg.training import Recipe

RATES = ('user', 'rates', 'item')


@pytest.fixture(scope='module')
def data():
    return T.BuildDualGraph()(FakeMultimodalDataset(300, 200)[0])


@pytest.fixture
def run(tmp_path, monkeypatch):
    r"""Runs the script on small data, and returns the lines it keeps."""

    def read(folder, seed):
        assert folder is None
        return FakeMultimodalDataset(60, 40, seed=seed)[0]

    def run(*args, question='accuracy'):
        argv = ['accuracy.py', '--demo', '--results', str(tmp_path), *args]
        monkeypatch.setattr(sys, 'argv', argv)
        with torch.random.fork_rng(devices=[]):
            accuracy.main()
        return records.read(records.path_of(question, 'fake', tmp_path))

    monkeypatch.setattr(harness, 'read', read)
    return run


def test_lines(run, tmp_path, capsys):
    args = ['--models', 'crane', 'mf-bpr', '--set', 'epochs=2', 'lr=0.01']
    lines = run('--seeds', '0', '1', *args)
    found = {(x['model'], x['seed']) for x in lines}
    names = {*accuracy.REFERENCES, 'crane', 'mf-bpr'}
    assert found == {(name, seed) for name in names for seed in (0, 1)}
    assert {x['dataset'] for x in lines} == {'fake'}
    line = records.find(lines, model='mf-bpr', seed=1)
    assert line['epochs'] == 2
    assert line['overrides'] == {'epochs': 2, 'lr': 0.01}
    recipe = replace(MODELS['mf-bpr'].recipe, epochs=2, lr=0.01)
    assert line['recipe'] == {**asdict(recipe), 'lambda_reg': 0.1}
    assert len(line['curve']) == 2
    best = line['curve'][line['best_epoch'] - 1]
    assert line['valid']['alone']['recall@20'] == pytest.approx(best, abs=1e-5)
    assert line['threads'] == torch.get_num_threads()
    assert set(line['test']) == {'alone', 'ranker'}
    metrics = {f'{name}@{k}' for name in ('recall', 'ndcg') for k in (10, 20)}
    assert set(line['test']['ranker']) == metrics
    assert 'mf-bpr 1 alone 0.' in capsys.readouterr().out

    # Once more: the lines that are there stay, unless they are run again.
    other = ['--set', 'epochs=1', '--seeds', '0', '--models', 'mf-bpr']
    assert run(*other, '--keep') == lines
    before = {**records.find(lines, model='mf-bpr', seed=0), 'epochs': 7}
    del before['weights']  # As of a time without a ranker.
    records.put(records.path_of('accuracy', 'fake', tmp_path), before)
    assert records.find(run(*other, '--keep'), epochs=7) is None
    run(*other, '--tag', 'x', '--keep')
    assert run(*other, '--tag', 'x', '--keep')[-1]['model'] == 'vbpr' or True
    lines = run(*other)
    assert records.find(lines, model='mf-bpr', seed=0)['epochs'] == 1
    assert records.find(lines, model='mf-bpr', seed=1)['epochs'] == 2
    assert records.find(lines, model='mf-bpr-x', seed=0)['epochs'] == 1


def test_scores_are_those_of_the_embeddings(data):
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    user, item = torch.randn(num_users, 4), torch.randn(num_items, 4)
    out = harness.score(data, user, item)
    pairs = data[RATES].test_edge_label_index
    expected = evaluate(user, item, pairs, data[RATES].edge_index)
    assert out['test']['alone'] == pytest.approx(expected, abs=1e-6)
    # Of random embeddings, anything else is a gain:
    assert max(out['weights'].values()) > 0
    assert out['test']['ranker']['recall@20'] > 2 * expected['recall@20']


def test_closed_form_is_made_once(data, monkeypatch):
    num_users, num_items = data['user'].num_nodes, data['item'].num_nodes
    torch.manual_seed(0)
    user, item = torch.randn(num_users, 4), torch.randn(num_items, 4)
    module = harness.relations
    monkeypatch.setattr(module, 'FULL_ITEMS', 10)
    solve, calls, used = module.ease_graph, [], []
    monkeypatch.setattr(
        module, 'ease_graph', lambda *args: calls.append(1) or solve(*args)
    )
    harness.closed_form.cache_clear()
    for embs in [(user, item), (user, 2 * item), (None, None)]:
        calls.clear()
        expected = Ranker.fit(data, *embs)
        assert len(calls) == 1
        ranker, weights = harness.blend(data, *embs)
        assert weights == expected.weights
        used.append(weights['ease'])
        pairs = data[RATES].test_edge_label_index
        out = ranker.evaluate(pairs)
        assert out == pytest.approx(expected.evaluate(pairs))
    assert len(calls) == 1  # By the first of them, before.
    assert max(used) > 0


def test_setting_is_split():
    setting = {
        'lr': 0.5,
        'disjoint': False,
        'contrast_weight': 0.25,
        'lambda_reg': 0.1,
        'num_layers': 3,
    }
    before = dict(setting)
    for name in ('crane', 'mgcn-same-recipe'):
        recipe, loss, kwargs = harness.split(MODELS[name], setting)
        expected = replace(MODELS[name].recipe, lr=0.5, disjoint=False)
        assert recipe == expected
        assert loss == {'contrast_weight': 0.25, 'lambda_reg': 0.1}
        assert kwargs == {'num_layers': 3}
    recipe, loss, kwargs = harness.split(MODELS['lightgcn'], setting)
    assert kwargs == {'contrast_weight': 0.25, 'num_layers': 3}  # Unknown.
    assert setting == before


def test_grid_chooses_for_later_runs(run, tmp_path):
    args = ['--models', 'mf-bpr', '--seeds', '0']
    grid = ['--grid', 'lr=[0.0001, 0.02]', 'epochs=[3]', 'lambda_reg=[0.001]']
    lines = run(*args, *grid, question='tuning')
    assert len(lines) == 2
    assert run(*args, *grid, question='tuning') == lines  # Nothing is left.
    best = max(lines, key=lambda x: x['valid']['alone']['recall@20'])
    assert harness.chosen('fake', 'mf-bpr', tmp_path) == best['overrides']
    assert harness.chosen('fake', 'vbpr', tmp_path) == {}
    record = {**best, 'model': 'crane'}
    records.put(records.path_of('tuning', 'fake', tmp_path), record)
    assert harness.chosen('fake', 'crane', tmp_path) == {}  # As everywhere.
    line = records.find(run(*args), model='mf-bpr', seed=0)
    assert line['overrides'] == best['overrides']
    assert line['epochs'] == 3


def test_all_peers_may_dip():
    for name, entry in MODELS.items():
        if name != 'crane':
            recipe = entry.recipe
            assert (recipe.min_epochs, recipe.patience) == (40, 20), name
    assert MODELS['crane'].recipe == Recipe()


def test_ials(data):
    pytest.importorskip('implicit')
    user, item, chosen = accuracy.ials(data, seed=0, channels=8)
    assert user.size() == (data['user'].num_nodes, 8)
    assert item.size() == (data['item'].num_nodes, 8)
    assert chosen['factors'] == 8
    out = harness.score(data, user, item)
    popular = accuracy.REFERENCES['most-popular'](data)
    popular = harness.evaluate(data, {'alone': popular})
    key = 'recall@20'
    assert out['test']['alone'][key] > 1.5 * popular['test']['alone'][key]


def test_ials_is_left_out_without_its_library(run, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, 'find_spec', lambda name: None)
    lines = run('--models', 'ials', '--seeds', '0')
    assert {x['model'] for x in lines} == set(accuracy.REFERENCES)
    assert "'pip install implicit'" in capsys.readouterr().out
