import dataclasses

import numpy as np
import pytest

from crane_pyg.training import Recipe
from crane_pyg.training.recipe import parse_metric


def test_recipe():
    recipe = Recipe()
    assert dataclasses.asdict(recipe) == {
        'epochs': 200,
        'patience': 10,
        'min_epochs': 0,
        'metric': 'recall@20',
        'lr': 0.003,
        'batch_size': 8192,
        'min_batches': 25,
        'num_negatives': 4,
        'edge_dropping': 0.8,
        'disjoint': True,
        'autocast': None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.epochs = 3
    assert Recipe(patience=None).patience is None
    assert Recipe(lr=1) == Recipe(lr=1.0)


def test_recipe_holds_plain_values():
    recipe = Recipe(
        epochs=np.int64(3),
        patience=np.int32(2),
        lr=np.float64(0.1),
        disjoint=np.bool_(False),
    )
    values = dataclasses.asdict(recipe).values()
    assert {type(x) for x in values} <= {int, float, bool, str, type(None)}
    assert recipe == Recipe(epochs=3, patience=2, lr=0.1, disjoint=False)


@pytest.mark.parametrize(
    ('num_pairs', 'size'), [(99, 4), (100, 5), (10**6, 8192)]
)
def test_recipe_batch_size(num_pairs, size):
    assert Recipe().batch_size_of(num_pairs) == size


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('epochs', 0),
        ('epochs', 2.0),
        ('epochs', None),
        ('patience', 0),
        ('patience', True),
        ('patience', '10'),
        ('min_epochs', -1),
        ('lr', 0),
        ('lr', -0.1),
        ('lr', float('nan')),
        ('lr', float('inf')),
        ('lr', '0.1'),
        ('batch_size', 0),
        ('min_batches', 0),
        ('num_negatives', 0),
        ('edge_dropping', 1.0),
        ('edge_dropping', -0.1),
        ('edge_dropping', None),
        ('edge_dropping', False),
        ('disjoint', 2),
        ('disjoint', 'no'),
        ('autocast', 'float16'),
        ('autocast', 'bf16'),
        ('metric', 'recal@20'),
        ('metric', 'recall'),
        ('metric', 'recall@0'),
        ('metric', 'recall@²'),
        ('metric', 'recall@-1'),
        ('metric', '@20'),
        ('metric', 20),
    ],
)
def test_recipe_errors(name, value):
    match = rf"'{name}' needs .*\(got '?{value}'?\)"
    with pytest.raises(ValueError, match=match):
        Recipe(**{name: value})


def test_recipe_lists_known_metrics():
    with pytest.raises(ValueError, match=r"'map', .*'ndcg', .*'recall'"):
        Recipe(metric='hits@20')
    assert parse_metric('hit_ratio@7') == ('hit_ratio', 7)
