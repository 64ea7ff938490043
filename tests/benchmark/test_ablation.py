import json
import sys
from contextlib import nullcontext

import ablation
import models
import pytest

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset

GROUPS = {'Steps': {'2': {'num_steps': 2}, '3': {'num_steps': 3}}}


@pytest.fixture(scope='module')
def data():
    return T.BuildDualGraph()(FakeMultimodalDataset(20, 15)[0])


@pytest.mark.parametrize('group', ablation.GROUPS)
def test_groups_are_arguments_of_crane(data, group):
    for overrides in ablation.GROUPS[group].values():
        models.MODELS['crane'](data, **json.loads(json.dumps(overrides)))


def test_labels_differ():
    labels = [
        f'{g}: {v}' for g, group in ablation.GROUPS.items() for v in group
    ]
    assert len({ablation.slug(label) for label in labels}) == len(labels)


def test_runs_what_is_missing_and_draws(tmp_path, monkeypatch):
    fits = []

    def fit(name, data, seed, args):
        fits.append((name, seed, *args.set))
        return {
            'test': {'recall@20': 0.1},
            'overrides': ablation.accuracy.overrides(args),
            'recall': None,
            'ndcg': None,
        }

    monkeypatch.setattr(ablation, 'GROUPS', GROUPS)
    monkeypatch.setattr(ablation.accuracy, 'load_data', lambda args: None)
    monkeypatch.setattr(ablation.accuracy, 'fit', fit)
    args = ['--data', 'a/shop', '--seeds', '0', '1']
    folder, reference = tmp_path / 'ablation', tmp_path
    folder.mkdir()
    args += ['--results', str(folder), '--reference', str(reference)]
    args = ['ablation.py', *args]
    monkeypatch.setattr(sys, 'argv', args)

    (folder / 'shop-steps-2-1.json').write_text(
        json.dumps(
            {
                'dataset': 'shop',
                'model': 'steps-2',
                'test': {'recall@20': 0.2},
                'overrides': {'num_steps': 2},
                'arguments': {'epochs': 200, 'patience': 10},
            }
        )
    )
    ablation.main()
    assert fits == [
        ('crane', 0, 'num_steps=2'),
        ('crane', 0, 'num_steps=3'),
        ('crane', 1, 'num_steps=3'),
    ]
    files = {path.name for path in folder.iterdir()}
    assert {'shop-steps-3-1.json', 'shop.png'} <= files
    record = json.loads((folder / 'shop-steps-3-1.json').read_text())
    assert (record['model'], record['seed']) == ('steps-3', 1)

    spans = []
    monkeypatch.setattr(
        ablation.Axes, 'axvspan', lambda *x, **_: spans.append(x[1:])
    )
    for name, recall in [('crane', 0.3), ('crane-other', 0.4)]:
        (reference / f'shop-{name}-0.json').write_text(
            json.dumps(
                {
                    'dataset': 'shop',
                    'model': name,
                    'test': {'recall@20': recall},
                }
            )
        )
    ablation.main()  # Nothing is missing, and the band is that of CRANE.
    assert len(fits) == 3
    monkeypatch.setitem(GROUPS['Steps'], '3', {'num_steps': 4})
    with pytest.raises(ValueError, match=r"steps-3-0\.json' was made with"):
        ablation.main()
    assert len(fits) == 3
    assert spans == [(0.3, 0.3)]

    monkeypatch.setitem(GROUPS['Steps'], '3', {'num_steps': 3})
    path = folder / 'shop-steps-3-1.json'
    for patience, match in [(11, None), (9, 'was made with arguments')]:
        arguments = {'epochs': 200, 'patience': patience}
        path.write_text(json.dumps({**record, 'arguments': arguments}))
        context = pytest.raises(ValueError, match=match) if match else None
        with context or nullcontext():  # One of longer patience will do.
            ablation.main()
    assert len(fits) == 3


def test_table(monkeypatch):
    monkeypatch.setattr(ablation, 'GROUPS', GROUPS)
    # Beyond two standard errors: .001 times 2 sqrt(3 / 2), or 2 sqrt(2); on
    # other data, .002 times 2 sqrt(2).
    spreads = {'shop': 0.001, 'mall': 0.002}
    monkeypatch.setattr(ablation, 'SPREADS', spreads)
    results = {
        'shop': {'crane': [0.3, 0.31], 'steps-2': [0.3075]},
        'market': {'crane': [0.5]},
        'fair': {'crane': [0.2], 'steps-2': [0.1943], 'steps-3': [0.1, 0.2]},
        'bazaar': {'steps-3': [0.5]},
    }
    assert ablation.table(results).splitlines() == [
        '| changed | shop | fair | bazaar |',
        '| --- | --- | --- | --- |',
        '| Steps: 2 | 0.3075 (**+0.0025**) | 0.1943 (**-0.0057**) | - |',
        '| Steps: 3 | - | 0.1500 (**-0.0500**, 2 seeds) | - |',
    ]
    results['shop']['steps-2'] = [0.3074]
    results['fair']['steps-2'] = [0.1944]
    row = '| Steps: 2 | 0.3074 (+0.0024) | 0.1944 (-0.0056) | - |'
    assert ablation.table(results).splitlines()[2] == row
