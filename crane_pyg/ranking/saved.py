r"""Rankers as files that load without running code."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import torch

from crane_pyg._files import refusing_damage, save_plain
from crane_pyg.ranking.neighborhood import DenseRows, Graph, Neighborhood

FORMAT: Final = 'crane_pyg.Ranker 1'

T = TypeVar('T')


def save_content(
    path: str | Path, neighborhood: Neighborhood, content: dict[str, Any]
) -> None:
    r"""Saves a neighborhood and other tensors and plain values."""
    graphs: dict[str, Graph] = {}
    for name, rows in neighborhood.relations.items():
        if isinstance(rows, DenseRows):
            graphs[name] = rows.value
        else:
            graphs[name] = (rows.get_edge_index(), rows.value)
    content = {
        'format': FORMAT,
        'size': list(neighborhood.size),
        'history': neighborhood.history.get_edge_index(),
        'graphs': graphs,
        **content,
    }
    save_plain(path, content, 'The ranker')


def load_content(
    path: str | Path,
    map_location: torch.device | str,
    build: Callable[[Neighborhood, dict[str, Any]], T],
) -> T:
    r"""Returns what is built of a neighborhood and the other values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds something else.
    """
    path = Path(path).expanduser()
    with refusing_damage(path, 'ranker'):
        content = dict(torch.load(path, map_location, weights_only=True))
        if content.pop('format') != FORMAT:
            raise ValueError('another format')
        num_users, num_items = content.pop('size')
        history, graphs = content.pop('history'), content.pop('graphs')
        near = Neighborhood(history, graphs, (num_users, num_items))
        return build(near, content)
