import argparse
import os
import pickle
import threading
from pathlib import Path

import numpy
import pytest
import torch
from toys import Trap

from crane_pyg._files import replacing
from crane_pyg.training import checkpoint
from crane_pyg.training.checkpoint import load_checkpoint, save_checkpoint

META = {'dataset': 'toy', 'pairs': 12}


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'last.ckpt'


def get_state():
    return {
        'epoch': 3,
        'valid': {'recall@20': 0.25},
        'model': {'weight': torch.arange(6.0).view(2, 3)},
    }


def assert_state(out, epoch=3):
    assert set(out) == {'epoch', 'valid', 'model'}
    assert out['epoch'] == epoch
    assert out['valid'] == {'recall@20': 0.25}
    assert out['model']['weight'].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_checkpoint_round_trip(path):
    state, meta = get_state(), dict(META)
    save_checkpoint(path, state, meta)
    assert_state(state)  # Not written to.
    assert meta == META
    assert_state(load_checkpoint(path, META))
    assert_state(load_checkpoint(str(path), META, torch.device('cpu')))
    assert os.listdir(path.parent) == [path.name]


def test_checkpoint_restores_random_state(path):
    torch.manual_seed(12)
    torch.rand(7)
    save_checkpoint(path, get_state(), META)
    expected = torch.rand(5)
    torch.manual_seed(3)
    torch.rand(100)
    load_checkpoint(path, META)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize('num_devices', [0, 1, 2, 3])
def test_checkpoint_restores_random_state_of_devices(
    path, monkeypatch, num_devices
):
    # Saved with two devices, and loaded with another number of them:
    rngs = [torch.tensor([n], dtype=torch.uint8) for n in range(2)]
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', lambda: rngs)
    save_checkpoint(path, get_state(), META)
    calls = {}

    def set_rng_state(rng, device):
        calls[device] = int(rng)

    monkeypatch.setattr(torch.cuda, 'device_count', lambda: num_devices)
    monkeypatch.setattr(torch.cuda, 'set_rng_state', set_rng_state)
    assert_state(load_checkpoint(path, META))
    assert calls == {n: n for n in range(min(num_devices, 2))}


def test_checkpoint_resumes_an_optimizer(path):
    def get_model():
        torch.manual_seed(12)
        model = torch.nn.Linear(4, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def step(model, optimizer):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).pow(2).sum().backward()
        optimizer.step()

    model, optimizer = get_model()
    step(model, optimizer)
    states = {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
    save_checkpoint(path, states, META)
    step(model, optimizer)

    resumed, optimizer = get_model()
    state = load_checkpoint(path, META)
    resumed.load_state_dict(state['model'])
    optimizer.load_state_dict(state['optimizer'])
    step(resumed, optimizer)
    assert torch.equal(resumed.weight, model.weight)


def test_checkpoint_replaces_an_earlier_one(path):
    save_checkpoint(path, {**get_state(), 'epoch': 1}, META)
    save_checkpoint(path, get_state(), META)
    assert_state(load_checkpoint(path, META))
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ('meta', 'match'),
    [
        ({**META, 'pairs': 13}, r"'pairs' 13 \(got 12\)"),
        ({**META, 'dataset': 'sports'}, r"'dataset' 'sports' \(got 'toy'\)"),
        ({**META, 'seed': 1}, r"'seed' 1 \(got None\)"),
        ({'dataset': 'toy'}, r"'pairs' None \(got 12\)"),
    ],
)
def test_checkpoint_of_something_else(path, meta, match):
    save_checkpoint(path, get_state(), META)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=rf'last\.ckpt.* needs .* {match}'):
        load_checkpoint(path, meta)
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpoint_keeps_all_keys(path):
    state = {'rng': 'mine', 'cuda_rng': 7}
    save_checkpoint(path, state, {'mode': None, 'sizes': {'a': (1, 2)}})
    meta = {'mode': None, 'sizes': {'a': (1, 2)}}
    assert load_checkpoint(path, meta) == state
    for other in [{'sizes': {'a': (1, 2)}}, {**meta, 'more': None}]:
        with pytest.raises(ValueError, match=r"'(mode|more)' None \(got None"):
            load_checkpoint(path, other)


@pytest.mark.parametrize('rng', [torch.zeros(3), torch.zeros(9).byte(), None])
def test_checkpoint_of_no_random_state(path, rng):
    content = {'meta': META, 'state': {}, 'rng': rng, 'cuda_rng': []}
    torch.save(content, path)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r'last\.ckpt. is no checkpoint'):
        load_checkpoint(path, META)
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpoint_in_home(path, monkeypatch):
    monkeypatch.setenv('HOME', str(path.parent))
    save_checkpoint('~/last.ckpt', get_state(), META)
    assert_state(load_checkpoint('~/last.ckpt', META))
    assert os.listdir(path.parent) == [path.name]


