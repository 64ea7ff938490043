import json
import sys

import convergence
import models
import pytest

TAGGED = ['lightgcn-same-recipe-all-pairs', 'freedom-neighborhood-192']


def save(folder, dataset, model, seed=0, **record):
    record = {
        'dataset': dataset,
        'model': model,
        'seed': seed,
        'valid': {'recall@20': 0.2},
        'curve': [[1.0, 0.1], [2.0, 0.2]],
        **record,
    }
    path = folder / f'{dataset}-{model}-{seed}.json'
    path.write_text(json.dumps(record))


def test_draws_every_model(tmp_path, monkeypatch):
    for model in [*models.MODELS, *TAGGED]:
        save(tmp_path, 'shop', model)
    save(tmp_path, 'shop', 'mf-bpr', seed=1)
    save(tmp_path, 'other', 'crane', device='NVIDIA H200')
    monkeypatch.setattr(
        sys, 'argv', ['convergence.py', '--results', str(tmp_path)]
    )
    convergence.main()
    assert [path.name for path in tmp_path.glob('*.png')] == [
        'convergence-shop.png'
    ]
    assert (tmp_path / 'convergence-shop.png').stat().st_size > 1000


@pytest.mark.parametrize('name', [*models.MODELS, *TAGGED])
def test_family_is_a_model(name):
    assert convergence.family(name) in models.MODELS
