r"""The example of new items and new users."""

import re
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'new_items.py'


def test_new_items_is_short():
    assert len(EXAMPLE.read_text().splitlines()) < 150


def test_new_items_rejects_epochs(run):
    process = run('new_items.py', '--epochs', '0')
    assert process.returncode == 2
    assert "'--epochs' needs to be positive (got 0)" in process.stderr


def test_new_items_runs(run):
    process = run('new_items.py', '--epochs', '3')
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    out = process.stdout
    assert 'fake data' in out
    assert 'CRANE(600, 400, ' in out
    recall, chance = map(
        float, re.search(r'@10 .* (\d\.\d+), .* (\d\.\d+)\n', out).groups()
    )
    assert chance == 0.25
    assert chance < recall <= 1
    top = re.search(r'items \[3, 141, 59\]\nTop 10: \[(.*)\]', out)[1]
    top = [int(item) for item in top.split(', ')]
    assert len(set(top)) == 10
    assert not set(top) & {3, 141, 59}
    assert set(top) <= set(range(400))
    assert '1 of 1 new items lack every modality' in out
    assert out.endswith('largest score: 0.0\n')
