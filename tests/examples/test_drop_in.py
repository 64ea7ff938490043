r"""The examples that put RCA and CRANEConv into the models of others."""

import re
from pathlib import Path

import pytest
import torch
import torch_geometric.loader
import torch_geometric.typing
from torch.nn.utils.parametrize import register_parametrization
from torch_geometric.nn import LightGCN
from torch_geometric.transforms import ToUndirected
from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import RCA

EXAMPLES = Path(__file__).parents[2] / 'examples'
CELL = re.compile(r'(-?\d\.\d{4}) ± (\d\.\d{4})')


def read_table(stdout):
    r"""Returns the means and the standard deviations, row by row."""
    rows = {}
    for line in stdout.splitlines():
        if cells := CELL.findall(line):
            name = line[: CELL.search(line).start()].strip()
            rows[name] = [tuple(map(float, cell)) for cell in cells]
    return rows


def test_rca_drop_in_runs(run):
    result = run('rca_in_lightgcn.py', '--epochs', 1)
    assert result.error is None
    assert result.stderr == ''
    assert 'FAKE data' in result.stdout
    table = read_table(result.stdout)
    assert list(table) == ['LightGCN', 'HeteroConv']
    for plain, features, rca, gain in table.values():
        for mean, std in (plain, features, rca):
            assert 0 < mean < 1
            assert 0 < std < 0.5
        assert gain[0] == pytest.approx(rca[0] - features[0], abs=1.5e-4)
        # Spreads of a difference obey the triangle inequality:
        assert gain[1] <= features[1] + rca[1] + 2e-4
        assert len({plain[0], features[0], rca[0]}) == 3
    check_rca_drop_in(result.names)


def check_rca_drop_in(names):
    text = (EXAMPLES / 'rca_in_lightgcn.py').read_text()
    lines = re.search(r'class AddFeatures.*?\n\n\n', text, re.DOTALL)[0]
    lines = lines.splitlines()
    code = [line for line in lines if line.strip() and '"""' not in line]
    assert 8 < len(code) <= 15
    assert issubclass(names['PlainLightGCN'], LightGCN)
    data = ToUndirected()(FakeMultimodalDataset(60, 40)[0])
    for kind in ('PlainLightGCN', 'PlainHeteroConv'):
        check_rca_changes_nothing_else(names, names[kind], data)


def check_rca_changes_nothing_else(names, kind, data):
    torch.manual_seed(12)
    plain = kind(100, names['DIM'], num_layers=2)
    before = plain(data)
    assert [x.size(0) for x in before] == [60, 40]
    add = names['AddFeatures'](data, RCA(names['DIM'], num_modalities=2))
    register_parametrization(plain.embedding, 'weight', add)
    out = plain(data)
    assert (out[1] - before[1]).abs().max() > 0.01
    # A new RCA hands on what it is given, and linear maps to zero add nothing:
    add.fuse = torch.nn.Identity()
    torch.testing.assert_close(plain(data), out)
    for param in add.lins.parameters():
        torch.nn.init.zeros_(param)
    torch.testing.assert_close(plain(data), before)


def test_conv_drop_in_runs(run):
    result = run('conv_in_hetero.py', '--epochs', 1)
    assert result.error is None
    assert result.stderr == ''
    table = read_table(result.stdout)
    assert list(table) == ['to_hetero', 'HeteroConv']
    for row in table.values():
        assert len(row) == 3
        assert all(0 < mean < 1 and 0 < std < 0.5 for mean, std in row)
        assert len({mean for mean, _ in row}) == 3
    # Without parameters of its own, both wrappers make the same of it:
    assert table['to_hetero'][1:] == table['HeteroConv'][1:]
    assert table['to_hetero'][0] != table['HeteroConv'][0]


class Sampler:
    r"""Three neighbors of each node by each edge type, as the loader draws."""

    def __init__(self, data, num_neighbors, input_nodes, batch_size, replace):
        assert num_neighbors == [3, 3]
        assert input_nodes == 'user'
        assert replace
        assert batch_size == data['user'].num_nodes
        self.data = data

    def __iter__(self):
        block = self.data.clone()
        for store in block.edge_stores:
            col = store.edge_index[1]
            perm = torch.randperm(col.numel())
            perm = perm[col[perm].argsort(stable=True)]
            count = torch.bincount(col, minlength=store.size(1))
            start = count.cumsum(0) - count
            rank = torch.rand(store.size(1), 3) * count.unsqueeze(1)
            index = (start.unsqueeze(1) + rank.long())[count > 0].flatten()
            store.edge_index = store.edge_index[:, perm[index]]
            store.edge_weight = store.edge_weight[perm[index]]
        yield block


def check_blocks(result):
    assert result.error is None
    assert result.stderr == ''
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [1, 16]
    (_, *one), (_, *many) = [[float(cell) for cell in row] for row in rows]
    assert many[1] == pytest.approx(one[1] / 4, rel=0.15)
    assert many[0] > one[0] / 2  # By their own degrees, they stay apart.


def test_conv_on_blocks_by_stand_in(run, monkeypatch):
    monkeypatch.setattr(torch_geometric.loader, 'NeighborLoader', Sampler)
    monkeypatch.setattr(torch_geometric.typing, 'WITH_PYG_LIB', True)
    check_blocks(run('conv_on_blocks.py', '--draws', 1, 16))


@pytest.mark.skipif(
    not (WITH_PYG_LIB or WITH_TORCH_SPARSE),
    reason='neither pyg-lib nor torch_sparse is installed',
)
def test_conv_on_blocks(run):
    check_blocks(run('conv_on_blocks.py', '--draws', 1, 16))


def test_conv_on_blocks_without_sampler(run, monkeypatch):
    for name in ('WITH_PYG_LIB', 'WITH_TORCH_SPARSE'):
        monkeypatch.setattr(torch_geometric.typing, name, False)
    result = run('conv_on_blocks.py')
    line = 'Blocks need pyg-lib or torch_sparse, none is installed'
    assert result.error == line
    assert result.stdout == ''
