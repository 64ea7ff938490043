r"""What the scripts that train share: data, settings, a training, scores."""

import argparse
import copy
import dataclasses
import inspect
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import records
import torch
from models import RATES, Entry
from provenance import provenance
from records import Record
from torch import Tensor
from torch.nn import Module
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData
from torch_geometric.utils import coalesce

import crane_pyg.transforms as T
from crane_pyg._mode import evaluation
from crane_pyg.datasets import FakeMultimodalDataset, read_mmrec
from crane_pyg.ranking import Ranker, relations
from crane_pyg.training import Recipe, fit

Setting = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What all scripts that train take."""
    parser.add_argument('--data', nargs='+', default=[], metavar='FOLDER')
    parser.add_argument('--demo', action='store_true', help='use fake data')
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--threads', type=int, help='of this process')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--results', type=Path, default=records.RESULTS)
    parser.add_argument(
        '--set',
        nargs='+',
        default=[],
        metavar='NAME=JSON',
        help='values of the recipe, of the loss or of the model, in place of '
        'those that were chosen on these data, e.g., lr=0.001',
    )
    parser.add_argument('--tag', help='ends the names of the models')
    parser.add_argument(
        '--keep', action='store_true', help='skip what has a result'
    )


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Reads the options, and sets the number of threads."""
    args = parser.parse_args()
    if args.demo == bool(args.data):
        parser.error('needs either --demo or --data FOLDER')
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    args.data = args.data or [None]
    return args


def name_of(folder: str | None) -> str:
    """The name of a data set."""
    return 'fake' if folder is None else Path(folder).resolve().name


def read(folder: str | None, seed: int = 0) -> HeteroData:
    """Reads the data; fake data are other ones for each seed."""
    if folder is None:
        return FakeMultimodalDataset(seed=seed)[0]
    return read_mmrec(folder)


def load(folder: str | None, seed: int = 0, device: str = 'cpu') -> HeteroData:
    """Reads the data, and builds their graphs."""
    return T.BuildDualGraph()(read(folder, seed)).to(device)


def parse_setting(assignments: list[str]) -> Setting:
    """Values by name, as the option `--set` takes them."""
    pairs = (text.split('=', 1) for text in assignments)
    return {name: json.loads(value) for name, value in pairs}


def split(entry: Entry, setting: Setting) -> tuple[Recipe, Setting, Setting]:
    """The recipe, the options of the loss and those of the model."""
    rest = dict(setting)
    names = {field.name for field in dataclasses.fields(Recipe)}
    values = {name: rest.pop(name) for name in names & rest.keys()}
    kind = entry.make
    if not inspect.isclass(kind):  # A function, which says what it returns.
        kind = inspect.get_annotations(kind, eval_str=True)['return']
    loss_fn = getattr(kind, 'loss_terms', kind.loss)
    known = inspect.signature(loss_fn).parameters.keys() & rest.keys()
    loss = {**entry.loss, **{name: rest.pop(name) for name in known}}
    return replace(entry.recipe, **values), loss, rest


def chosen(dataset: str, name: str, results: Path) -> Setting:
    """The setting that did best on the validation pairs of those that were
    tried, here or in the repository; CRANE keeps its defaults on all data.
    """
    path = records.path_of('tuning', dataset, results)
    if not path.exists():
        path = records.path_of('tuning', dataset)
    runs = [x for x in records.read(path) if x['model'] == name]
    if name == 'crane' or not runs:
        return {}
    best = max(runs, key=lambda run: run['valid']['alone']['recall@20'])
    return best['overrides']


def train(
    entry: Entry,
    data: HeteroData,
    seed: int,
    setting: Setting,
    progress: bool | None = None,
    **options: Any,
) -> tuple[Module, Record]:
    """Trains a model; returns it, and what is told of the training."""
    seed_everything(seed)
    recipe, loss, kwargs = split(entry, setting)
    model = entry.make(data, **kwargs).to(data[RATES].edge_index.device)
    history = fit(
        model,
        data,
        recipe,
        loss_options=loss,
        progress=sys.stderr.isatty() if progress is None else progress,
        **options,
    )
    return model, {
        'best_epoch': history.best_epoch,
        'epochs': len(history),
        'seconds': round(history.seconds, 2),
        'curve': [round(value, 5) for value in history.metric],
        'recipe': {**asdict(recipe), **loss},
        'overrides': setting,
    }


@torch.no_grad()
def embed(model: Module, data: HeteroData) -> tuple[Tensor, Tensor]:
    """Embeds all users and items on the full graph."""
    with evaluation(model):
        user, item = model(data)[:2]
    return user, item


def score(data: HeteroData, user: Tensor, item: Tensor) -> Record:
    """The metrics of embeddings alone and of the ranker that has them."""
    alone = Ranker.fit(data, user, item, relations=())
    ranker, weights = blend(data, user, item)
    rankers = {'alone': alone, 'ranker': ranker}
    return {**evaluate(data, rankers), 'weights': weights}


def blend(
    data: HeteroData, user: Tensor | None = None, item: Tensor | None = None
) -> tuple[Ranker, dict[str, float]]:
    """The ranker with its defaults, and its weights. The closed-form relation
    of many items, which takes minutes, is made once for all models.
    """
    kept, size = 'ease_100', (data['user'].num_nodes, data['item'].num_nodes)
    if not relations.FULL_ITEMS < size[1] <= relations.MAX_ITEMS:
        ranker = Ranker.fit(data, user, item)
        return ranker, ranker.weights
    data = copy.copy(data)
    graph = closed_form(data[RATES].edge_index, size)
    data['item', kept, 'item'].edge_index = graph[0]
    data['item', kept, 'item'].edge_weight = graph[1]
    names = [name for name in relations.DEFAULT if name != relations.EASE]
    if item is None:
        names.remove(relations.REFINED)
    ranker = Ranker.fit(data, user, item, relations=[*names, kept])
    weights = ranker.weights
    weights[relations.EASE] = weights.pop(kept)
    return ranker, weights


@lru_cache(maxsize=1)
def closed_form(pairs: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The edges and weights of the closed-form relation."""
    pairs = coalesce(pairs, num_nodes=max(size))
    return relations.ease_graph(pairs, size, None, None)[0]


def evaluate(data: HeteroData, rankers: dict[str, Ranker]) -> Record:
    """The metrics of some rankers on validation and test pairs."""
    out: Record = {}
    for key, split_name in [('valid', 'val'), ('test', 'test')]:
        pairs = data[RATES][f'{split_name}_edge_label_index']
        out[key] = {
            name: {k: round(v, 6) for k, v in ranker.evaluate(pairs).items()}
            for name, ranker in rankers.items()
        }
    return out


def keep(
    args: argparse.Namespace,
    question: str,
    record: Record,
) -> None:
    """Writes one result with all that is needed to repeat it."""
    path = records.path_of(question, record['dataset'], args.results)
    origin = provenance(args.device)
    record = {**record, **origin, 'threads': torch.get_num_threads()}
    records.put(path, record)


def with_tag(name: str, tag: str | None) -> str:
    """The name of a model in the results."""
    return f'{name}-{tag}' if tag else name


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the seconds it takes."""
    start = time.perf_counter()
    out = function()
    return out, round(time.perf_counter() - start, 2)
