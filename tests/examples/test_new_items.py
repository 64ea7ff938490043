r"""The example of new items and new users."""

import re


def test_new_items_runs(run):
    result = run('new_items.py', '--epochs', 3)
    assert result.error is None
    assert result.stderr == ''
    out = result.stdout
    assert 'fake data' in out
    assert 'CRANE(600, 400, ' in out
    recall, chance = map(
        float, re.search(r'@10 .* (\d\.\d+), .* (\d\.\d+)\n', out).groups()
    )
    assert chance == 0.25
    assert chance < recall <= 1
    top = re.search(r'history \[3, 141, 59\]\nTop 10: \[(.*)\]', out)[1]
    top = [int(item) for item in top.split(', ')]
    assert len(set(top)) == 10
    assert not set(top) & {3, 141, 59}
    assert set(top) <= set(range(400))
    assert '1 of 1 new items lack every modality' in out
    assert out.endswith('largest score: 0.0\n')
