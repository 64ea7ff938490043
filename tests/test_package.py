import importlib
import importlib.metadata
import importlib.resources
import re
import subprocess
import sys
from pathlib import Path

import pytest

import crane_pyg

ROOT = Path(__file__).parent.parent
SUBPACKAGES = [
    'datasets',
    'explain',
    'nn',
    'ranking',
    'training',
    'transforms',
]


def test_version():
    version = crane_pyg.__version__
    assert re.fullmatch(r'\d+\.\d+\.\d+([a-z]+\d+)?', version)
    assert importlib.metadata.version('crane_pyg') == version

    files = [ROOT / 'pyproject.toml', ROOT / 'setup.cfg']
    files += (ROOT / 'crane_pyg').rglob('*.py')
    stated = [
        path.relative_to(ROOT).as_posix()
        for path in files
        for line in path.read_text().splitlines()
        if re.match(r'(__version__|version)\s*=', line) and version in line
    ]
    assert stated == ['crane_pyg/__init__.py']


@pytest.mark.parametrize('name', SUBPACKAGES)
def test_all(name):
    module = importlib.import_module(f'crane_pyg.{name}')
    assert len(module.__all__) > 0
    assert len(set(module.__all__)) == len(module.__all__)
    for key in module.__all__:
        assert getattr(module, key).__doc__, key


@pytest.mark.parametrize('name', SUBPACKAGES)
def test_classes(name):
    module = importlib.import_module(f'crane_pyg.{name}')
    listed = [*module.classes, *getattr(module, 'functions', [])]
    assert sorted(listed) == sorted(module.__all__)
    public = {
        key
        for key, value in vars(module).items()
        if not key.startswith('_')
        and callable(value)
        and value.__module__.startswith(f'crane_pyg.{name}.')
    }
    assert public == set(module.__all__)


def run(code):
    return subprocess.run(
        [sys.executable, '-W', 'error::DeprecationWarning:crane_pyg']
        + ['-c', code],
        capture_output=True,
        text=True,
        check=False,
    )


def test_modules_are_attributes():
    names = SUBPACKAGES
    assert sorted(crane_pyg._WINGS) == sorted(names)
    assert set(names) <= set(dir(crane_pyg))
    out = run(
        'import crane_pyg\n'
        + ''.join(f'crane_pyg.{name}.__all__\n' for name in names)
        + "assert not hasattr(crane_pyg, 'models')\n"
    )
    assert out.returncode == 0, out.stderr


def test_main_names():
    assert sorted(crane_pyg._NAMES) == sorted(
        set(crane_pyg.__all__) - {'__version__'}
    )
    for name, wing in crane_pyg._NAMES.items():
        module = importlib.import_module(f'crane_pyg.{wing}')
        assert getattr(crane_pyg, name) is getattr(module, name)
        assert name in module.__all__


def test_import_alone():
    r"""Every module can be the first to be imported."""
    names = [f'crane_pyg.{name}' for name in SUBPACKAGES]
    out = run(
        'import importlib, os, torch_geometric.nn, torch_geometric.transforms\n'
        f'for name in {names}:\n'
        '    pid = os.fork()\n'
        '    if pid == 0:\n'
        '        importlib.import_module(name)\n'
        '        os._exit(0)\n'
        '    assert os.waitpid(pid, 0)[1] == 0, name\n'
    )
    assert out.returncode == 0, out.stderr


def test_documented_imports():
    out = run(
        'import sys, crane_pyg\n'
        'assert "torch" not in sys.modules\n'
        'from crane_pyg import CRANE, Ranker, Recipe, fit\n'
        'from crane_pyg.nn import CRANE, RCA, CRANEConv\n'
        'import crane_pyg.transforms as T\n'
        'T.BuildDualGraph, CRANEConv(), RCA(4, 2)\n'
    )
    assert out.returncode == 0, out.stderr


def test_typed():
    files = ['py.typed', 'explain/page.html.jinja']
    package = importlib.resources.files('crane_pyg')
    assert all(package.joinpath(name).is_file() for name in files)
    text = (ROOT / 'pyproject.toml').read_text()
    assert f'\ncrane_pyg = {files}\n' in text
