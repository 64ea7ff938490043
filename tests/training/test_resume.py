import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_training import (
    RATES,
    Terms,
    Toy,
    equal,
    get_data,
    get_model,
    get_weights,
)

import crane_pyg.transforms as T
from crane_pyg.training import Recipe, fit, loop

RECIPE = Recipe(epochs=6, batch_size=64, min_batches=2, lr=0.02)


@pytest.fixture(scope='module')
def data():
    return get_data()


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'last.ckpt'


def run(model, data, recipe=RECIPE, **kwargs):
    return fit(model, data, recipe, progress=False, **kwargs)


def plain(history):
    r"""All but the seconds, which differ."""
    state = history.state_dict()
    for row in state['epochs']:
        del row['seconds']
    return state


def interrupt_at(stop):
    def callback(epoch, model, history):
        if epoch == stop:
            raise KeyboardInterrupt

    return callback


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)


@pytest.mark.parametrize('scheduler', [None, cosine])
@pytest.mark.parametrize('patience', [2, None])
@pytest.mark.parametrize('stop', [2, 4])
def test_resume(data, path, scheduler, patience, stop):
    recipe = replace(RECIPE, patience=patience, min_epochs=5)
    kwargs = {'scheduler': scheduler, 'recipe': recipe}
    whole = get_model()
    expected = run(whole, data, **kwargs)

    model = get_model()
    kwargs |= {'checkpoint': path, 'resume': True}
    with pytest.raises(KeyboardInterrupt):
        run(model, data, callbacks=[interrupt_at(stop)], **kwargs)
    model = get_model(seed=5)  # Another process would know nothing of it.
    history = run(model, data, **kwargs)
    assert equal(get_weights(model), get_weights(whole))
    assert plain(history) == plain(expected)
    assert os.listdir(path.parent) == [path.name]


def test_resume_in_the_middle_of_an_epoch(data, path):
    class Stopping(Toy):
        stop = None

        def loss(self, *args):
            if self.calls == self.stop:
                raise KeyboardInterrupt
            return super().loss(*args)

    whole = get_model(Stopping)
    run(whole, data)
    model = get_model(Stopping)
    model.stop = 17
    kwargs = {'checkpoint': path, 'resume': True}
    with pytest.raises(KeyboardInterrupt):
        run(model, data, **kwargs)
    assert path.exists()
    model.stop = None
    run(model, data, **kwargs)
    assert equal(get_weights(model), get_weights(whole))


def test_resume_of_a_finished_training(data, path):
    model = get_model()
    expected = run(model, data, checkpoint=path)
    content, weights = path.read_bytes(), get_weights(model)
    model = get_model(seed=5)
    history = run(model, data, checkpoint=path, resume=True)
    assert history == expected  # With its seconds.
    assert equal(get_weights(model), weights)
    assert not model.training
    assert not model.graphs
    assert path.read_bytes() == content

    # It goes on where more epochs are asked for:
    recipe = replace(RECIPE, epochs=9)
    history = run(model, data, recipe, checkpoint=path, resume=True)
    whole = get_model()
    expected = run(whole, data, recipe)
    assert plain(history) == plain(expected)
    assert len(history) == 9
    assert equal(get_weights(model), get_weights(whole))


def test_resume_shows_the_epochs_before(data, path, capsys):
    run(get_model(), data, replace(RECIPE, epochs=2), checkpoint=path)
    recipe = replace(RECIPE, epochs=3)
    fit(get_model(), data, recipe, checkpoint=path, resume=True)
    assert '2/3' in capsys.readouterr().err


def test_resume_with_more_patience(data, path):
    recipe = Recipe(epochs=40, patience=1, lr=0.1)
    history = run(get_model(), data, recipe, checkpoint=path)
    assert history.stopped == 'patience'
    assert len(history) < 40
    other = run(get_model(), data, recipe, checkpoint=path, resume=True)
    assert other == history
    recipe = replace(recipe, patience=4)
    whole = run(get_model(), data, recipe)
    other = run(get_model(), data, recipe, checkpoint=path, resume=True)
    assert len(other) > len(history)
    assert plain(other) == plain(whole)


def test_resume_after_a_callback_stopped_it(data, path):
    kwargs = {'checkpoint': path, 'callbacks': [lambda epoch, *_: epoch == 2]}
    history = run(get_model(), data, **kwargs)
    model = get_model()
    other = run(model, data, **kwargs, resume=True)
    assert other == history
    assert other.stopped == 'callback'
    assert not model.graphs


def test_checkpoint_is_replaced_without_resume(data, path):
    path.write_bytes(b'something else')
    expected = run(get_model(), data)
    history = run(get_model(), data, checkpoint=path)
    assert plain(history) == plain(expected)
    assert plain(run(get_model(), data, checkpoint=path)) == plain(expected)


def fewer(data):
    data = data.clone()
    data[RATES].edge_index = data[RATES].edge_index[:, 1:]
    return T.BuildDualGraph(k=3)(data)


