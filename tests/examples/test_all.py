r"""What holds for each example."""

from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'

LOOP = 'by_hand.py'
SCRIPTS = sorted(
    path.name for path in EXAMPLES.glob('*.py') if path.name != 'plots.py'
)
TRAINING = sorted(
    {'rca_in_lightgcn.py', 'conv_in_hetero.py', 'many_modalities.py'}
    | {'amazon_sports.py', 'new_items.py'}
)


def test_examples_are_found():
    assert len(SCRIPTS) > 8
    assert {LOOP, *TRAINING} < set(SCRIPTS)


@pytest.mark.parametrize('name', SCRIPTS)
def test_example_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) <= 110


@pytest.mark.parametrize('name', SCRIPTS)
def test_example_trains_through_fit(name):
    text = (EXAMPLES / name).read_text()
    assert ('.backward()' in text) == (name == LOOP)


@pytest.mark.parametrize('name', TRAINING)
def test_example_needs_an_epoch(run, name):
    result = run(name, '--epochs', 0)
    assert isinstance(result.error, ValueError)
    assert "'epochs' needs to be" in str(result.error)
    assert '(got 0)' in str(result.error)
    assert result.stdout == ''
