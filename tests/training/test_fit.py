import copy
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy_training import (
    RATES,
    SIZE,
    Terms,
    Toy,
    equal,
    get_data,
    get_model,
    get_weights,
)

import crane_pyg.transforms as T
from crane_pyg.ranking.metrics import evaluate
from crane_pyg.training import History, Recipe, fit, sample_negatives
from crane_pyg.training.loop import Loop

SHORT = Recipe(epochs=4, batch_size=64, min_batches=2)


@pytest.fixture(scope='module')
def data():
    return get_data()


def run(model, data, recipe=SHORT, **kwargs):
    return fit(model, data, recipe, progress=False, **kwargs)


def by_hand(model, data, num_epochs):
    r"""The loop that all results of this package were made with."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003, fused=True)
    drop_edges, pairs = T.DegreeDropEdges(0.8), data[RATES].edge_index
    batch_size = min(8192, pairs.size(1) // 25 + 1)
    best, weights, rows = -1.0, None, []
    for _ in range(num_epochs):
        model.train()
        epoch_data, total = drop_edges(data), 0.0
        edges = epoch_data[RATES]
        pos, seen = edges.edge_label_index, edges.edge_index
        neg = sample_negatives(pos, SIZE[1], 4, exclude=seen)
        for index in torch.randperm(pos.size(1)).split(batch_size):
            optimizer.zero_grad()
            loss = model.loss(model(epoch_data), *pos[:, index], neg[index])
            loss.backward()
            optimizer.step()
            total += loss.item() * index.numel()
        with torch.no_grad():
            out = model.eval()(data)
        valid = evaluate(*out, data[RATES].val_edge_label_index, pairs)
        rows.append((total / pos.size(1), valid['recall@20']))
        if valid['recall@20'] > best:
            best, weights = valid['recall@20'], get_weights(model)
    return weights, rows


def test_fit_is_the_loop_by_hand(data):
    expected, rows = by_hand(get_model(), data, 12)
    model, before = get_model(), data.clone()
    history = fit(model, data, Recipe(epochs=12, patience=12), progress=False)
    assert equal(get_weights(model), expected)
    assert history.loss == pytest.approx([x for x, _ in rows], rel=1e-6)
    assert history.metric == [x for _, x in rows]
    assert history.stopped == 'epochs'
    # The data stay as they are:
    assert data.to_dict().keys() == before.to_dict().keys()
    assert torch.equal(data[RATES].edge_index, before[RATES].edge_index)
    assert 'edge_label_index' not in data[RATES]


def test_fit_restores_the_best_weights(data):
    model, seen = get_model(), {}

    def keep(epoch, model, history):
        assert not model.training
        seen[epoch] = get_weights(model)

    recipe = Recipe(epochs=30, patience=3, lr=0.05)
    history = run(model, data, recipe, callbacks=[keep])
    assert history.stopped == 'patience'
    assert history.best_epoch == len(history) - 3 == max(seen) - 3
    assert equal(get_weights(model), seen[history.best_epoch])
    assert not equal(get_weights(model), seen[len(history)])
    assert not model.training
    metric = history.metric
    assert metric.index(max(metric)) + 1 == history.best_epoch
    # As anybody would evaluate it:
    with torch.no_grad():
        out = model(data)
    valid = evaluate(
        *out, data[RATES].val_edge_label_index, data[RATES].edge_index
    )
    assert history.best == valid


def test_fit_min_epochs(data):
    recipe = Recipe(epochs=30, patience=3, lr=0.05)
    first = run(get_model(), data, recipe)
    later = run(get_model(), data, replace(recipe, min_epochs=len(first) + 4))
    assert len(later) >= len(first) + 4
    assert later.metric[: len(first)] == first.metric
    assert later.stopped == 'patience'


@pytest.mark.parametrize(
    ('metric', 'known'),
    [
        ('ndcg@5', {'ndcg@5', 'recall@5'}),
        ('mrr@3', {'mrr@3', 'ndcg@3', 'recall@3'}),
    ],
)
def test_fit_metric(data, metric, known):
    history = run(get_model(), data, replace(SHORT, metric=metric))
    assert known | {'recall@20', 'ndcg@10'} <= set(history.epochs[0])
    assert history.metric == history.curve(metric)
    assert max(history.metric) == history.best[metric]
    assert history.metric.index(max(history.metric)) + 1 == history.best_epoch


def test_fit_stopped_by_a_callback(data):
    calls = []

    def stop(epoch, model, history):
        calls.append((epoch, len(history)))
        return epoch == 2

    model = get_model()
    history = run(model, data, callbacks=[stop, lambda *_: 'no boolean'])
    assert calls == [(1, 1), (2, 2)]
    assert history.stopped == 'callback'
    assert [row['epoch'] for row in history.epochs] == [1, 2]


def test_fit_terms(data):
    model = get_model(Terms)
    history = run(model, data)
    assert {'bpr', 'reg'} <= set(history.epochs[0])
    for row in history.epochs:
        assert row['loss'] == pytest.approx(row['bpr'] + row['reg'])
        assert row['reg'] > 0
    # They are trained on, not only shown:
    assert not equal(get_weights(model), get_weights(get_model(Terms)))
    other = get_model()
    run(other, data)
    assert not torch.equal(model.user, other.user)


def test_fit_waits_for_no_value_within_a_step(data, monkeypatch):
    # What would make the CPU wait for a GPU is an operation of its own:
    waits = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero}
    found = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found.append(func.overloadpacket)
            return func(*args, **(kwargs or {}))

    step = Loop.step

    def watched(*args):
        with Watch():
            return step(*args)

    monkeypatch.setattr(Loop, 'step', watched)
    run(get_model(Terms), data)
    assert len(found) > 100
    assert not waits & set(found)


def test_fit_tools(data):
    model, rates = get_model(), []

    def scheduler(optimizer):
        assert isinstance(optimizer, torch.optim.SGD)
        return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def keep(epoch, model, history):
        rates.append(optimizers[0].param_groups[0]['lr'])

    optimizers = []

    def optimizer(params):
        optimizers.append(torch.optim.SGD(params, lr=0.8))
        return optimizers[0]

    run(
        model,
        data,
        optimizer=optimizer,
        scheduler=scheduler,
        callbacks=[keep],
    )
    assert rates == pytest.approx([0.4, 0.2, 0.1, 0.05])


def test_fit_plateau(data):
    made = []

    def scheduler(optimizer):
        made.append(
            torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, 'max')
        )
        return made[0]

    history = run(get_model(), data, scheduler=scheduler)
    assert made[0].best == max(history.metric)
    with pytest.raises(ValueError, match=r"'scheduler' needs validation"):
        run(
            get_model(),
            without(data, 'val_edge_label_index'),
            replace(SHORT, patience=None),
            scheduler=scheduler,
        )


def test_fit_loss_options(data):
    first = run(get_model(), data, replace(SHORT, epochs=1, lr=1e-9))
    options = {'scale': 3.0}
    other = run(
        get_model(),
        data,
        replace(SHORT, epochs=1, lr=1e-9),
        loss_options=options,
    )
    assert other.loss == pytest.approx([3 * first.loss[0]], rel=1e-4)


@pytest.mark.parametrize('dropping', [0.0, 0.5])
@pytest.mark.parametrize('disjoint', [False, True])
def test_fit_pairs(data, dropping, disjoint):
    num_pairs = data[RATES].edge_index.size(1)
    recipe = Recipe(
        epochs=1,
        edge_dropping=dropping,
        disjoint=disjoint,
        batch_size=50,
        num_negatives=3,
    )
    model = get_model()
    run(model, data, replace(recipe, min_batches=1))
    graph = round((1 - dropping) * num_pairs)
    trained = num_pairs - graph if dropping and disjoint else num_pairs
    assert {x for x, training in model.graphs if training} == {graph}
    assert [x for x, training in model.graphs if not training] == [num_pairs]
    sizes = [tuple(x.shape) for x in model.negatives]
    assert sum(x for x, _ in sizes) == trained
    assert sizes[0] == (50, 3)
    model = get_model()
    run(model, data, recipe)
    assert model.negatives[0].size(0) == num_pairs // 25 + 1


def test_fit_autocast(data):
    dtypes = set()

    class Wide(Toy):
        def forward(self, data):
            user, item = super().forward(data)
            eye = torch.eye(8)
            return user @ eye, item @ eye

        def loss(self, out, *index):
            dtypes.add(out[0].dtype)
            return super().loss(out, *index)

    model = Wide()
    run(model, data, replace(SHORT, autocast='bfloat16'))
    assert dtypes == {torch.bfloat16}
    assert model.user.dtype == torch.float32
    run(model, data)
    assert dtypes == {torch.bfloat16, torch.float32}
    dtypes.clear()
    with torch.autocast('cpu', torch.float16):  # Of the caller.
        run(model, data, replace(SHORT, patience=None))
    assert dtypes == {torch.float16}


def without(data, *keys):
    data = copy.copy(data)
    for key in keys:
        del data[RATES][key]
    return data


def test_fit_without_validation(data):
    data, seen = without(data, 'val_edge_label_index'), []
    model = get_model()
    with pytest.raises(ValueError, match=r"'val_edge_label_index' .* \(got 0"):
        run(model, data)
    history = run(
        model,
        data,
        replace(SHORT, patience=None),
        callbacks=[lambda *args: seen.append(get_weights(args[1]))],
    )
    assert equal(get_weights(model), seen[-1])
    assert not equal(get_weights(model), seen[-2])
    assert history.best_epoch == 4
    assert history.best == {}
    assert history.metric == []
    assert all(type(x) is int for x in [history.best_epoch, len(history)])


def test_fit_of_users_without_history(data):
    pairs = data[RATES].edge_index
    held_out = data[RATES].val_edge_label_index
    users = held_out[0].unique()[:2]
    lonely = torch.isin(held_out[0], users)
    small = copy.copy(data)
    small[RATES].edge_index = pairs[:, ~torch.isin(pairs[0], users)]
    small = T.BuildDualGraph(k=3)(small)
    match = rf'{int(lonely.sum())} of 2 user\(s\) without any training pair$'
    with pytest.warns(UserWarning, match=match) as record:
        first = run(get_model(), small)
    assert record[0].filename == __file__
    small[RATES].val_edge_label_index = held_out[:, ~lonely]
    assert run(get_model(), small).metric == first.metric
    small[RATES].val_edge_label_index = held_out[:, lonely]
    with (
        pytest.warns(UserWarning, match=match),
        pytest.raises(ValueError, match=r"'val_edge_label_index' .*\[2, 0\]"),
    ):
        run(get_model(), small)


def test_fit_of_validation_pairs_that_are_training_pairs(data):
    first = run(get_model(), data)
    store = data[RATES]
    both = copy.copy(data)
    both[RATES].val_edge_label_index = torch.cat(
        [store.val_edge_label_index, store.edge_index[:, ::9]], dim=1
    )
    num = store.edge_index[:, ::9].size(1)
    match = rf"^{num} of \d+ pairs of 'val_edge.*that are training pairs too$"
    with pytest.warns(UserWarning, match=match) as record:
        second = run(get_model(), both)
    assert len(record) == 1
    assert second.metric == first.metric
    both[RATES].val_edge_label_index = store.edge_index
    with (
        pytest.warns(UserWarning, match='that are training pairs too$'),
        pytest.raises(ValueError, match='and others than these'),
    ):
        run(get_model(), both)


def test_fit_of_negative_validation_pairs(data):
    held_out = data[RATES].val_edge_label_index
    first = run(get_model(), data)
    marked = copy.copy(data)
    marked[RATES].val_edge_label_index = torch.cat(
        [held_out, held_out.flip(1)], dim=1
    )
    marked[RATES].val_edge_label = torch.tensor([1.0, 0.0]).repeat_interleave(
        held_out.size(1)
    )
    assert run(get_model(), marked).metric == first.metric


def test_fit_of_users_with_all_items(data):
    bots = torch.cartesian_prod(torch.tensor([3, 8]), torch.arange(SIZE[1])).t()
    pairs = data[RATES].edge_index
    pairs = pairs[:, ~torch.isin(pairs[0], bots[0])]
    full = copy.copy(data)
    full[RATES].edge_index = torch.cat([pairs, bots], dim=1)
    full = T.BuildDualGraph(k=3)(full)
    held_out = full[RATES].val_edge_label_index  # Others than of these two.
    held_out = held_out[:, ~torch.isin(held_out[0], bots[0])]
    full[RATES].val_edge_label_index = held_out
    users = []

    class Spy(Toy):
        def loss(self, out, user_index, pos_index, neg_index):
            users.append(user_index)
            assert neg_index.min() >= 0
            return super().loss(out, user_index, pos_index, neg_index)

    with pytest.warns(UserWarning, match=r'^2 user\(s\) have') as record:
        run(Spy(), full, replace(SHORT, patience=None))
    assert [x.filename for x in record] == [__file__]
    assert set(torch.cat(users).tolist()) == set(pairs[0].tolist())

    full[RATES].edge_index = bots
    with pytest.raises(ValueError, match=r"'edge_index' .* \(got 80 pairs\)"):
        run(Toy(), T.BuildDualGraph(k=3)(full))


def test_fit_progress(data, capsys):
    run(get_model(), data)
    assert capsys.readouterr() == ('', '')
    history = fit(get_model(), data, SHORT)
    text = capsys.readouterr().err
    assert '4/4' in text
    assert f'loss {history.loss[-1]:.4f}' in text
    assert f'recall@20 {history.metric[-1]:.4f}' in text
    assert f'at epoch {history.best_epoch}' in text


def test_fit_with_defaults(data):
    history = fit(get_model(), data, progress=False)
    assert history.recipe == Recipe()
    assert isinstance(history, History)
    assert history.stopped in {'patience', 'epochs'}
    assert history.seconds > 0


@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_fit_interrupted(data, error):
    weights = []

    def interrupt(epoch, model, history):
        weights.append(get_weights(model))
        best.append(history.best_epoch)
        if epoch == 4:
            raise error

    model, best = get_model(), []
    with pytest.raises(error):
        run(model, data, callbacks=[interrupt])
    assert equal(get_weights(model), weights[best[-1] - 1])
    assert not model.training


@pytest.mark.parametrize('when', ['first', 'third'])
def test_fit_diverges(data, when):
    class Diverging(Terms):
        def loss_terms(self, *args):
            terms = super().loss_terms(*args)
            if self.calls == (3 if when == 'first' else 13):
                terms['reg'] = terms['reg'] * float('nan')
            return terms

    model, weights = get_model(Diverging), []
    start = get_weights(model)
    pairs = data[RATES].edge_index.size(1)
    num_steps = -(-(pairs - round(0.2 * pairs)) // 64)
    epoch, step = (1, 3) if when == 'first' else divmod(12, num_steps)
    if when != 'first':
        epoch, step = epoch + 1, step + 1
    match = (
        rf"'model' .* finite loss \(got nan in the term 'reg' at epoch "
        rf'{epoch}, step {step} of {num_steps}\)'
    )
    with pytest.raises(ValueError, match=match):
        run(
            model,
            data,
            callbacks=[
                lambda _, model, history: weights.append(
                    (get_weights(model), history.best_epoch)
                )
            ],
        )
    assert len(weights) == epoch - 1
    best = weights[weights[-1][1] - 1][0] if weights else start
    assert equal(get_weights(model), best)


def test_fit_with_a_broken_last_step(data):
    class Breaking(Toy):
        def loss(self, *args):
            loss = super().loss(*args)
            # Finite, with a gradient that is not:
            return (
                loss
                + 0.0
                * (self.item[0, 0].detach() - self.item[0, 0]).abs().sqrt()
            )

    model = get_model(Breaking)
    match = r"'model' .* finite parameters \(got NaN .* 'item' at epoch 1"
    with pytest.raises(ValueError, match=match):
        run(model, data, replace(SHORT, batch_size=10**6, min_batches=1))
    assert model.item.isfinite().all()
