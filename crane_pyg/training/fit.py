r"""The training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn import Module, Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch_geometric.data import HeteroData

from crane_pyg.training.history import History
from crane_pyg.training.loop import Callback, Loop
from crane_pyg.training.objective import check_model
from crane_pyg.training.problem import Problem
from crane_pyg.training.recipe import Recipe
from crane_pyg.training.state import check_path

__all__ = ['fit']


def fit(
    model: Module,
    data: HeteroData,
    recipe: Recipe | None = None,
    *,
    optimizer: Callable[[Iterable[Parameter]], Optimizer] | None = None,
    scheduler: Callable[[Optimizer], LRScheduler] | None = None,
    loss_options: Mapping[str, Any] | None = None,
    edge_type: tuple[str, str, str] = ('user', 'rates', 'item'),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> History:
    r"""Trains a model by mini-batches of pairs, and stops where its ranking of
    the validation pairs gets no better.

    An epoch drops edges of the graph, draws negatives, and takes one step for
    each mini-batch; then all items are ranked for the users of the validation
    pairs by the inner products of their embeddings on the full graph, the
    training pairs left out. At the end, the model has the weights of the best
    epoch, and is in evaluation mode. So it is after an error or an interrupt,
    with the best weights so far.

    All randomness comes from PyTorch's global generators, which are not
    seeded here.

    Args:
        model (torch.nn.Module): Any model on the device of :obj:`data` with
            :obj:`forward(data)`, whose output holds the embeddings of all users
            and of all items in its first two places, and
            :obj:`loss(out, user_index, pos_index, neg_index)`, which returns a
            scalar, of users :math:`(B)`, items :math:`(B)` and negatives
            :math:`(B, S)`. If it has :obj:`loss_terms` of the same arguments,
            which returns a dictionary of scalars, their sum is the loss.
        data (torch_geometric.data.HeteroData): The training pairs as
            :obj:`edge_index` and the validation pairs as
            :obj:`val_edge_label_index` of :obj:`edge_type`, and whatever
            else the model reads. Without validation pairs, and without
            patience, the last weights are kept. Users that have all items are
            left out of the loss, and validation pairs of users without any
            training pair, or that are training pairs as well, out of
            validation; a warning counts them.
        recipe (Recipe, optional): How to train.
            (default: :obj:`Recipe()`)
        optimizer (callable, optional): Makes the optimizer of the parameters;
            :class:`torch.optim.Adam` if not given. (default: :obj:`None`)
        scheduler (callable, optional): Makes a scheduler of the optimizer,
            which is stepped once per epoch, a
            :class:`~torch.optim.lr_scheduler.ReduceLROnPlateau` with the
            validation metric. (default: :obj:`None`)
        loss_options (dict, optional): Further arguments of the loss.
            (default: :obj:`None`)
        edge_type (tuple, optional): The edge type that holds the pairs, from
            users to items. (default: :obj:`('user', 'rates', 'item')`)
        checkpoint (str, optional): A file that is replaced after every epoch
            by all that is needed to go on. (default: :obj:`None`)
        resume (bool, optional): Whether to go on from :obj:`checkpoint`, if
            there is such a file. On a CPU, the weights are in the end the same
            as without a break. The recipe may ask for more epochs or more
            patience than before. (default: :obj:`False`)
        callbacks (list, optional): Each is called as
            :obj:`callback(epoch, model, history)` after validation and before
            the checkpoint is written, the model being in evaluation mode, and
            stops the training if it returns :obj:`True`.
            (default: :obj:`()`)
        progress (bool, optional): Whether to show a bar of the epochs.
            (default: :obj:`True`)

    Returns:
        History: The losses and metrics of all epochs.

    Raises:
        ValueError: If :obj:`model` or :obj:`data` lacks any of this, if a
            checkpoint is damaged, or one of another model, recipe or data, or
            if a term of the loss, or a parameter, becomes NaN or infinite. An
            earlier checkpoint stays.
    """
    recipe = Recipe() if recipe is None else recipe
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"'recipe' needs to be a 'Recipe' (got {type(recipe).__name__})"
        )
    if not isinstance(callbacks, Sequence) or not all(map(callable, callbacks)):
        raise ValueError(
            f"'callbacks' needs to be a list of functions (got {callbacks!r})"
        )
    if not isinstance(loss_options, (Mapping, type(None))):
        raise ValueError(
            f"'loss_options' needs to be a dictionary (got {loss_options!r})"
        )
    path = check_path(checkpoint, resume)
    problem = Problem(data, edge_type, recipe)
    check_model(model, problem.device)
    loop = Loop(model, problem, optimizer, scheduler, loss_options, path)
    if resume and path is not None and path.exists():
        loop.load(path)
    return loop.run(callbacks, progress)
