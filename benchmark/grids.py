r"""What every model may choose its settings from, and what it chose."""

import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / 'results' / 'tuning'
Grid = dict[str, list[Any]]

FACTORIZATION: Grid = {
    'lambda_reg': [0.01, 0.03, 0.1, 0.3],
    'lr': [0.001, 0.003],
}
SAME_RECIPE: Grid = {
    'lambda_reg': [1e-3, 3e-3, 1e-2, 3e-2],
    'disjoint': [True, False],
}
GRIDS: dict[str, Grid] = {
    'crane': SAME_RECIPE,
    'mf-bpr': FACTORIZATION,
    'vbpr': FACTORIZATION,
    'lightgcn': {
        'lambda_reg': [1e-5, 1e-4, 1e-3, 1e-2],
        'num_layers': [2, 3],
    },
    'lightgcn-same-recipe': SAME_RECIPE,
    'freedom': {
        'lambda_reg': [0.0, 1e-3],
        'mm_weight': [1e-3, 1e-2],
        'edge_dropping': [0.8, 0.9],
    },
    'freedom-same-recipe': SAME_RECIPE,
    'freedom-neighborhood': {
        'lambda_reg': [1e-3, 3e-3],
        'disjoint': [True, False],
        'scale': [0.5, 1.0],
    },
    'mgcn': {
        'lambda_reg': [1e-4, 1e-3],
        'contrast_weight': [3e-3, 1e-2],
        'lr': [0.001, 0.003],
    },
    'mgcn-same-recipe': SAME_RECIPE,
    'mgcn-neighborhood': {
        'lambda_reg': [1e-2, 3e-2],
        'disjoint': [True, False],
        'scale': [0.1, 0.3],
    },
}
LADDERS: dict[str, list[float]] = {
    'lambda_reg': [
        0.0, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0
    ],
    'lr': [3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1],
    'num_layers': [1, 2, 3, 4],
    'mm_weight': [1e-4, 1e-3, 0.01, 0.1, 1.0],
    'edge_dropping': [0.5, 0.6, 0.7, 0.8, 0.9, 0.95],
    'scale': [0.03, 0.1, 0.3, 0.5, 1.0, 2.0, 4.0],
    'contrast_weight': [3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1],
}  # fmt: skip


def settings(grid: Grid) -> list[dict[str, Any]]:
    """All combinations of the values of a grid."""
    return [
        dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]


def to_run(name: str, runs: list[dict]) -> list[dict[str, Any]]:
    """What is left of a grid, or else what lies beyond its best setting."""
    return left_of_grid(name, runs) or beyond(runs)


def left_of_grid(name: str, runs: list[dict]) -> list[dict[str, Any]]:
    """The settings of a grid without a run."""
    done = [run['overrides'] for run in runs]
    return [s for s in settings(GRIDS[name]) if s not in done]


def beyond(runs: list[dict]) -> list[dict[str, Any]]:
    """The best setting, with every value at the border of those tried moved
    one further, if there is a further one.
    """
    steps, top = [], best(runs)['overrides']
    for name in top.keys() & LADDERS.keys():
        ladder, tried = LADDERS[name], [run['overrides'][name] for run in runs]
        place = ladder.index(top[name])
        if top[name] == min(tried):
            steps += [(name, value) for value in ladder[:place][-1:]]
        if top[name] == max(tried):
            steps += [(name, value) for value in ladder[place + 1 :][:1]]
    return [{**top, name: value} for name, value in sorted(steps)]


def tuned(folder: Path) -> dict[tuple[str, str], list[dict]]:
    """The runs of each data set and model."""
    out = defaultdict(list)
    for path in sorted(folder.glob('*.json')):
        record = json.loads(path.read_text())
        out[record['dataset'], record['tuned']].append(record)
    return out


def chosen(name: str, runs: list[dict]) -> dict[str, Any]:
    """What a model is trained with: the best setting of a grid that was run as
    a whole, or its defaults, which CRANE keeps on all data.
    """
    if name == 'crane' or left_of_grid(name, runs):
        return {}
    return best(runs)['overrides']


def best(runs: list[dict]) -> dict:
    """The run that did best on the validation pairs."""
    return max(runs, key=score)


def score(record: dict) -> float:
    """What settings are chosen by."""
    return record['valid']['recall@20']
