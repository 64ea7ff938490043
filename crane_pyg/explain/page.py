r"""A page that shows why items are recommended, to be opened in a browser."""

import csv
import io
import json
import mimetypes
from base64 import b64encode
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import torch
from jinja2 import Environment, StrictUndefined
from torch_geometric.data import HeteroData

from crane_pyg._files import replacing
from crane_pyg._mode import evaluation
from crane_pyg._rows import as_index
from crane_pyg.explain.scores import ScoreParts, explain_scores
from crane_pyg.nn.crane import CRANE
from crane_pyg.ranking import Ranker

__all__ = ['save_page']

MAX_HISTORY, MAX_CARRIERS, MAX_NEIGHBORS = 40, 3, 4
# Okabe and Ito chose them to be told apart by the colour-blind; in this order,
# neighbors differ in brightness as well:
COLORS: Final = (
    *('#0072B2', '#E69F00', '#009E73', '#56B4E9'),
    *('#D55E00', '#CC79A7', '#F0E442', '#8C8C8C'),
)
IMAGES: Final = ('image/png', 'image/jpeg', 'image/gif', 'image/webp')
KINDS: Final = {
    'behavior': ('behavior', 'people who chose alike chose it'),
    'item_graph': ('similar items', 'it resembles what the user likes'),
    'neighbors_co_rated': ('chosen together', 'with items of the user'),
    'neighbors_refined': ('learned neighbors', 'close to items of the user'),
    'neighbors_ease': ('regression', 'a linear model of the history'),
}


class Item(NamedTuple):
    r"""How an item is shown: its title, and its image or else a tile."""

    title: str
    image: Path | None = None
    hue: int = 0

    @property
    def source(self) -> str:
        r"""The image as an address that needs no network."""
        path = cast(Path, self.image)
        mime = mimetypes.guess_type(path.name, strict=False)[0]
        if mime not in IMAGES:
            raise ValueError(
                f"An image needs to be one of {list(IMAGES)} (got '{path}')"
            )
        return f'data:{mime};base64,{b64encode(path.read_bytes()).decode()}'


class Pick(NamedTuple):
    r"""A recommended item, the parts of its score, the items of the history
    that carry it, with what they do along edges and along paths, and the items
    most like it.
    """

    item: Item
    score: float
    parts: list[float]
    carriers: list[tuple[Item, float, float]]
    neighbors: list[Item]

    @property
    def rects(self) -> list[tuple[float, float]]:
        r"""The start and width of each part: positive ones are stacked to the
        right of zero, negative ones to the left.
        """
        left, right, out = 0.0, 0.0, []
        for part in self.parts:
            out.append((right if part >= 0.0 else left + part, abs(part)))
            left, right = left + min(part, 0.0), right + max(part, 0.0)
        return out


class Reader(NamedTuple):
    r"""A user, the history, and what is recommended."""

    name: str
    history: list[Item]
    picks: list[Pick]

    @property
    def span(self) -> tuple[float, float]:
        r"""Where the bars of all items start, and their common width."""
        rects = [(0.0, 0.0), *(x for pick in self.picks for x in pick.rects)]
        low = min(start for start, _ in rects)
        return low, max(start + size for start, size in rects) - low


def save_page(
    path: str | Path,
    model: CRANE,
    data: HeteroData,
    user_index: object,
    k: int = 10,
    ranker: Ranker | None = None,
    items: str | Path | Iterable[Mapping[str, Any]] | None = None,
    title: str = 'Why these items?',
    note: str = '',
) -> None:
    r"""Writes one HTML page that shows what :func:`explain_scores` says of the
    items recommended to some users.

    It needs no network, runs no script, and shows every text as it is.

    Args:
        path (str): The file, which gets its name once it is complete.
        model (CRANE): The model.
        data (torch_geometric.data.HeteroData): As in its forward pass.
        user_index (torch.Tensor): The users :math:`(B)`.
        k (int, optional): Number of items a user. (default: :obj:`10`)
        ranker (Ranker, optional): What ranks the items, see
            :func:`explain_scores`. (default: :obj:`None`)
        items (str or list[dict], optional): Rows with the index of an
            :obj:`"item"`, and its :obj:`"title"` and :obj:`"image"` if there
            are such; or a CSV or JSON file of them. Images are PNG, JPEG, GIF
            or WebP files, whose paths are relative to that of the rows.
            (default: :obj:`None`)
        title (str, optional): The title of the page.
            (default: :obj:`"Why these items?"`)
        note (str, optional): A line below it. (default: :obj:`""`)

    Raises:
        ValueError: If :obj:`k` or an index is out of its range, if an image is
            of another kind, or for what :func:`explain_scores` refuses.
    """
    with replacing(path) as temp:
        cpu = torch.device('cpu')
        users = as_index('user_index', user_index, model.size[0], cpu)
        shown = read_items(items, _hues(model, data))
        if ranker is None:
            ranked = model.recommend(data, users, k)
        else:
            ranked = ranker.recommend(users, k)
        names, readers = [], []
        for user, top in zip(users.tolist(), ranked, strict=True):
            top = top[top >= 0]  # There may be fewer items than asked for.
            out = explain_scores(model, data, user, top, ranker)
            picks = [
                Pick(
                    shown[item],
                    float(out.score[row]),
                    [float(part[row]) for part in out.parts.values()],
                    _carriers(out, row, shown),
                    [shown[n] for n in _neighbors(model, data, item)],
                )
                for row, item in enumerate(top.tolist())
            ]
            names = list(out.parts)
            history = [shown[item] for item in out.history.tolist()]
            readers.append(Reader(f'User {user}', history, picks))
        html = render(title, note, names, readers)
        temp.write_text(html, encoding='utf-8')