def other_validation(data):
    data = data.clone()
    held_out = data[RATES].val_edge_label_index
    data[RATES].val_edge_label_index = held_out[:, 1:]
    return data


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({'model': Terms}, r"'model' 'Terms' \(got 'Toy'\)"),
        (
            {'model': lambda: Toy(channels=9)},
            r"'shape of user' \[60, 9\] \(got \[60, 8\]\)",
        ),
        ({'data': fewer}, r"'training pairs' '\d+ \(\w+\)' \(got '\d+ \(\w+"),
        ({'data': other_validation}, r"'validation pairs' '\d+ \(\w+\)' "),
        ({'lr': 0.1}, r"'recipe.lr' 0.1 \(got 0.02\)"),
        ({'metric': 'ndcg@20'}, r"'recipe.metric' 'ndcg@20' \(got"),
        ({'scheduler': cosine}, r"'scheduler' 'CosineAnnealingLR' \(got 'No"),
        ({'optimizer': torch.optim.SGD}, r"'optimizer' 'SGD' \(got 'Adam'"),
        ({'scale': 2.0}, r"'loss_options.scale' 2.0 \(got 1.0\)"),
    ],
    ids=range(9),
)
def test_checkpoint_of_something_else(data, path, change, match):
    run(
        get_model(),
        data,
        replace(RECIPE, epochs=1),
        checkpoint=path,
        loss_options={'scale': 1.0},
    )
    content = path.read_bytes()
    model = get_model(change.pop('model', Toy))
    weights, rng = get_weights(model), torch.get_rng_state()
    data = change.pop('data', lambda data: data)(data)
    names = {'lr', 'metric'} & set(change)
    recipe = replace(RECIPE, **{name: change.pop(name) for name in names})
    options = {'scale': change.pop('scale', 1.0)}
    with pytest.raises(ValueError, match=match):
        run(
            model,
            data,
            recipe,
            checkpoint=path,
            resume=True,
            loss_options=options,
            **change,
        )
    assert path.read_bytes() == content
    assert equal(get_weights(model), weights)
    assert torch.equal(torch.get_rng_state(), rng)


def test_checkpoint_of_another_tensor_in_the_loss(data, path):
    def train(place, **kwargs):
        weight = torch.zeros(2000).index_fill(0, torch.tensor([place]), 1.0)
        scale = [weight, lambda x: x + place]
        run(
            get_model(Sum),
            data,
            replace(RECIPE, epochs=1),
            checkpoint=path,
            loss_options={'scale': scale},
            **kwargs,
        )

    train(1000)
    train(1000, resume=True)
    match = r"'loss_options.scale' 'list \(\w+\)' \(got 'list \("
    with pytest.raises(ValueError, match=match):
        train(1001, resume=True)


class Sum(Toy):
    def loss(self, *args, scale):
        return super().loss(*args, scale=scale[0].sum())


def test_resume_from_junk(data, path):
    path.write_bytes(b'junk')
    with pytest.raises(ValueError, match=r"last\.ckpt' is no checkpoint"):
        run(get_model(), data, checkpoint=path, resume=True)
    assert path.read_bytes() == b'junk'


def test_diverging_leaves_the_checkpoint_of_the_last_good_epoch(data, path):
    class Diverging(Toy):
        limit = 25

        def loss(self, *args):
            loss = super().loss(*args)
            return loss * float('nan') if self.calls > self.limit else loss

    with pytest.raises(ValueError, match='finite loss') as error:
        run(get_model(Diverging), data, checkpoint=path)
    epoch = int(str(error.value).split('epoch ')[1].split(',')[0])
    assert epoch > 1
    state = torch.load(path, weights_only=True)['state']
    assert len(state['history']['epochs']) == epoch - 1
    assert all(x.isfinite().all() for x in state['model'].values())


def test_interrupted_while_saving(data, path, monkeypatch):
    run(get_model(), data, replace(RECIPE, epochs=2), checkpoint=path)
    content = path.read_bytes()

    def fail(path, state, meta):
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, 'save_checkpoint', fail)
    model = get_model()
    kwargs = {'checkpoint': path, 'resume': True}
    with pytest.raises(KeyboardInterrupt):
        run(model, data, **kwargs)
    assert path.read_bytes() == content
    monkeypatch.undo()
    run(model, data, **kwargs)
    whole = get_model()
    run(whole, data)
    assert equal(get_weights(model), get_weights(whole))


SCRIPT = """
import os
import signal
import sys
import time

sys.path.insert(0, sys.argv[1])
import torch
from toy_training import get_data, get_model

from crane_pyg.training import Recipe, fit

torch.set_num_threads(1)
path, data = sys.argv[2], get_data()
recipe = Recipe(epochs=40, patience=None, batch_size=64, min_batches=2)


def train():
    model = get_model()
    fit(model, data, recipe, checkpoint=path, resume=True, progress=False)
    torch.save(model.state_dict(), path + '.final')


generator = torch.Generator().manual_seed(1)
for seconds in (0.1 + 0.3 * torch.rand(5, generator=generator)).tolist():
    pid = os.fork()  # Spares it the imports.
    if pid == 0:
        train()
        os._exit(0)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    code = os.waitpid(pid, 0)[1]
    done = 0
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)['state']
        done = len(state['history']['epochs'])
    print(code == signal.SIGKILL, done)
train()
"""


def test_killed_at_random_moments(data, tmp_path):
    path = tmp_path / 'last.ckpt'
    command = [sys.executable, '-W', 'ignore', '-c', SCRIPT]
    command += [str(Path(__file__).parents[1]), str(path)]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    rows = [line.split() for line in out.stdout.splitlines()]
    done = [int(number) for _, number in rows]
    assert done == sorted(done)
    # It was killed on the way at least once, and went on from there:
    assert any(
        killed == 'True' and 0 < number < 40
        for (killed, _), number in zip(rows, done, strict=True)
    )
    whole = get_model()
    recipe = Recipe(epochs=40, patience=None, batch_size=64, min_batches=2)
    run(whole, data, recipe)
    final = torch.load(f'{path}.final', weights_only=True)
    assert equal(final, get_weights(whole))
