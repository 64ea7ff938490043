r"""The main example: what it prints, writes and refuses."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_geometric.testing import onlyCUDA

from crane_pyg.datasets import FakeMultimodalDataset

EXAMPLE = Path(__file__).parents[2] / 'examples' / 'amazon_sports.py'
METRICS = ['recall@10', 'ndcg@10', 'recall@20', 'ndcg@20']
ROWS = ['most popular', 'item-kNN', 'EASE', 'CRANE', 'CRANE + ranker']
TIKTOK = Path(os.environ.get('CRANE_PYG_DATA', ''), 'tiktok')


@pytest.fixture
def main(run, tmp_path, monkeypatch):
    r"""Runs the example in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def main(*args):
        result = run('amazon_sports.py', *args)
        assert result.error is None
        return result.stdout

    return main


@pytest.fixture
def fail(run, tmp_path, monkeypatch):
    r"""Runs the example to an error, of which it returns the last line."""
    monkeypatch.chdir(tmp_path)

    def fail(*args):
        result = run('amazon_sports.py', *args)
        if isinstance(result.error, Exception):
            return f'{type(result.error).__name__}: {result.error}'
        assert result.error == 2
        return result.stderr.strip().splitlines()[-1]

    return fail


def read_table(stdout):
    r"""Returns the rows of the closing table."""
    lines = stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if line.split() == METRICS)
    table = {}
    for line in lines[head + 1 : head + 1 + len(ROWS)]:
        *name, _, _, _, _ = line.split()
        table[' '.join(name)] = [float(value) for value in line.split()[-4:]]
    return table


def read_metrics(path):
    return json.loads(Path(path).read_text())


def read_checkpoint(path):
    content = torch.load(path, weights_only=True)
    return content['meta'], content['state'], content['rng']


def interrupt(folder, *args):
    r"""Stops a run after its first epoch, as a user would, and returns how it
    ended.
    """
    # What a shell starts in the background ignores interrupts otherwise:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [sys.executable, str(EXAMPLE), *map(str, args)],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': str(torch.get_num_threads())},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    try:
        while not (folder / 'last.ckpt').exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def check_interrupted(folder, code, stdout, stderr):
    assert code == 1
    assert 'Stopped; --resume goes on from --checkpoint.' in stderr
    assert 'Traceback' not in stderr
    assert 'Test at epoch' not in stdout
    assert os.listdir(folder) == ['last.ckpt']
    _, state, _ = read_checkpoint(folder / 'last.ckpt')
    assert len(state['history']['epochs']) == 1


def check_demo(stdout):
    assert stdout.startswith('DEMO: these are fake data')
    assert 'on FAKE data' in stdout
    assert re.search(r'fake: 1\d{4} training pairs, CRANE\(2000, 1200', stdout)
    table = read_table(stdout)
    assert list(table) == ROWS
    for values in table.values():
        assert all(0 < value < 1 for value in values)
    # Recommendations of three users, of which none is in their history:
    lines = [line for line in stdout.splitlines() if line.startswith('User')]
    assert len(lines) == 3
    for line in lines:
        history, top = line.split('top 5:')
        history = json.loads(history[history.index('[') : -2])
        assert len(json.loads(top)) == 5
        assert not set(history) & set(json.loads(top))


def check_metrics(metrics, stdout):
    assert set(metrics) == {
        'dataset',
        'seed',
        'best_epoch',
        'epochs',
        'seconds_per_epoch',
        'peak_rss_mb',
        'valid',
        'test',
        'test_alone',
        'weights',
    }
    assert metrics['dataset'] == 'fake'
    assert metrics['seed'] == 0
    assert metrics['epochs'] == 2
    assert metrics['best_epoch'] in (1, 2)
    assert f'Test at epoch {metrics["best_epoch"]} ' in stdout
    assert 0.01 < metrics['seconds_per_epoch'] < 300
    assert 100 < metrics['peak_rss_mb'] < 4000
    for key in ['valid', 'test', 'test_alone']:
        assert list(metrics[key]) == METRICS
        assert metrics[key]['recall@20'] > metrics[key]['recall@10'] > 0
    table = read_table(stdout)
    for key, row in [('test', 'CRANE + ranker'), ('test_alone', 'CRANE')]:
        out = [round(value, 4) for value in metrics[key].values()]
        assert out == pytest.approx(table[row], abs=1e-6)
    assert metrics['valid'] != metrics['test']
    assert set(metrics['weights']) > {'co_rated', 'ease'}


def test_example_demo_interrupt_and_resume(main, tmp_path):
    args = ['--demo', '--epochs', 2, '--metrics-file']
    whole = main(*args, 'whole.json', '--checkpoint', 'whole.ckpt')
    assert sorted(os.listdir()) == ['whole.ckpt', 'whole.json']
    check_demo(whole)
    expected = read_metrics('whole.json')
    check_metrics(expected, whole)

    folder = tmp_path / 'interrupted'
    folder.mkdir()
    saved = ['--checkpoint', folder / 'last.ckpt']
    start = ['--demo', '--epochs', 50, *saved]
    check_interrupted(folder, *interrupt(folder, *start))

    # As if it had never been stopped, whichever epoch was the best:
    pictures = pytest.importorskip('matplotlib') and tmp_path / 'pictures'
    pictures.mkdir()
    resume = [*saved, '--resume', '--plot', pictures]
    stdout = main(*args, 'out.json', *resume)
    assert read_table(stdout) == read_table(whole)
    assert sorted(os.listdir(pictures)) == ['items.png', 'training.png']
    out = read_metrics('out.json')
    for key in ['valid', 'test', 'epochs', 'best_epoch', 'weights']:
        assert out[key] == expected[key]
    check_same_state(folder / 'last.ckpt', 'whole.ckpt')


