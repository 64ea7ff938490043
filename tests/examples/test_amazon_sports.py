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
from crane_pyg.training import load_checkpoint

EXAMPLES = Path(__file__).parents[2] / 'examples'
METRICS = ['recall@10', 'ndcg@10', 'recall@20', 'ndcg@20']
ROWS = ['most popular', 'item graph kNN', 'CRANE']
TIKTOK = Path(os.environ.get('CRANE_PYG_DATA', ''), 'tiktok')


def start(folder, *args, example='amazon_sports.py'):
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / example), *map(str, args)],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, timeout=300):
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run(folder, *args, **kwargs):
    r"""Runs the example to its end and returns what it printed."""
    code, stdout, stderr = finish(start(folder, *args, **kwargs))
    assert code == 0, stderr
    return stdout


def fail(folder, *args):
    r"""Runs the example to an error and returns its last line."""
    code, _, stderr = finish(start(folder, *args))
    assert code not in (0, None)
    return stderr.strip().splitlines()[-1]


def read_table(stdout):
    r"""Returns the rows of the closing table."""
    lines = stdout.splitlines()
    head = next(n for n, line in enumerate(lines) if line.split() == METRICS)
    table = {}
    for line in lines[head + 1 : head + 4]:
        *name, _, _, _, _ = line.split()
        table[' '.join(name)] = [float(value) for value in line.split()[-4:]]
    return table


def read_metrics(path):
    return json.loads(path.read_text())


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    r"""The folder and the output of two epochs on fake data."""
    folder = tmp_path_factory.mktemp('demo')
    args = ['--metrics-file', 'out.json', '--checkpoint', 'last.ckpt']
    return folder, run(folder, '--demo', '--epochs', 2, *args)


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory):
    r"""The folder of a run stopped after its first epoch, and how it ended."""
    folder = tmp_path_factory.mktemp('interrupted')
    args = ['--epochs', 50, '--checkpoint', 'last.ckpt']
    # What a shell starts in the background ignores interrupts otherwise:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(folder, '--demo', *args)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 300
    while not (folder / 'last.ckpt').exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    return folder, finish(process)


def test_example_demo(demo):
    folder, stdout = demo
    assert stdout.startswith('DEMO: these are fake data')
    assert 'on FAKE data' in stdout
    assert re.search(r'fake: 1\d{4} training pairs, CRANE\(2000, 1200', stdout)
    assert sorted(os.listdir(folder)) == ['last.ckpt', 'out.json']

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


def test_example_metrics_file(demo):
    folder, stdout = demo
    metrics = read_metrics(folder / 'out.json')
    assert set(metrics) == {
        'dataset',
        'seed',
        'best_epoch',
        'epochs',
        'seconds_per_epoch',
        'peak_rss_mb',
        'valid',
        'test',
    }
    assert metrics['dataset'] == 'fake'
    assert metrics['seed'] == 0
    assert metrics['epochs'] == 2
    assert metrics['best_epoch'] in (1, 2)
    assert f'Test at epoch {metrics["best_epoch"]} ' in stdout
    assert 0.01 < metrics['seconds_per_epoch'] < 300
    assert 100 < metrics['peak_rss_mb'] < 4000
    for key in ['valid', 'test']:
        assert list(metrics[key]) == METRICS
        assert metrics[key]['recall@20'] > metrics[key]['recall@10'] > 0
    out = [round(value, 4) for value in metrics['test'].values()]
    assert out == pytest.approx(read_table(stdout)['CRANE'], abs=1e-6)
    assert metrics['valid'] != metrics['test']


def read_checkpoint(path):
    content = torch.load(path, weights_only=True)
    return content['meta'], content['state'], content['rng']


def test_example_interrupt(interrupted):
    folder, (code, stdout, stderr) = interrupted
    assert code == 1
    assert 'Stopped; --resume goes on from --checkpoint.' in stderr
    assert 'Traceback' not in stderr
    assert 'Test at epoch' not in stdout
    assert os.listdir(folder) == ['last.ckpt']

    meta, *_ = read_checkpoint(folder / 'last.ckpt')
    assert meta['dataset'] == 'fake'
    state = load_checkpoint(folder / 'last.ckpt', meta)
    assert state['epochs'] == state['best_epoch'] == 1
    assert state['valid']['recall@20'] > 0


def test_example_resume(demo, interrupted):
    folder, _ = interrupted
    args = ['--resume', '--checkpoint', 'last.ckpt', '--metrics-file', 'm.json']
    (folder / 'pictures').mkdir()
    args += ['--plot', 'pictures']
    stdout = run(folder, '--demo', '--epochs', 2, *args)
    assert read_table(stdout) == read_table(demo[1])
    pictures = sorted(os.listdir(folder / 'pictures'))
    assert pictures == ['items.png', 'training.png']
    out = read_metrics(folder / 'm.json')
    expected = read_metrics(demo[0] / 'out.json')
    for key in ['valid', 'test', 'epochs', 'best_epoch']:
        assert out[key] == expected[key]

    # As if it had never been stopped, whichever epoch was the best:
    (state, rng), (expected, expected_rng) = (
        read_checkpoint(path / 'last.ckpt')[1:] for path in (folder, demo[0])
    )
    assert state['epochs'] == 2
    assert torch.equal(rng, expected_rng)
    assert state['history'] == expected['history']
    (loss, recall), last = state['history']
    assert 0 < last[0] < loss < 1
    best = state['history'][state['best_epoch'] - 1]
    assert best[1] == max(recall, last[1]) == state['valid']['recall@20']
    assert state['model'].keys() == expected['model'].keys()
    for key, value in state['model'].items():
        assert torch.equal(value, expected['model'][key]), key


