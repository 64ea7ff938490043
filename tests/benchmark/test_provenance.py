import subprocess

import provenance
import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch):
    r"""A repository of one script and one result."""
    folder = tmp_path / 'benchmark'
    (folder / 'results').mkdir(parents=True)
    (folder / 'script.py').touch()
    (folder / 'results' / 'a.json').touch()
    monkeypatch.setattr(provenance, 'FOLDER', folder)
    identity = ['-c', 'user.name=a', '-c', 'user.email=a@example.com']
    for args in [['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'a']]:
        subprocess.check_call(['git', *identity, *args], cwd=tmp_path)
    return folder


def test_revision(folder):
    clean = provenance.revision()
    commit = provenance.git('rev-parse', 'HEAD')
    assert commit.startswith(clean)
    (folder / 'results' / 'a.json').write_text('{}')
    (folder / 'results' / 'b.json').touch()
    assert provenance.revision() == clean
    (folder / 'script.py').write_text('pass')
    assert provenance.revision() == f'{clean}-dirty'


def test_provenance(folder):
    origin = provenance.provenance()
    assert origin['revision'] == provenance.revision()
    assert set(origin['versions']) > {'torch', 'torch_geometric', 'numpy'}