def check_same_state(path, expected_path):
    meta, state, rng = read_checkpoint(path)
    expected_meta, expected, expected_rng = read_checkpoint(expected_path)
    assert meta == expected_meta
    assert torch.equal(rng, expected_rng)
    for history in (state['history'], expected['history']):
        for row in history['epochs']:
            del row['seconds']
    assert state['history'] == expected['history']
    first, last = state['history']['epochs']
    assert 0 < last['loss'] < first['loss'] < 2
    for name in ('model', 'best'):
        assert state[name].keys() == expected[name].keys()
        for key, value in state[name].items():
            assert torch.equal(value, expected[name][key]), key


@onlyCUDA
def test_example_on_a_gpu(main):
    args = ['--demo', '--device', 'cuda', '--checkpoint', 'last.ckpt']
    first = main(*args, '--epochs', 1)
    assert read_table(first).keys() == set(ROWS)
    again = main(*args, '--epochs', 2, '--resume', '--plot', '.')
    table = read_table(again)
    assert table['CRANE'][0] > table['most popular'][0]
    assert Path('items.png').stat().st_size > 1000


def write_mmrec(folder, dataset, end='\r\n'):
    r"""Writes a data set in the MMRec layout, with the line ends of Windows."""
    folder.mkdir()
    data = dataset[0]
    store = data['user', 'rates', 'item']
    lines = ['userID\titemID\tx_label']
    for label, key in enumerate(
        ['edge_index', 'val_edge_label_index', 'test_edge_label_index']
    ):
        lines += [f'{u}\t{i}\t{label}' for u, i in store[key].t().tolist()]
    text = ''.join(line + end for line in lines)
    (folder / 'toy.inter').write_bytes(text.encode())
    for name in dataset.modalities:
        x = data['item'][f'x_{name}'].numpy()
        np.save(folder / f'{name}_feat.npy', x)


def test_example_data_folder(main, fail, tmp_path):
    sizes = {'image': 16, 'text': 8}
    dataset = FakeMultimodalDataset(200, 120, sizes, missing_rate=0.1)
    folder = tmp_path / 'shop'
    write_mmrec(folder, dataset)
    files = sorted(os.listdir(folder))
    folder.chmod(0o555)

    args = ['--data', folder, '--root', 'cache', '--epochs', 1]
    args += ['--checkpoint', 'last.ckpt']
    stdout = main(*args, '--metrics-file', 'out.json')
    edge_index = dataset[0]['user', 'rates', 'item'].edge_index
    title = f'shop: {edge_index.size(1)} training pairs, CRANE(200, 120, '
    assert title + f'in_channels={sizes}' in stdout
    assert 'fake' not in stdout.lower()
    assert list(read_table(stdout)) == ROWS
    assert read_metrics('out.json')['dataset'] == 'shop'
    assert sorted(os.listdir(folder)) == files
    cache = tmp_path / 'cache' / 'processed' / 'shop'
    assert [path.name for path in cache.iterdir()] == ['data.pt']

    # A checkpoint of other data is refused, and kept:
    before = Path('last.ckpt').read_bytes()
    line = fail('--demo', '--checkpoint', 'last.ckpt', '--resume')
    assert line.startswith("ValueError: The checkpoint 'last.ckpt' needs to ")
    assert Path('last.ckpt').read_bytes() == before


def test_example_without_data(fail):
    line = fail('--root', 'empty')
    assert line.startswith('FileNotFoundError: ')
    for name in ['sports.inter', 'image_feat.npy', 'text_feat.npy']:
        assert name in line
    assert str(Path('empty', 'sports')) in line
    assert 'MMRec' in line
    assert '--demo' in line
    assert os.listdir() == []


@pytest.mark.filterwarnings('ignore:.*dropped .* held-out pairs:UserWarning')
@pytest.mark.skipif(
    not TIKTOK.is_dir() or 'CRANE_PYG_DATA' not in os.environ,
    reason="the environment variable 'CRANE_PYG_DATA' names no folder with the "
    "data set 'tiktok'",
)
def test_example_on_real_data(main):
    args = ['--data', TIKTOK.absolute(), '--root', 'cache', '--epochs', 2]
    stdout = main(*args, '--metrics-file', 'out.json')
    assert stdout.startswith('tiktok: ')
    assert list(read_table(stdout)) == ROWS
    metrics = read_metrics('out.json')
    assert metrics['dataset'] == 'tiktok'
    assert metrics['epochs'] == 2
    # Two epochs are enough to beat chance many times over:
    num_items = np.load(TIKTOK / 'image_feat.npy', mmap_mode='r').shape[0]
    assert metrics['test']['recall@20'] > 5 * 20 / num_items


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('--checkpoint', 'no/c.pt'),
        ('--metrics-file', 'no/m.json'),
        ('--plot', 'no'),
    ],
)
def test_example_missing_folder(fail, option, value):
    line = fail('--demo', option, value)
    assert value in line
    assert re.search(
        'needs to be a file in a folder that (exists|is there)', line
    )
    assert os.listdir() == []


def test_example_folder_in_place_of_a_file(fail):
    Path('m.json').mkdir()
    line = fail('--demo', '--metrics-file', 'm.json')
    assert line.endswith('m.json needs to be a file in a folder that exists')
    assert os.listdir() == ['m.json']


def test_example_resume_needs_checkpoint(fail):
    assert "'resume' needs a 'checkpoint' to go on from" in fail(
        '--demo', '--resume'
    )