def read_items(
    items: str | Path | Iterable[Mapping[str, Any]] | None, hues: list[int]
) -> list[Item]:
    r"""Returns how items are shown; one without a title has its number."""
    out = [Item(f'Item {n}', None, hue) for n, hue in enumerate(hues)]
    folder, name = Path(), "'items'"
    if isinstance(items, (str, Path)):
        path = Path(items)
        folder, name, text = path.parent, str(path), path.read_text('utf-8-sig')
        is_json = path.suffix == '.json'
        rows = csv.DictReader(io.StringIO(text))
        items = json.loads(text) if is_json else rows
    for number, row in enumerate(items or (), start=1):
        index = _text(row, 'item')
        if not index.isdecimal() or int(index) >= len(out):
            raise ValueError(
                f"'item' in row {number} of {name} needs to be between 0 and "
                f'{len(out) - 1} (got {row})'
            )
        n, image = int(index), _text(row, 'image')
        # Cut off in a pair of code units, a title could not be written:
        title = _text(row, 'title').encode('utf-8', 'replace').decode()
        out[n] = Item(
            title or out[n].title, folder / image if image else None, hues[n]
        )
    return out


def _text(row: object, key: str) -> str:
    value = row.get(key) if isinstance(row, Mapping) else None
    return '' if value is None or value != value else str(value)


@torch.no_grad()
def _hues(model: CRANE, data: HeteroData) -> list[int]:
    r"""Gives items that are alike to the model similar colors."""
    with evaluation(model):
        x = torch.cat(model.encode_items(data), dim=-1).float()
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.eigh(x.t() @ x).eigenvectors[:, -2:]
    angle = torch.atan2(x[:, -1], x[:, 0]).rad2deg()
    return [*angle.long().remainder(360).tolist()]


def _neighbors(model: CRANE, data: HeteroData, item: int) -> list[int]:
    r"""Returns the nearest neighbors in the item graph, the nearest first."""
    edge_type = (model.edge_type[2], model.item_edge, model.edge_type[2])
    if edge_type not in data.edge_types:
        return []
    src, dst = data[edge_type].edge_index
    weight = data[edge_type].edge_weight[dst == item]
    order = weight.argsort(descending=True)[:MAX_NEIGHBORS]
    return [*src[dst == item][order].tolist()]


def _carriers(
    out: ScoreParts, row: int, items: list[Item]
) -> list[tuple[Item, float, float]]:
    r"""Returns the items that carry most of a score, along edges and paths."""
    path = out.carriers['embeddings'][row]
    total = torch.stack([x[row] for x in out.carriers.values()]).sum(dim=0)
    best = total.topk(min(MAX_CARRIERS, total.numel()))
    index = best.indices[best.values > 0.0]
    columns = out.history[index], (total - path)[index], path[index]
    rows = zip(*(x.tolist() for x in columns), strict=True)
    return [(items[n], edges, paths) for n, edges, paths in rows]


def render(
    title: str, note: str, names: list[str], readers: list[Reader]
) -> str:
    r"""Returns the page, the names being those of the parts of all scores."""
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    source = files(__package__).joinpath('page.html.jinja').read_text('utf-8')
    return environment.from_string(source).render(
        title=title,
        note=note,
        kinds=[_kind(name) for name in names],
        readers=readers,
        colors=COLORS,
        max_history=MAX_HISTORY,
    )


def _kind(part: str) -> tuple[str, str]:
    r"""Returns how the page calls a part, and what it says of it."""
    name = part.removeprefix('semantic_').removeprefix('neighbors_')
    return KINDS.get(part, (name, f'its {name} suits the user'))
