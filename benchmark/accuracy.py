r"""Trains models in one harness, and keeps one JSON file per run.

python benchmark/accuracy.py --demo --models crane lightgcn --seeds 0 1 2
python benchmark/accuracy.py --data path/to/folder --models crane

Each has the settings that it chose on these data, where tune.py has run.
"""

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import grids
import numpy
import torch
from models import MODELS, Model, Recipe
from provenance import provenance
from torch import Tensor
from torch_geometric import seed_everything
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg._files import replacing
from crane_pyg.datasets import FakeMultimodalDataset, read_mmrec
from crane_pyg.ranking import (
    evaluate,
    evaluate_item_graph,
    evaluate_popularity,
    top_k,
)
from crane_pyg.training import sample_negatives

RESULTS = Path(__file__).parent / 'results'
RATES = ('user', 'rates', 'item')
# How many epochs without gain end a run:
PATIENCE, SLOW_LEARNERS = 10, {'freedom': 20, 'vbpr': 20}
REFERENCES = {
    'most-popular': evaluate_popularity,
    'item-graph': evaluate_item_graph,
    'co-rated': partial(evaluate_item_graph, item_edge='co_rated'),
}


def main() -> None:
    """Runs all models with all seeds on one data set."""
    parser = argparse.ArgumentParser()
    add_options(parser, RESULTS, patience=None)
    parser.add_argument('--demo', action='store_true', help='use fake data')
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--batch-size', type=int, default=8192)
    parser.add_argument('--lr', type=float, default=0.003)
    parser.add_argument(
        '--set',
        nargs='+',
        default=[],
        metavar='NAME=VALUE',
        help='arguments of the models, in JSON, e.g., lambda_reg=0.001, in '
        'place of those that were tuned',
    )
    parser.add_argument('--tag', default='', help='ends the name of the model')
    parser.add_argument('--tuning', type=Path, default=grids.RESULTS)
    args = parser.parse_args()
    if args.demo == bool(args.data):
        parser.error('needs either --demo or --data DIR')

    tuned = grids.tuned(args.tuning)
    runs = [
        (name, as_tuned(with_patience(args, name), name, tuned))
        for name in args.models
    ]
    kept = {  # Before any training, as none of them must be lost.
        (name, seed): kept_result(setting, name + args.tag, seed)
        for seed, (name, setting) in itertools.product(args.seeds, runs)
    }
    for seed in args.seeds:
        if args.demo or seed == args.seeds[0]:
            data = load_data(args, seed)
            for name, reference in REFERENCES.items():
                result = refer(reference, data)
                save(args, name, seed if args.demo else None, result)
        for name, setting in runs:
            if is_longer(kept[name, seed], setting):
                print(name, 'stays, as it was allowed to train for longer')
                continue
            print(name, *setting.set or ['as by default'])
            result = fit(name, data, seed, setting)
            save(setting, name + args.tag, seed, result)


def add_options(
    parser: argparse.ArgumentParser,
    results: Path,
    patience: int | None = PATIENCE,
) -> None:
    """What all scripts that train by this harness take, and what it needs of
    those that do not ask for more.
    """
    parser.add_argument('--data', help='a folder in the MMRec layout')
    parser.add_argument('--epochs', type=int, default=200)
    parser.add_argument('--patience', type=int, default=patience)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--results', type=Path, default=results)
    parser.set_defaults(demo=False, batch_size=8192, lr=0.003, set=[])


def load_data(args: argparse.Namespace, seed: int = 0) -> HeteroData:
    """Reads the data; fake data are other ones for each seed."""
    if args.demo:
        data = FakeMultimodalDataset(seed=seed)[0]
    else:
        data = read_mmrec(args.data)
    return T.BuildDualGraph()(data).to(args.device)


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of the models that are not their defaults."""
    pairs = (text.split('=', 1) for text in args.set)
    return {name: json.loads(value) for name, value in pairs}


def assignments(setting: dict[str, Any]) -> list[str]:
    """A setting, as the option `--set` takes it."""
    return [f'{name}={json.dumps(value)}' for name, value in setting.items()]


def as_tuned(
    args: argparse.Namespace, name: str, tuned: dict[tuple[str, str], list]
) -> argparse.Namespace:
    """The options, with the settings that a model chose, if none are given."""
    if args.set:
        return args
    runs = tuned[dataset_name(args), name]
    setting = assignments(grids.chosen(name, runs))
    return argparse.Namespace(**{**vars(args), 'set': setting})


def with_patience(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The options, with the patience that a model needs, if none is given."""
    patience = args.patience
    if patience is None:
        patience = SLOW_LEARNERS.get(name, PATIENCE)
    return argparse.Namespace(**{**vars(args), 'patience': patience})


