r"""The imports of the package, held against the picture in CONTRIBUTING.md."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'crane_pyg'
FILES = sorted(PACKAGE.rglob('*.py'))
GROUND = 'ground'


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {module_name(path): path for path in FILES}


def wing_of(module):
    r"""The folder of a module, or the ground floor."""
    parts = module.split('.')
    return GROUND if len(parts) < 2 or parts[1][0] == '_' else parts[1]


def imports_of(path):
    r"""The modules of the package that a file imports, and names of each; what
    only type checkers read is left out.
    """
    tree = ast.parse(path.read_text())
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] == 'crane_pyg':
                    yield alias.name, []
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, path
            if node.module.split('.')[0] == 'crane_pyg':
                yield node.module, [alias.name for alias in node.names]


def read_picture():
    r"""Which wing may import which others, as CONTRIBUTING.md draws it."""
    text = (ROOT / 'CONTRIBUTING.md').read_text()
    block = text.split('<!-- imports -->\n```text\n')[1].split('```')[0]
    out = {}
    for line in block.strip().splitlines():
        wing, _, others = line.partition('──▶')
        names = (name.split('(')[0].strip() for name in others.split(','))
        out[wing.strip()] = set(filter(None, names))
    return out


def test_wings_import_what_the_picture_says():
    found = defaultdict(set)
    for module, path in MODULES.items():
        if module == 'crane_pyg':
            continue
        for name, _ in imports_of(path):
            if wing_of(name) != wing_of(module):
                found[wing_of(module)].add(wing_of(name))
    assert dict(found) == read_picture()


def test_nn_takes_top_k_alone_from_ranking():
    taken = [
        (name, names)
        for module, path in MODULES.items()
        if wing_of(module) == 'nn'
        for name, names in imports_of(path)
        if wing_of(name) == 'ranking'
    ]
    assert taken == [('crane_pyg.ranking.top_k', ['top_k'])]


@pytest.mark.parametrize('module', MODULES)
def test_no_private_name_crosses_wings(module):
    for name, names in imports_of(MODULES[module]):
        if wing_of(name) not in (wing_of(module), GROUND):
            assert not any(part[0] == '_' for part in name.split('.')), name
            assert not any(part[0] == '_' for part in names), names


def test_no_circles():
    graph = {
        module: {
            target
            for name, names in imports_of(path)
            for target in (name, *(f'{name}.{n}' for n in names))
            if target in MODULES and target != module
        }
        for module, path in MODULES.items()
    }
    # The face of a wing hands names on, and is imported by other wings only:
    done = set()
    while ready := {m for m in graph if m not in done and graph[m] <= done}:
        done |= ready
    assert done == set(graph), {m: graph[m] - done for m in set(graph) - done}


@pytest.mark.parametrize('module', MODULES)
def test_files_are_short(module):
    assert len(MODULES[module].read_text().splitlines()) <= 350
