r"""Pictures of a training, and of the items before and after RCA."""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.utils import degree, subgraph

from crane_pyg.nn import CRANE
from crane_pyg.training import History

MAX_ITEMS = 1000  # More would hide each other.
# The palette of Okabe and Ito, which color-blind people can tell apart:
BLUE, ORANGE, GRAY, LIGHT = '#0072B2', '#D55E00', '#999999', '#BBBBBB'
COLORS = [BLUE, '#E69F00', '#009E73', '#CC79A7', '#56B4E9', ORANGE, '#000000']


def save_plots(
    folder: str | Path,
    name: str,
    model: CRANE,
    data: HeteroData,
    history: History,
) -> None:
    """Writes `training.png` and `items.png`."""
    name = name.replace('$', r'\$')  # No formula begins there.
    figures = {
        'training.png': draw_training(name, history),
        'items.png': draw_items(name, model, data),
    }
    for file, figure in figures.items():
        temp = Path(folder, f'.{file}')
        figure.savefig(temp, format='png', dpi=150)
        temp.replace(Path(folder, file))


def draw_training(name: str, history: History) -> Figure:
    """Draws the loss and the validation metric of every epoch."""
    epochs = range(1, len(history) + 1)
    best, metric = history.best_epoch, history.recipe.metric
    value = history.best[metric]
    figure = Figure(figsize=(7, 6), layout='constrained')
    figure.suptitle(f'Training of CRANE on {name}')
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(epochs, history.loss, 'o-', color=BLUE, markersize=4)
    top.set_ylabel('Training loss')
    bottom.plot(epochs, history.metric, 'o-', color=BLUE, markersize=4)
    bottom.set_ylabel(f'Validation {metric}')
    bottom.set_xlabel('Epoch')
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    label = f'Best epoch: {best}, with {value:.4f}'
    bottom.plot(best, value, '*', color=ORANGE, markersize=15, label=label)
    bottom.legend(loc='lower right')
    for axes in [top, bottom]:
        axes.axvline(best, color=ORANGE, linestyle='--', linewidth=1, zorder=0)
        axes.grid(alpha=0.3)
    return figure


def draw_items(name: str, model: CRANE, data: HeteroData) -> Figure:
    """Draws a map of the items and their graph, before and after RCA."""
    streams = item_streams(model, data)
    num_items, item = streams[0].size(0), model.edge_type[2]
    edge_index = data[item, model.item_edge, item].edge_index.cpu()
    groups = get_groups(model, data, edge_index)
    index = choose_items(num_items, groups)
    edge_index, _ = subgraph(
        index, edge_index, relabel_nodes=True, num_nodes=num_items
    )
    before, after = (x[index] for x in streams)
    left = t_sne(before)
    right, title = left, 'After = before: this model has no RCA'
    if model.encoder.rca is not None:
        right, title = t_sne(after, left), 'After RCA'

    figure = Figure(figsize=(12, 6.6), layout='constrained')
    figure.suptitle(f'{len(index)} of the {num_items} items of {name}')
    panels = figure.subplots(1, 2)
    alpha = min(max(500 / (edge_index.size(1) + 1), 0.04), 0.5)
    for axes, when, x, point in [
        (panels[0], 'Before RCA', before, left),
        (panels[1], title, after, right),
    ]:
        axes.set_title(f'{when}\n{similarity(x, edge_index)}', fontsize=11)
        axes.set_xlabel('t-SNE, first axis')
        axes.set_ylabel('t-SNE, second axis')
        end = 1.05 * float(point.abs().max())
        axes.set(xlim=(-end, end), ylim=(-end, end), xticks=[], yticks=[])
        axes.set_aspect('equal')
        lines = point[edge_index.t()].numpy()
        style = {'colors': GRAY, 'linewidths': 0.5, 'alpha': alpha}
        axes.add_collection(LineCollection(lines, zorder=0, **style))
    color_items(figure, panels, [left, right], groups, index)
    return figure


def get_groups(
    model: CRANE, data: HeteroData, edge_index: Tensor
) -> dict[str, Tensor]:
    """Returns masks of the items that have a color: those of the most common
    categories if these are known, or else some popular items, each with its
    neighbors in the item graph.
    """
    store = data[model.edge_type[2]]
    category = store.get('category', store.get('y'))
    if category is not None:
        category = category.cpu()
        value, count = category.unique(return_counts=True)
        common = value[count.argsort(descending=True)[: len(COLORS)]]
        return {f'category {c}': category == c for c in common.tolist()}
    pairs = data[model.edge_type].edge_index[1].cpu()
    count, groups = degree(pairs, store.num_nodes), {}
    taken = torch.zeros(store.num_nodes, dtype=torch.bool)
    for item in count.argsort(descending=True, stable=True).tolist():
        if not taken[item] and len(groups) < len(COLORS):
            mask = torch.zeros_like(taken)
            mask[edge_index[0, edge_index[1] == item]] = True
            mask[item] = True
            groups[f'item {item} and neighbors'] = mask & ~taken
            taken |= mask
    return groups


