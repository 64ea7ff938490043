r"""The examples that put RCA and CRANEConv into the models of others."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import torch
from torch.nn import Identity
from torch_geometric.nn import LightGCN
from torch_geometric.transforms import ToUndirected
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import RCA

EXAMPLES = Path(__file__).parents[2] / 'examples'
NAMES = ['rca_in_lightgcn.py', 'conv_in_hetero.py']
CELL = re.compile(r'(-?\d\.\d{4}) ± (\d\.\d{4})')


def read_table(stdout):
    r"""Returns the means and the standard deviations, row by row."""
    rows = {}
    for line in stdout.splitlines():
        if cells := CELL.findall(line):
            name = line[: CELL.search(line).start()].strip()
            rows[name] = [tuple(map(float, cell)) for cell in cells]
    return rows


@pytest.mark.parametrize('name', NAMES)
def test_drop_in_is_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 150


@pytest.mark.parametrize('name', NAMES)
def test_drop_in_rejects_epochs(run, name):
    process = run(name, '--epochs', '0')
    assert process.returncode == 2
    assert "'--epochs' needs to be positive (got 0)" in process.stderr


def test_rca_drop_in_runs(run):
    process = run('rca_in_lightgcn.py', '--epochs', '2')
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    assert 'FAKE data' in process.stdout
    table = read_table(process.stdout)
    assert list(table) == ['LightGCN', 'HeteroConv']
    for plain, features, rca, gain in table.values():
        for mean, std in (plain, features, rca):
            assert 0 < mean < 1
            assert 0 < std < 0.5
        assert gain[0] == pytest.approx(rca[0] - features[0], abs=1.5e-4)
        # Spreads of a difference obey the triangle inequality:
        assert gain[1] <= features[1] + rca[1] + 2e-4
        assert len({plain[0], features[0], rca[0]}) == 3


@pytest.mark.parametrize('name', ['MultimodalLightGCN', 'MultimodalHeteroConv'])
def test_rca_drop_in_changes_few_lines(name):
    text = (EXAMPLES / 'rca_in_lightgcn.py').read_text()
    node = next(
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name == name
    )
    lines = ast.get_source_segment(text, node).splitlines()
    code = [line for line in lines if line.strip() and '"""' not in line]
    assert 8 < len(code) <= 15


@pytest.fixture(scope='module')
def example():
    spec = importlib.util.spec_from_file_location(
        'rca_in_lightgcn', EXAMPLES / 'rca_in_lightgcn.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data():
    return ToUndirected()(FakeMultimodalDataset(60, 40)[0])


@pytest.mark.parametrize('kind', ['LightGCN', 'HeteroConv'])
def test_rca_drop_in_changes_nothing_else(example, data, kind):
    torch.manual_seed(12)
    plain = getattr(example, f'Plain{kind}')(data)
    fuse = RCA(example.DIM, num_modalities=2)
    model = getattr(example, f'Multimodal{kind}')(data, fuse)
    names = model.load_state_dict(plain.state_dict(), strict=False)
    assert names.unexpected_keys == []
    assert {name.split('.')[0] for name in names.missing_keys} == {
        'lins',
        'fuse',
    }

    expected = plain(data)
    out = model(data)
    assert [x.size(0) for x in out] == [60, 40]
    assert (out[1] - expected[1]).abs().max() > 0.01
    # A new RCA hands on what it is given:
    model.fuse = Identity()
    torch.testing.assert_close(model(data), out)
    for param in model.lins.parameters():
        torch.nn.init.zeros_(param)
    torch.testing.assert_close(model(data), expected)


def test_rca_drop_in_plain_light_gcn(example, data):
    model = example.PlainLightGCN(data)
    assert isinstance(model, LightGCN)
    edge_index = data.to_homogeneous().edge_index
    expected = model.get_embedding(edge_index).split([60, 40])
    torch.testing.assert_close(model(data), expected)


def check_conv_table(table, names):
    assert list(table) == names
    for row in table.values():
        assert len(row) == 3
        assert all(0 < mean < 1 and 0 < std < 0.5 for mean, std in row)
        assert len({mean for mean, _ in row}) == 3


def test_conv_drop_in_runs(run):
    process = run('conv_in_hetero.py', '--epochs', '1')
    assert process.returncode == 0, process.stderr
    assert process.stderr == ''
    names = ['to_hetero, full', 'HeteroConv, full', 'HeteroConv, blocks']
    has_sampler = WITH_PYG_LIB or WITH_TORCH_SPARSE
    assert ('No blocks' in process.stdout) == (not has_sampler)
    names = names if has_sampler else names[:2]
    check_conv_table(read_table(process.stdout), names)


def test_conv_drop_in_without_sampler(run):
    code = (
        'import torch_geometric.typing as t\n'
        't.WITH_PYG_LIB = t.WITH_TORCH_SPARSE = False'
    )
    process = run('conv_in_hetero.py', '--epochs', '1', code=code)
    assert process.returncode == 0, process.stderr
    line = 'No blocks, as neither pyg-lib nor torch_sparse is installed'
    assert process.stdout.splitlines()[0] == line
    names = ['to_hetero, full', 'HeteroConv, full']
    check_conv_table(read_table(process.stdout), names)