def refer(
    reference: Callable[..., dict[str, float]],
    data: HeteroData,
) -> dict[str, object]:
    """Evaluates a ranking that needs no training."""
    rates = data[RATES]
    return {
        'valid': reference(data, rates.val_edge_label_index),
        'test': reference(data, rates.test_edge_label_index),
    }


def fit(
    name: str,
    data: HeteroData,
    seed: int,
    args: argparse.Namespace,
) -> dict[str, object]:
    """Trains with early stopping on the validation Recall@20."""
    seed_everything(seed)
    rates = data[RATES]
    device = rates.edge_index.device
    model = MODELS[name](data, **overrides(args)).to(device)
    best, curve = {'epoch': 0, 'valid': {'recall@20': -1}}, []
    for epoch, seconds in epochs(model, data, args):
        user, item = embed(model, data)
        valid = model.validate(data, user, item)
        curve.append([round(seconds, 2), valid['recall@20']])
        if valid['recall@20'] > best['valid']['recall@20']:
            best = {'epoch': epoch, 'valid': valid}
            kept = (user.clone(), item.clone(), rates.test_edge_label_index)
            ranking = {
                'exclude': rates.edge_index.as_tensor(),
                'neighbors': model.neighborhood(data),
            }
        print(name, seed, epoch, f'{valid["recall@20"]:.4f}', flush=True)
        if epoch - best['epoch'] >= args.patience:
            break
    return {
        **best,
        'test': evaluate(*kept, **ranking),
        **per_user(*kept, **ranking),
        'epochs': epoch,
        'seconds': seconds,
        'curve': curve,
        'recipe': vars(complete_recipe(model.recipe, data, args)),
        'overrides': overrides(args),
    }


