r"""The pictures of `examples/plots.py`."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.training import History, Recipe

pytest.importorskip('matplotlib')
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.image import imread

NUM_USERS, NUM_ITEMS, CHANNELS = 60, 40, 4
SIZES = {'image': 6, 'text': 5}
ROWS = [(0.7, 0.1), (0.6, 0.3), (0.5, 0.4), (0.4, 0.2)]


def get_history(num_epochs=4, metric='recall@20'):
    history = History(Recipe(metric=metric))
    for loss, value in ROWS[:num_epochs]:
        history.add({'loss': loss, metric: value}, {metric: value})
    return history


@pytest.fixture(scope='module')
def plots():
    path = Path(__file__).parents[2] / 'examples' / 'plots.py'
    spec = importlib.util.spec_from_file_location('plots', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def data():
    dataset = FakeMultimodalDataset(
        NUM_USERS, NUM_ITEMS, SIZES, missing_rate=0.1
    )
    return T.BuildDualGraph(k=3)(dataset[0])


def get_model(**kwargs):
    r"""A model whose RCA does something, as after some training."""
    torch.manual_seed(12)
    kwargs = {'mode': 'correlation', **kwargs}
    model = CRANE(NUM_USERS, NUM_ITEMS, SIZES, CHANNELS, **kwargs)
    with torch.no_grad():
        for x in [*model.parameters(), *model.buffers()]:
            if x.is_floating_point():
                x += 0.5 * torch.rand_like(x)
    return model


def get_points(axes):
    r"""Returns the positions of all items, which may be in several groups."""
    dots = [x for x in axes.collections if isinstance(x, PathCollection)]
    return torch.cat([torch.tensor(x.get_offsets().data) for x in dots])


def get_num_edges(axes):
    (lines,) = [x for x in axes.collections if isinstance(x, LineCollection)]
    return len(lines.get_segments())


def get_legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize('metric', ['recall@20', 'ndcg@5'])
@pytest.mark.parametrize(
    ('num_epochs', 'best', 'value'), [(4, 3, 0.4), (1, 1, 0.1)]
)
def test_draw_training(plots, num_epochs, best, value, metric):
    history = get_history(num_epochs, metric)
    figure = plots.draw_training('toys', history)
    assert figure.get_suptitle() == 'Training of CRANE on toys'
    top, bottom = figure.axes
    assert top.get_ylabel() == 'Training loss'
    assert bottom.get_ylabel() == f'Validation {metric}'
    assert bottom.get_xlabel() == 'Epoch'
    for axes, column in [(top, 0), (bottom, 1)]:
        line = axes.lines[0]
        assert list(line.get_xdata()) == list(range(1, num_epochs + 1))
        expected = [row[column] for row in ROWS[:num_epochs]]
        assert list(line.get_ydata()) == pytest.approx(expected)
        assert list(axes.lines[-1].get_xdata()) == [best, best]
    star = bottom.lines[1]
    assert (star.get_xdata(), star.get_ydata()) == ([best], [value])
    (text,) = bottom.get_legend().get_texts()
    assert text.get_text() == f'Best epoch: {best}, with {value:.4f}'


def units(x):
    x = x.unflatten(1, (-1, CHANNELS))
    return torch.nn.functional.normalize(x, dim=2).flatten(1)


def test_item_streams(plots, data):
    # Missing features leave no trace, so all items are alike in them:
    model = get_model()
    before, after = plots.item_streams(model, data)
    for x in (before, after):
        assert x.size() == (NUM_ITEMS, 2 * CHANNELS)
        for stream, name in zip(x.split(CHANNELS, dim=1), SIZES, strict=True):
            missing = data['item'][f'x_{name}'].isnan().any(dim=1)
            norm = stream.norm(dim=1)
            assert missing.any()
            assert torch.equal(norm[missing], torch.zeros(int(missing.sum())))
            torch.testing.assert_close(norm[~missing], torch.ones(36))
    assert not torch.allclose(before, after, atol=0.1)

    # What the model itself ranks by, without any propagation:
    model = get_model(num_layers=0, num_item_layers=0, use_id=False)
    _, after = plots.item_streams(model, data)
    torch.testing.assert_close(after, units(model.eval()(data).item))
    assert len(model.encoder.rca._forward_hooks) == 0

    # Without RCA, both are what goes into it otherwise:
    other = get_model(num_layers=0, num_item_layers=0, use_id=False, mode=None)
    other.load_state_dict(model.state_dict(), strict=False)
    xs = plots.item_streams(other, data)
    assert torch.equal(*xs)
    torch.testing.assert_close(xs[0], units(other.eval()(data).item))
    torch.testing.assert_close(xs[0], plots.item_streams(model, data)[0])


def get_clusters(size=20):
    torch.manual_seed(12)
    cluster = torch.arange(4).repeat_interleave(size)
    return 3 * torch.eye(6)[cluster] + 0.1 * torch.randn(4 * size, 6), cluster


def test_t_sne_keeps_neighbors(plots):
    x, cluster = get_clusters()
    before = torch.get_rng_state()
    y = plots.t_sne(x, perplexity=10)
    assert torch.equal(torch.get_rng_state(), before)
    assert y.size() == (80, 2)
    dist = torch.cdist(y, y)
    same = cluster.unsqueeze(0) == cluster.unsqueeze(1)
    assert dist[same].max() < dist[~same].min()
    assert torch.equal(plots.t_sne(x, perplexity=10), y)

    # It begins where it is told to, here with a mirror image:
    z = plots.t_sne(x, -y, perplexity=10)
    assert (z + y).norm(dim=1).max() < 0.2 * dist.max()
    assert (z - y).norm(dim=1).max() > 0.8 * dist.max()


def test_t_sne_of_copies(plots):
    x = torch.zeros(50, 3)
    x[:3] = torch.eye(3)
    y = plots.t_sne(x)
    assert y.isfinite().all()
    assert math.isclose(float(y.mean()), 0, abs_tol=1e-3)


def test_square_dist(plots):
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    out = plots.square_dist(x)
    expected = (x.unsqueeze(0) - x.unsqueeze(1)).square().sum(dim=-1)
    torch.testing.assert_close(out, expected)
    assert (out >= 0).all()


def test_similarity(plots):
    x = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    edge_index = torch.tensor([[0, 1], [1, 2]])
    # Cosines of 1 and 0 if linked; over all pairs, the items themselves
    # included, five ones of nine.
    out = plots.similarity(x, edge_index)
    assert out == 'mean cosine: 0.50 if linked, 0.56 of any two'


@pytest.mark.parametrize('mode', ['correlation', 'token', None])
def test_draw_items(plots, data, mode):
    model = get_model(mode=mode)
    figure = plots.draw_items('toys', model, data)
    assert figure.get_suptitle() == '40 of the 40 items of toys'
    left, right = figure.axes
    title, text = left.get_title().split('\n')
    assert title == 'Before RCA'
    assert text.startswith('mean cosine: 0.')
    title, _ = right.get_title().split('\n')
    if mode is None:
        assert title == 'After = before: this model has no RCA'
        assert torch.equal(get_points(left), get_points(right))
    else:
        assert title == 'After RCA'
        assert not torch.equal(get_points(left), get_points(right))
    num_edges = data['item', 'similar_to', 'item'].num_edges
    for axes in (left, right):
        assert get_points(axes).size() == (40, 2)
        assert get_num_edges(axes) == num_edges
        assert axes.get_xlabel() == 't-SNE, first axis'
        assert axes.get_ylabel() == 't-SNE, second axis'
    assert get_legend(figure)[0] == 'edge of the item graph'


def get_sizes(axes):
    r"""Returns how many items have each color."""
    dots = [x for x in axes.collections if isinstance(x, PathCollection)]
    return {tuple(x.get_facecolor()[0]): len(x.get_offsets()) for x in dots}


def test_draw_items_by_neighborhood(plots, data, monkeypatch):
    r"""Without categories, popular items and their neighbors have a color."""
    monkeypatch.setattr(plots, 'COLORS', plots.COLORS[:2])
    pairs = data['user', 'rates', 'item'].edge_index[1]
    count = pairs.bincount(minlength=40).tolist()
    src, dst = data['item', 'similar_to', 'item'].edge_index.tolist()
    near = [{i} for i in range(40)]
    for i, j in zip(src, dst, strict=True):
        near[j].add(i)
    first, *order = sorted(range(40), key=lambda i: -count[i])
    second = next(i for i in order if i not in near[first])
    sizes = [len(near[first]), len(near[second] - near[first])]

    monkeypatch.setattr(plots, 'MAX_ITEMS', sum(sizes) + 3)
    figure = plots.draw_items('toys', get_model(), data)
    names = [f'item {i} and neighbors' for i in (first, second)]
    assert get_legend(figure)[1:] == ['other items', *names]
    for axes in figure.axes:
        assert list(get_sizes(axes).values()) == [3, *sizes]


def test_draw_items_of_many(plots, data, monkeypatch):
    monkeypatch.setattr(plots, 'MAX_ITEMS', 30)
    figure = plots.draw_items('toys', get_model(), data)
    assert figure.get_suptitle() == '30 of the 40 items of toys'
    num_edges = data['item', 'similar_to', 'item'].num_edges
    for axes in figure.axes[:2]:
        assert get_points(axes).size() == (30, 2)
        assert 0 < get_num_edges(axes) < num_edges


@pytest.mark.parametrize('key', ['category', 'y'])
def test_draw_items_by_category(plots, data, key):
    # Category 5 is the most common one, and others are too rare for a color:
    sizes = {5: 10, 3: 6, 4: 5, 6: 4, 7: 4, 8: 4, 9: 4, -1: 1, 1: 1, 2: 1}
    category = [c for c, size in sizes.items() for _ in range(size)]
    data['item'][key] = torch.tensor(category)
    figure = plots.draw_items('toys', get_model(), data)
    legend = get_legend(figure)
    assert legend[:4] == [
        'edge of the item graph',
        'other items',
        'category 5',
        'category 3',
    ]
    assert sorted(legend[2:]) == [f'category {c}' for c in range(3, 10)]
    for axes in figure.axes:
        assert get_points(axes).size() == (40, 2)
        sizes = list(get_sizes(axes).values())
        assert sizes == [3, 10, 6, 5, 4, 4, 4, 4]


def test_save_plots(plots, data, tmp_path):
    before = torch.get_rng_state()
    model, history = get_model(), get_history()
    torch.set_rng_state(before)
    plots.save_plots(str(tmp_path), r'toys$\frac$', model, data, history)
    assert torch.equal(torch.get_rng_state(), before)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ['items.png', 'training.png']
    assert imread(tmp_path / 'items.png').shape[:2] == (990, 1800)
    assert imread(tmp_path / 'training.png').shape[:2] == (900, 1050)
    first = [(tmp_path / file).read_bytes() for file in files]
    plots.save_plots(tmp_path, r'toys$\frac$', model, data, history)
    assert [(tmp_path / file).read_bytes() for file in files] == first