@onlyCUDA
def test_example_on_a_gpu(tmp_path):
    args = ['--demo', '--device', 'cuda', '--checkpoint', 'last.ckpt']
    first = run(tmp_path, *args, '--epochs', 1)
    assert read_table(first).keys() == set(ROWS)
    again = run(tmp_path, *args, '--epochs', 2, '--resume', '--plot', '.')
    table = read_table(again)
    assert table['CRANE'][0] > table['most popular'][0]
    assert (tmp_path / 'items.png').stat().st_size > 1000


def test_example_resume_needs_checkpoint(tmp_path):
    line = fail(tmp_path, '--demo', '--resume')
    assert line.endswith('and --checkpoint to --resume')


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


def test_example_data_folder(demo, tmp_path):
    sizes = {'image': 16, 'text': 8}
    dataset = FakeMultimodalDataset(200, 120, sizes, missing_rate=0.1)
    folder = tmp_path / 'shop'
    write_mmrec(folder, dataset)
    files = sorted(os.listdir(folder))
    folder.chmod(0o555)

    args = ['--data', folder, '--root', 'cache', '--epochs', 1]
    stdout = run(tmp_path, *args, '--metrics-file', 'out.json')
    edge_index = dataset[0]['user', 'rates', 'item'].edge_index
    title = f'shop: {edge_index.size(1)} training pairs, CRANE(200, 120, '
    assert title + f'in_channels={sizes}' in stdout
    assert 'fake' not in stdout.lower()
    assert list(read_table(stdout)) == ROWS
    assert read_metrics(tmp_path / 'out.json')['dataset'] == 'shop'
    assert sorted(os.listdir(folder)) == files
    cache = tmp_path / 'cache' / 'processed' / 'shop'
    assert [path.name for path in cache.iterdir()] == ['data.pt']

    # A checkpoint of other data is refused, and kept:
    path = demo[0] / 'last.ckpt'
    before = path.read_bytes()
    line = fail(tmp_path, *args, '--checkpoint', path, '--resume')
    assert "needs to have 'dataset' 'shop' (got 'fake')" in line
    assert path.read_bytes() == before


def test_example_without_data(tmp_path):
    line = fail(tmp_path, '--root', 'empty')
    assert line.startswith('FileNotFoundError: ')
    for name in ['sports.inter', 'image_feat.npy', 'text_feat.npy']:
        assert name in line
    assert str(Path('empty', 'sports')) in line
    assert 'MMRec' in line
    assert '--demo' in line
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(
    not TIKTOK.is_dir() or 'CRANE_PYG_DATA' not in os.environ,
    reason="the environment variable 'CRANE_PYG_DATA' names no folder with the "
    "data set 'tiktok'",
)
def test_example_on_real_data(tmp_path):
    args = ['--data', TIKTOK, '--root', 'cache', '--epochs', 2]
    stdout = run(tmp_path, *args, '--metrics-file', 'out.json')
    assert stdout.startswith('tiktok: ')
    table = read_table(stdout)
    assert list(table) == ROWS
    metrics = read_metrics(tmp_path / 'out.json')
    assert metrics['dataset'] == 'tiktok'
    assert metrics['epochs'] == 2
    # Two epochs are enough to beat chance many times over:
    num_items = np.load(TIKTOK / 'image_feat.npy', mmap_mode='r').shape[0]
    assert metrics['test']['recall@20'] > 5 * 20 / num_items


@pytest.mark.parametrize(
    ('option', 'value', 'file'),
    [
        ('--checkpoint', 'no/c.pt', 'no/c.pt'),
        ('--metrics-file', 'no/m.json', 'no/m.json'),
        ('--plot', 'no', 'no/items.png'),
    ],
)
def test_example_missing_folder(tmp_path, option, value, file):
    line = fail(tmp_path, '--demo', option, value)
    assert line.endswith(f'there is no folder for {file}')
    assert os.listdir(tmp_path) == []


def test_example_folder_in_place_of_a_file(tmp_path):
    (tmp_path / 'm.json').mkdir()
    line = fail(tmp_path, '--demo', '--metrics-file', 'm.json')
    assert line.endswith('m.json is a folder')
    assert os.listdir(tmp_path) == ['m.json']


def test_example_needs_an_epoch(tmp_path):
    assert 'needs --epochs above 0' in fail(tmp_path, '--demo', '--epochs', 0)


def test_keep_and_load(tmp_path):
    for package in ['faiss', 'pyarrow', 'safetensors']:
        pytest.importorskip(package)
    stdout = run(tmp_path, 'out', example='keep_and_load.py')
    lines = stdout.splitlines()
    assert lines[0] == 'These are fake data, made up on the spot.'
    losses = [float(line.split()[-1]) for line in lines[1:4]]
    assert losses[0] > losses[1] > losses[2] > 0
    assert lines[4:7] == [
        'The loaded model recommends the same: True',
        'The file holds the same: True',
        'The index finds what an exact search does: True',
    ]
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob('*.*')]
    assert sorted(map(str, names)) == [
        'out/model/config.json',
        'out/model/model.safetensors',
        'out/top10.npy',
        'out/top10.parquet',
    ]
