import sys

import floors
import gpu
import measure
import memory
import pytest
import scaling
import speed
import torch
from records import find, put, read
from torch_geometric.testing import onlyCUDA

import crane_pyg.transforms as T

IS_LINUX = sys.platform.startswith('linux')
SMALL = (60, 40, 300)


@pytest.fixture
def run(monkeypatch, tmp_path):
    r"""Runs a script on small data, and returns what it keeps."""
    threads = torch.get_num_threads()
    for module in (speed, memory, gpu):
        monkeypatch.setattr(module, 'SPORTS', SMALL)
        monkeypatch.setattr(module, 'SIZES', {'image': 24, 'text': 8})
    monkeypatch.setattr(speed, 'CHANNELS_KEPT', 4)
    monkeypatch.setattr(floors, 'WIDTH', 64)
    monkeypatch.setattr(floors, 'COPIED', 2**12)

    def main(module, *argv):
        argv = [*argv, '--threads', str(threads), '--results', str(tmp_path)]
        monkeypatch.setattr(sys, 'argv', [module.__file__, *argv])
        with torch.random.fork_rng(devices=[]):
            module.main()
        name = module.__name__
        record = find(read(tmp_path / measure.FILE), table=name)
        assert record['threads'] == threads
        return {line['name']: line['value'] for line in record['rows']}

    return main


@pytest.mark.parametrize('power', [0.5, 1.0, 2.0])
def test_slope(power):
    x = [10.0, 30.0, 500.0]
    y = [7 * value**power for value in x]
    assert measure.slope(x, y) == pytest.approx(power)


def test_medians():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in 'ab'}
    times = measure.medians(runs, repeats=3)
    assert ''.join(calls) == 'abababab'
    assert list(times) == ['a', 'b']
    assert min(times.values()) >= 0


def test_table_tells_what_was_missed():
    facts = ['revision', 'date', 'threads', 'load', 'torch', 'torch_geometric']
    rows = [
        measure.row('slow', 2.0, 's', 1.5, 'why'),
        measure.row('fast', 1.5, 's', 1.5),
        measure.row('free', 9.0, 's'),
    ]
    record = dict.fromkeys(facts, '?') | {'note': 'busy', 'title': 'Title'}
    record['malloc'] = {'MALLOC_MMAP_MAX_': '0'}
    lines = measure.table({**record, 'rows': rows}).splitlines()
    assert lines[0] == '**Title**'
    assert lines[4:7] == [
        '| slow | 2 s | 1.5 s | **missed** | why |',
        '| fast | 1.5 s | 1.5 s | yes |  |',
        '| free | 9 s | - | - |  |',
    ]
    assert lines[-1].endswith('; `MALLOC_MMAP_MAX_=0`; busy</sub>')


def test_measure_writes_page(monkeypatch, tmp_path):
    page = tmp_path / 'page.md'
    begin, end = '<!-- speed:begin -->', '<!-- speed:end -->'
    page.write_text(f'a\n{begin}\nold\n{end}\nb\n')
    monkeypatch.setattr(measure, 'PAGE', page)
    facts = ['revision', 'date', 'threads', 'load', 'torch', 'torch_geometric']
    record = dict.fromkeys(facts, '?') | {'note': '', 'title': 'T', 'rows': []}
    record['malloc'] = {}
    put(tmp_path / measure.FILE, {**record, 'table': 'memory'})
    argv = ['measure.py', '--write', '--results', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', argv)
    measure.main()
    text = measure.table(record)
    assert page.read_text() == f'a\n{begin}\n{text}\n{end}\nb\n'


def test_fake_graph():
    data = measure.fake_graph(*SMALL)
    pairs = data['user', 'rates', 'item'].edge_index
    assert pairs.size() == (2, 300)
    assert pairs.unique(dim=1).size() == (2, 300)
    # Few have much, and are the first:
    assert pairs[0].float().mean() < 25
    assert pairs[1].float().mean() < 18
    held_out = data['user', 'rates', 'item'].test_edge_label_index
    assert held_out[0].equal(torch.arange(60))
    size = measure.set_features(data, {'image': 5})
    assert size == 4 * 40 * 5
    assert T.BuildDualGraph(k=2)(data)['item', 'similar_to', 'item']


def test_speed(run, monkeypatch):
    pytest.importorskip('faiss')
    monkeypatch.setattr(
        speed, 'imports', lambda repeats: measure.row('import', 1.0, 'ms', 50)
    )
    values = run(speed, '--repeats', '1', '--knn-rows', '50', '60')
    assert len(values) == 16
    assert min(values.values()) > 0


@pytest.mark.skipif(not IS_LINUX, reason='Reads /proc')
def test_memory(run, monkeypatch):
    other = memory.in_other_process

    def here(args, call, setting):
        if setting == memory.THRESHOLD:  # One more process is enough.
            return other(args, call, setting)
        return eval(call, {**vars(memory)})

    monkeypatch.setattr(memory, 'in_other_process', here)
    large = ['--large', '90', '60', '400', '--repeats', '1']
    values = run(memory, '--knn-rows', '50', *large)
    assert len(values) == 10
    assert values['training, all but the features'] > 0.05


@onlyCUDA
def test_gpu(run, monkeypatch):
    monkeypatch.setattr(gpu, 'MANY_ROWS', 50)
    values = run(gpu, '--repeats', '1')
    assert len(values) == 10
    assert min(values.values()) > 0


@pytest.mark.skipif(not IS_LINUX, reason='Reads /proc')
def test_scaling(run):
    sizes = ['3000', '20000']
    values = run(scaling, '--repeats', '1', '--sizes', *sizes)
    assert len(values) == 5


@pytest.mark.skipif(not IS_LINUX, reason='Reads /proc')
def test_peak_memory():
    before = measure.reset_peak()
    x = torch.ones(2**24)
    assert measure.memory('VmHWM') > before + x.nbytes // 2
    del x
    assert measure.reset_peak() < before + 2**25
