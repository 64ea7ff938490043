r"""The example that keeps a model and its ranker."""

import pytest


def test_keep_and_load(run, tmp_path):
    for package in ['faiss', 'pyarrow', 'safetensors']:
        pytest.importorskip(package)
    result = run('keep_and_load.py', tmp_path / 'out')
    assert result.error is None
    assert result.stderr == ''
    lines = result.stdout.splitlines()
    assert lines[0] == 'These are fake data, made up on the spot.'
    losses = [float(line.split()[-1]) for line in lines[1:4]]
    assert losses[0] > losses[1] > losses[2] > 0
    assert lines[4:7] == [
        'The loaded model recommends the same: True',
        'The file holds the lists of the ranker: True',
        'The index finds what an exact search does: True',
    ]
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob('*.*')]
    assert sorted(map(str, names)) == [
        'out/model/config.json',
        'out/model/model.safetensors',
        'out/ranker.pt',
        'out/top10.npy',
        'out/top10.parquet',
    ]
