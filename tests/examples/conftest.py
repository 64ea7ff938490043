r"""Runs the examples as their users would, but without a process for each."""

import runpy
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / 'examples'


class Result(NamedTuple):
    r"""What an example has left: an error is an exception, or the text that it
    has exited with.
    """

    names: dict
    stdout: str
    stderr: str
    error: object = None


@pytest.fixture
def run(monkeypatch, capsys):
    r"""Runs an example. Its warnings are errors, as all in the tests are."""

    def main(name, *args):
        path, names, error = EXAMPLES / name, {}, None
        monkeypatch.setattr(sys, 'argv', [str(path), *map(str, args)])
        monkeypatch.setattr(sys, 'path', [str(EXAMPLES), *sys.path])
        capsys.readouterr()
        with torch.random.fork_rng(devices=[]):
            try:
                names = runpy.run_path(str(path), run_name='__main__')
            except SystemExit as e:
                error = e.code
            except Exception as e:  # It would end with this traceback.
                error = e
        return Result(names, *capsys.readouterr(), error)

    return main