def test_checkpoint_missing(path):
    with pytest.raises(FileNotFoundError, match=r'last\.ckpt'):
        load_checkpoint(path, META)


@pytest.mark.parametrize('content', [b'', b'hello\n' * 9, b'PK\x03\x04abc'])
def test_checkpoint_junk(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r'last\.ckpt. is no checkpoint'):
        load_checkpoint(path, META)


@pytest.mark.parametrize('share', [0.1, 0.5, 0.99])
def test_checkpoint_truncated(path, share):
    save_checkpoint(path, get_state(), META)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'last\.ckpt. is no checkpoint'):
        load_checkpoint(path, META)


@pytest.mark.parametrize(
    'content',
    [
        torch.ones(3),
        [1, 2],
        {'meta': META},
        {'meta': [1], 'state': {}},
        {'meta': META, 'state': [1]},
        {'meta': META, 'state': get_state()},
        {'meta': META, 'state': {'rng': 1, 'cuda_rng': []}},
    ],
    ids=range(7),
)
def test_checkpoint_of_other_content(path, content):
    torch.save(content, path)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r'last\.ckpt. is no checkpoint'):
        load_checkpoint(path, META)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('dump', [torch.save, pickle.dump])
def test_checkpoint_runs_no_code(path, dump):
    folder = path.with_name('payload')
    content = {'meta': META, 'state': {**get_state(), 'x': Trap(folder)}}
    with path.open('wb') as f:
        dump(content, f)
    with pytest.raises(ValueError, match=r'no checkpoint \(got Unpickling'):
        load_checkpoint(path, META)
    assert not folder.exists()

    # It would have run, had it not been refused:
    with path.open('rb') as f:
        if dump is pickle.dump:
            pickle.load(f)
        else:
            torch.load(f, weights_only=False)
    assert folder.exists()


def test_checkpoint_is_replaced_as_a_whole(path, monkeypatch):
    save_checkpoint(path, get_state(), META)
    temps = []

    def fail(obj, f):
        f.write_bytes(b'half')
        temps.append(f)
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.torch, 'save', fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {**get_state(), 'epoch': 4}, META)
    monkeypatch.undo()
    assert temps[0].parent == path.parent  # Renamed within one file system.
    assert temps[0] != path
    assert os.listdir(path.parent) == [path.name]
    assert_state(load_checkpoint(path, META))


def test_checkpoint_that_cannot_be_saved(path):
    save_checkpoint(path, get_state(), META)
    for value in [lambda x: x, threading.Lock(), (x for x in 'abc')]:
        with pytest.raises(
            ValueError, match=r"'state' needs .* \(got .*pickle"
        ):
            save_checkpoint(path, {'model': value}, META)
    assert os.listdir(path.parent) == [path.name]
    assert_state(load_checkpoint(path, META))


def test_checkpoint_without_a_folder(path):
    with pytest.raises((RuntimeError, OSError), match='missing'):
        save_checkpoint(path.parent / 'missing' / 'x', get_state(), META)


def test_replacing_what_a_link_leads_to(tmp_path):
    path, link = tmp_path / 'a' / 'metrics.json', tmp_path / 'latest.json'
    path.parent.mkdir()
    link.symlink_to(path)
    for text in ['first', 'second']:
        with replacing(link) as temp:
            temp.write_text(text)
        assert link.is_symlink()
        assert path.read_text() == text
    assert os.listdir(path.parent) == [path.name]


def test_replacing(tmp_path):
    path = tmp_path / 'metrics.json'
    for text in ['first', 'second']:
        with replacing(str(path)) as temp:
            assert not temp.exists()
            temp.write_text(text)
        assert path.read_text() == text
    with replacing(path) as temp1, replacing(path) as temp2:
        assert temp1 != temp2
        temp1.write_text('third')
        temp2.write_text('fourth')
    assert path.read_text() == 'third'
    assert os.listdir(tmp_path) == ['metrics.json']


@pytest.mark.parametrize(
    ('state', 'meta'),
    [
        ({'best': numpy.float64(0.3)}, {}),
        ({'folder': Path('a')}, {}),
        ({}, {'args': argparse.Namespace(k=3)}),
        ({}, {'args': [1, {'k': torch.zeros(3)}]}),
        ({}, {'args': float('nan')}),
    ],
)
def test_checkpoint_of_what_could_not_be_loaded(path, state, meta):
    save_checkpoint(path, get_state(), META)
    match = r"'state' needs" if state else r"'args' in 'meta' needs"
    with pytest.raises(ValueError, match=rf'{match} .* \(got '):
        save_checkpoint(path, state, meta)
    assert_state(load_checkpoint(path, META))
    assert os.listdir(path.parent) == [path.name]
