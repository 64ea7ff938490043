r"""A last training on all pairs."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import Module
from torch_geometric.data import HeteroData

import crane_pyg.transforms as T
from crane_pyg._edges import EdgeType, check_edge_type, get_edges, rev_edge_type
from crane_pyg._rows import as_plain
from crane_pyg.training.fit import fit
from crane_pyg.training.history import History
from crane_pyg.training.problem import get_held_out
from crane_pyg.training.recipe import Recipe
from crane_pyg.transforms.dual_graph import set_user_item_graph

__all__ = ['refit']


def refit(
    model: Module,
    data: HeteroData,
    history: History,
    *,
    recipe: Recipe | None = None,
    transform: Callable[[HeteroData], HeteroData] | None = None,
    splits: Sequence[str] = ('val', 'test'),
    edge_type: EdgeType = ('user', 'rates', 'item'),
    **options: Any,  # noqa: ANN401
) -> HeteroData:
    r"""Trains a model anew, with held-out pairs among the training pairs, for
    as many epochs as validation chose before.

    Nothing is validated, and the last weights are kept.

    Args:
        model (torch.nn.Module): The model, which is reset first.
        data (torch_geometric.data.HeteroData): The data that it was trained
            on, which stay as they are.
        history (History): What :func:`~crane_pyg.training.fit` has returned.
        recipe (Recipe, optional): How to train, but for the number of epochs;
            as before if not given. (default: :obj:`None`)
        transform (callable, optional): Rebuilds the graphs of all pairs. If
            not given, the graphs that depend on pairs are rebuilt where
            :obj:`data` has them, with the defaults of
            :class:`~crane_pyg.transforms.BuildDualGraph`; the graph of similar
            items stays. Profiles of users and the like stay as well.
            (default: :obj:`None`)
        splits (list[str], optional): Which held-out pairs, kept as
            :obj:`<split>_edge_label_index`, become training pairs.
            (default: :obj:`('val', 'test')`)
        edge_type (tuple, optional): The edge type that holds the pairs, from
            users to items. (default: :obj:`('user', 'rates', 'item')`)
        **options (optional): Other arguments of
            :func:`~crane_pyg.training.fit`.

    Returns:
        torch_geometric.data.HeteroData: The data that it is trained on now.

    Raises:
        ValueError: If the model cannot be reset, if :obj:`history` has no
            epoch, if a split is missing, or as
            :func:`~crane_pyg.training.fit`.
    """
    reset_parameters = getattr(model, 'reset_parameters', None)
    if not callable(reset_parameters):
        raise ValueError(
            f"'model' needs to have a method 'reset_parameters' "
            f'(got {type(model).__name__})'
        )
    if not isinstance(history, History) or history.best_epoch < 1:
        raise ValueError(
            f"'history' needs to hold a best epoch (got {history!r})"
        )
    recipe = replace(
        recipe or history.recipe,
        epochs=history.best_epoch,
        patience=None,
        min_epochs=0,
    )
    edge_type = check_edge_type(edge_type)
    out = add_held_out(data, edge_type, splits)
    out = set_graphs(out, edge_type) if transform is None else transform(out)
    train = copy.copy(out)  # A split that is left must not choose an epoch.
    train[edge_type].pop('val_edge_label_index', None)
    reset_parameters()
    fit(model, train, recipe, edge_type=edge_type, **options)
    return out


def add_held_out(
    data: HeteroData, edge_type: EdgeType, splits: Sequence[str]
) -> HeteroData:
    r"""Returns data whose training pairs are all those of some splits too."""
    splits = [splits] if isinstance(splits, str) else list(splits)
    data = copy.copy(data)
    store, *size = get_edges(data, edge_type)
    num_pairs, pairs = store.edge_index.size(1), [as_plain(store.edge_index)]
    for split in splits:
        held_out = get_held_out(store, split, (size[0], size[1]))
        if held_out is None:
            raise ValueError(
                f"'splits' needs to name held-out pairs of 'data' (got "
                f"'{split}', but there is no '{split}_edge_label_index')"
            )
        pairs.append(held_out)
    for split in splits:
        del store[f'{split}_edge_label_index']
        store.pop(f'{split}_edge_label', None)
    for key, value in list(store.items()):  # Which held-out pairs lack.
        is_label = key.endswith(('edge_label_index', '_edge_label'))
        if not is_label and _length(value) == num_pairs:
            del store[key]
    store.edge_index = torch.cat(pairs, dim=1)
    return data


def set_graphs(data: HeteroData, edge_type: EdgeType) -> HeteroData:
    r"""Rebuilds those graphs that depend on the pairs, if they are there."""
    build, item_type = T.BuildDualGraph(edge_type=edge_type), edge_type[2]
    if (item_type, build.co_edge, item_type) in data.edge_types:
        build.set_co_rated_graph(data)
    if rev_edge_type(edge_type) in data.edge_types:
        return set_user_item_graph(data, edge_type)
    return data


def _length(value: object) -> int | None:
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        return None
    return len(value) if hasattr(value, '__len__') else None
