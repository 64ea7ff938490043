import json
import sys

import pytest

from crane_pyg._optional import require


def test_require():
    assert require('json') is json
    assert require('json.decoder') is json.decoder


def test_require_missing():
    match = r"^The Hub needs 'no_such', which .*: pip install no_such$"
    with pytest.raises(ImportError, match=match):
        require('no_such.module', 'The Hub')
    with pytest.raises(ImportError, match=r"^This needs 'no_such'"):
        require('no_such')


def test_require_of_a_broken_package(tmp_path, monkeypatch):
    # To install it again would not help:
    (tmp_path / 'broken_toy.py').write_text('import no_such.module')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such"):
        require('broken_toy')
    assert 'broken_toy' not in sys.modules