def choose_items(num_items: int, groups: dict[str, Tensor]) -> Tensor:
    """Draws items by chance if there are many; neighborhoods stay whole."""
    rng = torch.Generator().manual_seed(0)
    index = torch.randperm(num_items, generator=rng)
    if not any(label.startswith('category') for label in groups):
        colored = torch.stack(list(groups.values())).any(dim=0)
        index = torch.cat([index[colored[index]], index[~colored[index]]])
    return index[:MAX_ITEMS].sort()[0]


@torch.no_grad()
def item_streams(model: CRANE, data: HeteroData) -> tuple[Tensor, Tensor]:
    """Returns the streams of all modalities, side by side, as they go into
    RCA and as they come out of it.
    """
    if model.encoder.rca is None:
        x = beside([project(model, data, name) for name in model.in_channels])
        return x, x
    calls: list[tuple[Any, Any]] = []
    hook = model.encoder.rca.register_forward_hook(
        lambda _, args, out: calls.append((args[0], out))
    )
    try:
        model.eval()(data)
    finally:
        hook.remove()
    before, after = calls[0]
    return beside(before), beside(after)


def project(model: CRANE, data: HeteroData, name: str) -> Tensor:
    """Returns the stream of a modality without RCA, zeros if it is missing."""
    x = data[model.edge_type[2]][f'x_{name}']
    linear = model.encoder.lins[f'x_{name}']
    is_there = x.abs().amax(dim=-1, keepdim=True) > 0  # Drops NaN as well.
    x = x.where(is_there, 0.0).to(linear.weight.dtype)
    return linear(F.normalize(x, dim=-1)) * is_there


def beside(xs: list[Tensor]) -> Tensor:
    """Puts streams side by side, each scaled to unit length."""
    return torch.cat([F.normalize(x, dim=-1) for x in xs], dim=-1).cpu()


def t_sne(
    x: Tensor,
    start: Tensor | None = None,
    num_steps: int = 300,
    perplexity: float = 30.0,
) -> Tensor:
    """Lays out rows in the plane such that neighbors stay neighbors (van der
    Maaten and Hinton, 2008), beginning with a layout or else with a PCA.
    """
    size = x.size(0)
    dist = square_dist(x).fill_diagonal_(float('inf'))
    goal = math.log(min(perplexity, (size - 1) / 3))
    low, high = x.new_zeros(size, 1), x.new_full((size, 1), 1e4)
    for _ in range(40):  # Bisects for the number of neighbors.
        scale = (low + high) / 2
        p = (-dist * scale).softmax(dim=1)
        many = torch.special.entr(p).sum(dim=1, keepdim=True) > goal
        low, high = scale.where(many, low), high.where(many, scale)
    p = (p + p.t()) / (2 * size)

    if start is None:
        y = x @ torch.linalg.eigh(x.t().cov())[1][:, [-1, -2]]
        y = 0.01 * y / y.std()
    else:
        y = start
    step = torch.zeros_like(y)
    for i in range(num_steps):
        early = start is None and i < num_steps // 3
        near = (1 / (1 + square_dist(y))).fill_diagonal_(0)
        pull = near * (p * (12 if early else 1) - near / near.sum())
        grad = 4 * (pull.sum(dim=1, keepdim=True) * y - pull @ y)
        step = (0.5 if early else 0.8) * step - size / 12 * grad
        y = y + step
    return y - y.mean(dim=0)


def square_dist(x: Tensor) -> Tensor:
    """Returns the squared distances between all rows."""
    square = x.square().sum(dim=1)
    dist = square.unsqueeze(0) + square.unsqueeze(1) - 2 * x @ x.t()
    return dist.clamp(min=0)


def similarity(x: Tensor, edge_index: Tensor) -> str:
    """Tells how much more alike linked items are than others."""
    x = F.normalize(x, dim=-1)
    linked = (x[edge_index[0]] * x[edge_index[1]]).sum(dim=-1).mean()
    pairs = (x @ x.t()).mean()
    return f'mean cosine: {linked:.2f} if linked, {pairs:.2f} of any two'


def color_items(
    figure: Figure,
    panels: list[Axes],
    points: list[Tensor],
    groups: dict[str, Tensor],
    index: Tensor,
) -> None:
    """Colors the items of each group, and leaves the others gray."""
    other = ~torch.stack(list(groups.values())).any(dim=0)
    handles = [Line2D([], [], color=GRAY, label='edge of the item graph')]
    for color, size, (label, mask) in zip(
        [LIGHT, *COLORS],
        [8, *[24] * len(COLORS)],
        {'other items': other, **groups}.items(),
        strict=False,
    ):
        if mask[index].any():
            for axes, x in zip(panels, points, strict=True):
                xy = x[mask[index]].t()
                dots = axes.scatter(*xy, size, color, label=label)
            handles.append(dots)
    figure.legend(handles=handles, loc='outside lower center', ncols=5)
