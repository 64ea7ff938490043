r"""The example of one, several and missing modalities."""

import re


def test_many_modalities_runs(run):
    result = run('many_modalities.py', '--epochs', 1)
    assert result.error is None
    assert result.stderr == ''
    first, *lines = result.stdout.splitlines()
    assert 'FAKE data' in first
    names = [re.sub(r' +0\.\d{4}$', '', line) for line in lines]
    every = 'image, text, audio, table'
    assert names[:3] == ['text', 'image, text', every]
    assert names[-1] == every
    recalls = [float(line[-6:]) for line in (*lines[:3], lines[-1])]
    assert len(set(recalls)) == 4
    assert min(recalls) > 0.1  # That of chance is 20 in 400.
    assert '120 image, 120 text, 120 audio, 120 table' in lines[3]
    assert re.fullmatch(r'[1-9]\d* lack all of them', lines[4])
