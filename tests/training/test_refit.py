import pytest
import torch
from toy_training import RATES, Toy, equal, get_data, get_model, get_weights

import crane_pyg.transforms as T
from crane_pyg.training import History, Recipe, fit, refit

REV = ('item', 'rev_rates', 'user')
CO_RATED = ('item', 'co_rated', 'item')
SIMILAR = ('item', 'similar_to', 'item')
RECIPE = Recipe(epochs=9, patience=3, batch_size=64, min_batches=2, lr=0.05)


@pytest.fixture(scope='module')
def data():
    return get_data()


@pytest.fixture(scope='module')
def history(data):
    return fit(get_model(), data, RECIPE, progress=False)


def as_set(pairs):
    return set(zip(*pairs.tolist(), strict=True))


def get_pairs(data, splits):
    names = [f'{split}_edge_label_index' for split in splits]
    return [data[RATES][name] for name in ['edge_index', *names]]


@pytest.mark.parametrize('splits', [('val', 'test'), ('val',), ('test',)])
def test_refit(data, history, splits):
    before, calls = data.clone(), []
    model = get_model(seed=4)
    out = refit(
        model,
        data,
        history,
        splits=splits,
        callbacks=[lambda *args: calls.append(args)],
        progress=False,
    )
    assert 0 < history.best_epoch == len(calls) < len(history)
    pairs = torch.cat(get_pairs(data, splits), dim=1)
    assert as_set(out[RATES].edge_index) == as_set(pairs)
    assert out[RATES].edge_index.size() == pairs.size()
    left = {'val', 'test'} - set(splits)
    for name in ('val', 'test'):
        assert (f'{name}_edge_label_index' in out[RATES]) == (name in left)
    # Nothing is validated, so that every forward pass was one of training:
    assert all(training for _, training in model.graphs)
    assert calls[-1][2].recipe.lr == 0.05
    # What was given stays:
    assert torch.equal(data[RATES].edge_index, before[RATES].edge_index)
    assert set(data[RATES].keys()) == set(before[RATES].keys())


def test_refit_rebuilds_the_graphs(data, history):
    out = refit(get_model(), data, history, progress=False)
    raw = data.clone()
    raw[RATES].edge_index = torch.cat(get_pairs(data, ['val', 'test']), dim=1)
    expected = T.BuildDualGraph(k=3)(raw)
    for edge_type in (RATES, REV, CO_RATED, SIMILAR):
        for key in ('edge_index', 'edge_weight'):
            assert torch.equal(out[edge_type][key], expected[edge_type][key])
    # By a transform, the same:
    other = refit(
        get_model(),
        data,
        history,
        transform=T.BuildDualGraph(k=3, num_co_rated=4),
        progress=False,
    )
    assert torch.equal(other[REV].edge_index, expected[REV].edge_index)
    assert other[CO_RATED].edge_index[0].bincount().max() == 4
    # And none is made that was not there:
    plain = data.clone()
    for edge_type in (REV, CO_RATED, SIMILAR):
        del plain[edge_type]

    class Plain(Toy):
        def forward(self, data):
            return self.user, self.item

    out = refit(get_model(Plain), plain, history, progress=False)
    assert out.edge_types == [RATES]


def test_refit_is_a_fit_from_the_start(data, history):
    torch.manual_seed(7)
    model = get_model(seed=4)
    out = refit(model, data, history, progress=False)
    expected = get_model(seed=4)
    expected.reset_parameters()
    recipe = Recipe(
        epochs=history.best_epoch,
        patience=None,
        batch_size=64,
        min_batches=2,
        lr=0.05,
    )
    fit(expected, out, recipe, progress=False)
    assert equal(get_weights(model), get_weights(expected))
    other = get_model(seed=4)
    refit(other, data, history, recipe=Recipe(lr=0.1), progress=False)
    assert not equal(get_weights(other), get_weights(expected))


def test_refit_resumes(data, history, tmp_path):
    kwargs = {'checkpoint': tmp_path / 'a', 'resume': True, 'progress': False}
    expected = get_model(seed=4)
    refit(expected, data, history, progress=False)

    def interrupt(epoch, *_):
        raise KeyboardInterrupt

    model = get_model(seed=4)
    refit(model, data, history, **kwargs, callbacks=[lambda *_: True])
    assert (tmp_path / 'a').exists()
    (tmp_path / 'a').unlink()
    model = get_model(seed=4)
    refit(model, data, history, **kwargs)
    assert equal(get_weights(model), get_weights(expected))


def test_refit_drops_what_held_out_pairs_lack(data, history):
    rated = data.clone()
    num = rated[RATES].edge_index.size(1)
    rated[RATES].rating = torch.arange(num)
    rated[RATES].time = list(range(num))
    rated[RATES].unit, rated[RATES].top = 'stars', torch.tensor(5)
    held_out = rated[RATES].test_edge_label_index
    rated[RATES].test_edge_label = torch.arange(held_out.size(1)) % 2
    out = refit(get_model(), rated, history, progress=False)
    assert set(out[RATES].keys()) == {
        'edge_index',
        'edge_weight',
        'unit',
        'top',
    }
    assert {'rating', 'time'} <= set(rated[RATES].keys())
    # Pairs that are marked as negative ones are no training pairs:
    pairs = as_set(out[RATES].edge_index)
    assert as_set(held_out[:, 1::2]) <= pairs
    assert not as_set(held_out[:, ::2]) & pairs


def test_refit_errors(data, history):
    class Fixed(Toy):
        reset_parameters = None

        def __init__(self):
            torch.nn.Module.__init__(self)

    with pytest.raises(ValueError, match=r"'model' .* 'reset_p.* \(got Fixed"):
        refit(Fixed(), data, history)
    for other in (History(), None):
        with pytest.raises(ValueError, match=r"'history' .* best epoch \(got"):
            refit(get_model(), data, other)
    model = get_model()
    weights = get_weights(model)
    match = r"'splits' .* \(got 'train', but there is no 'train_edge_label_i"
    with pytest.raises(ValueError, match=match):
        refit(model, data, history, splits=['val', 'train'])
    assert equal(get_weights(model), weights)