def complete_recipe(
    recipe: Recipe, data: HeteroData, args: argparse.Namespace
) -> Recipe:
    """The recipe, with the values of the harness where it has none, and
    smaller mini-batches where all pairs make up less than 25 of them.
    """
    lr, batch_size = recipe.lr or args.lr, recipe.batch_size or args.batch_size
    num_pairs = data[RATES].edge_index.size(1)
    batch_size = min(batch_size, num_pairs // 25 + 1)
    return replace(recipe, lr=lr, batch_size=batch_size)


def epochs(
    model: Model, data: HeteroData, args: argparse.Namespace
) -> Iterator[tuple[int, float]]:
    """Trains epoch by epoch; yields each, and the seconds of all so far."""
    recipe = complete_recipe(model.recipe, data, args)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    drop_edges = T.DegreeDropEdges(recipe.edge_dropping)
    seconds = 0.0
    for epoch in range(1, args.epochs + 1):
        start = time.perf_counter()
        epoch_data = drop_edges(data) if recipe.edge_dropping > 0 else data
        train(model, optimizer, data, epoch_data, recipe.batch_size)
        if data.is_cuda:
            torch.cuda.synchronize()
        seconds += time.perf_counter() - start
        yield epoch, seconds
        start = time.perf_counter()
        model.end_epoch(data, epoch)
        seconds += time.perf_counter() - start


def train(
    model: Model,
    optimizer: torch.optim.Optimizer,
    data: HeteroData,
    epoch_data: HeteroData,
    batch_size: int,
) -> None:
    """One epoch over all training pairs, or those that carry no message."""
    model.train()
    recipe, pairs = model.recipe, data[RATES].edge_index.as_tensor()
    seen = None
    if recipe.disjoint and recipe.edge_dropping > 0:
        seen = epoch_data[RATES].edge_index.as_tensor()
        pairs = epoch_data[RATES].edge_label_index
    num_items = data['item'].num_nodes
    negatives = sample_negatives(pairs, num_items, recipe.num_negatives, seen)
    perm = torch.randperm(pairs.size(1), device=pairs.device)
    for index in perm.split(batch_size):
        optimizer.zero_grad()
        model(epoch_data)
        model.loss(*pairs[:, index], negatives[index]).backward()
        optimizer.step()


@torch.no_grad()
def embed(model: Model, data: HeteroData) -> tuple[Tensor, Tensor]:
    """Embeds all users and items on the full graph."""
    model.eval()
    return model(data)


def per_user(
    user_emb: Tensor,
    item_emb: Tensor,
    held_out: Tensor,
    k: int = 20,
    **ranking: Any,
) -> dict[str, Tensor]:
    """Recall@20 and NDCG@20 of each user with held-out items."""
    users, row = held_out[0].unique(return_inverse=True)
    top = top_k(user_emb, item_emb, k, users, **ranking)
    pair = row * item_emb.size(0) + held_out[1]
    first = torch.arange(users.numel(), device=top.device) * item_emb.size(0)
    hit = torch.isin(first.unsqueeze(1) + top, pair) & (top >= 0)
    hit = hit.float()
    count = row.bincount()
    gain = torch.arange(2, k + 2, device=top.device).log2().reciprocal()
    ideal = gain.cumsum(0)[count.clamp(max=k) - 1]
    return {'recall': hit.sum(1) / count, 'ndcg': hit @ gain / ideal}


def complete(
    args: argparse.Namespace,
    model: str,
    name: str,
    data: Callable[[], HeteroData],
    seed: int,
    **about: object,
) -> None:
    """Trains and saves a model, unless its result is there, or one of a run
    that was allowed to train for longer.
    """
    if kept_result(args, name, seed):
        return
    result = fit(model, data(), seed, args)
    del result['recall'], result['ndcg']
    save(args, name, seed, {**result, **about})


def kept_result(
    args: argparse.Namespace, name: str, seed: int
) -> dict[str, Any]:
    """The result that is there, if any. One that was made otherwise is an
    error, unless all that differs is that it was allowed to train for longer.
    """
    path = path_of(args, name, seed)
    if not path.exists():
        return {}
    record: dict[str, Any] = json.loads(path.read_text())
    for key, value in unmet(record, args).items():
        raise ValueError(
            f"'{path}' was made with {key} {record.get(key)} (got {value}); "
            f'keep this one elsewhere, by --results, or remove the file'
        )
    return record


def unmet(
    record: dict[str, Any], args: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """What is asked of a run, and a result does not have."""
    asked = {'overrides': overrides(args), 'arguments': arguments(args)}
    if is_longer(record, args):
        del asked['arguments']
    return {key: x for key, x in asked.items() if record.get(key) != x}


def is_longer(record: dict[str, Any], args: argparse.Namespace) -> bool:
    """Whether a run was allowed to train for longer than is asked for."""
    asked, allowed = arguments(args), record.get('arguments', {})
    return allowed != asked and all(
        allowed.get(key, 0) >= value for key, value in asked.items()
    )


def arguments(args: argparse.Namespace) -> dict[str, int]:
    """How long a run was allowed to train."""
    return {key: getattr(args, key) for key in ('epochs', 'patience')}


def dataset_name(args: argparse.Namespace) -> str:
    """The name of the folder of the data."""
    return 'fake' if args.demo else Path(args.data).resolve().name


def path_of(args: argparse.Namespace, name: str, seed: int | None) -> Path:
    """The file of a result."""
    end = '' if seed is None else f'-{seed}'
    return args.results / f'{dataset_name(args)}-{name}{end}.json'


def slug(label: str) -> str:
    """A label as part of a file name."""
    words = ''.join(c if c.isalnum() or c == '.' else ' ' for c in label)
    return '-'.join(words.lower().split())


def save(
    args: argparse.Namespace,
    name: str,
    seed: int | None,
    result: dict[str, object],
) -> None:
    """Writes one result with all that is needed to repeat it."""
    users = {
        key: result.pop(key).half().cpu().numpy()
        for key in ('recall', 'ndcg')
        if key in result
    }
    record = {
        'dataset': dataset_name(args),
        'model': name,
        'seed': seed,
        **result,
        'arguments': arguments(args),
        **provenance(args.device),
    }
    args.results.mkdir(parents=True, exist_ok=True)
    path = path_of(args, name, seed)
    if users:
        with (
            replacing(path.with_suffix('.npz')) as temp,
            temp.open('wb') as out,
        ):
            numpy.savez_compressed(out, **users)
    with replacing(path) as temp:
        temp.write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
    main()
