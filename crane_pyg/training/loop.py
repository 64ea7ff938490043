r"""The parts of the training loop."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch_geometric.data import HeteroData
from tqdm import tqdm

from crane_pyg.training.checkpoint import load_checkpoint, save_checkpoint
from crane_pyg.training.history import History
from crane_pyg.training.objective import (
    check_losses,
    check_parameters,
    get_embeddings,
    get_terms,
)
from crane_pyg.training.problem import Problem
from crane_pyg.training.state import copy_state, get_meta

Callback = Callable[[int, Module, History], object]


class Loop:
    r"""A training that can be put down and taken up again after any epoch, see
    :func:`~crane_pyg.training.fit`.
    """

    def __init__(
        self,
        model: Module,
        problem: Problem,
        optimizer: Callable[[Iterable[Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        loss_options: Mapping[str, Any] | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        self.model, self.problem = model, problem
        self.recipe, self.checkpoint = problem.recipe, checkpoint
        self.loss_options = dict(loss_options or {})
        make = optimizer or partial(Adam, lr=self.recipe.lr, fused=True)
        self.optimizer = make(model.parameters())
        self.scheduler = (
            None if scheduler is None else scheduler(self.optimizer)
        )
        self._check_tools()
        args = (model, self.recipe, self.optimizer, self.scheduler)
        self.meta = get_meta(*args, self.loss_options) | problem.describe()
        self.history = History(self.recipe)
        self.kept = copy_state(model)

    def _check_tools(self) -> None:
        _check_made('optimizer', self.optimizer, Optimizer)
        if self.scheduler is not None:
            _check_made('scheduler', self.scheduler, LRScheduler)
        no_metric = self.problem.held_out is None
        if isinstance(self.scheduler, ReduceLROnPlateau) and no_metric:
            raise ValueError(
                "'scheduler' needs validation pairs (got 'ReduceLROnPlateau' "
                'without any)'
            )

    def run(self, callbacks: Sequence[Callback], progress: bool) -> History:
        r"""Trains until the recipe or a callback ends it. Whatever happens,
        the model has the best weights then.
        """
        history = self.history
        if history.stopped != 'callback':
            history.stopped = history.ending()
        bar = tqdm(
            total=self.recipe.epochs,
            initial=len(history),
            unit='epoch',
            disable=not progress,
        )
        try:
            with bar:
                while history.stopped is None:
                    self.run_epoch(callbacks)
                    bar.set_postfix_str(self.summary(), refresh=False)
                    bar.update()
        finally:
            self.model.load_state_dict(self.kept)
            self.model.eval()
        return history

    def run_epoch(self, callbacks: Sequence[Callback]) -> None:
        r"""Trains, validates, and saves."""
        start, epoch = time.perf_counter(), len(self.history) + 1
        losses = self.train(epoch)
        check_parameters(self.model, epoch)
        metrics = self.validate()
        losses['seconds'] = time.perf_counter() - start
        if self.history.add(losses | metrics, metrics):
            self.kept = copy_state(self.model)
        self.step_scheduler(metrics)
        # Each of them is called, whatever the others return:
        answers = [f(epoch, self.model, self.history) for f in callbacks]
        ending = self.history.ending()
        if any(answer is True for answer in answers):
            ending = 'callback'
        self.history.stopped = ending
        if self.checkpoint is not None:
            save_checkpoint(self.checkpoint, self.state_dict(), self.meta)

    def train(self, epoch: int) -> dict[str, float]:
        r"""Takes a step for each mini-batch; returns the mean loss and its
        terms.
        """
        self.model.train()
        data, pairs, negative = self.problem.draw()
        batch_size = self.recipe.batch_size_of(self.problem.pairs.size(1))
        perm = torch.randperm(pairs.size(1), device=pairs.device)
        blocks, losses = perm.split(batch_size), []
        for index in blocks:
            terms = self.step(data, (*pairs[:, index], negative[index]))
            losses.append(torch.stack([*terms.values()]).detach())
        # The first look at a value, so that no step waits for the device:
        values = torch.stack(losses).double().cpu()
        check_losses(values, terms, epoch)
        size = values.new_tensor([index.numel() for index in blocks])
        mean = (size @ values / size.sum()).tolist()
        return {'loss': sum(mean), **dict(zip(terms, mean, strict=True))}

    def step(
        self, data: HeteroData, index: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        r"""Takes one step; returns the terms of the loss."""
        self.optimizer.zero_grad()
        with self.autocast():
            out = self.model(data)
            get_embeddings(out, self.problem.size)
            terms = get_terms(self.model, out, index, self.loss_options)
            loss = reduce(add, terms.values())
        loss.backward()
        self.optimizer.step()
        return terms

    def autocast(self) -> AbstractContextManager[Any]:
        r"""Returns what casts a step, or leaves it as the caller has it."""
        name = self.recipe.autocast
        if name is None:
            return nullcontext()
        return torch.autocast(self.problem.device.type, getattr(torch, name))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        r"""Ranks by the model alone, on the full graph."""
        self.model.eval()
        if self.problem.held_out is None:
            return {}
        out = self.model(self.problem.data)
        return self.problem.validate(*get_embeddings(out, self.problem.size))

    def step_scheduler(self, metrics: dict[str, float]) -> None:
        r"""Ends an epoch for the learning rate."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(metrics[self.recipe.metric])
        elif self.scheduler is not None:
            self.scheduler.step()

    def summary(self) -> str:
        r"""Returns the last epoch in a few words."""
        row, metric = self.history.epochs[-1], self.recipe.metric
        text = f'loss {row["loss"]:.4f}'
        if metric in row:
            text += f', {metric} {row[metric]:.4f}'
            text += f', best {self.history.best[metric]:.4f}'
            text += f' at epoch {self.history.best_epoch}'
        return text

    def state_dict(self) -> dict[str, Any]:
        r"""Returns all that is needed to go on, but for random states."""
        scheduler = self.scheduler
        return {
            'model': self.model.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scheduler': None if scheduler is None else scheduler.state_dict(),
            'best': self.kept,
            'history': self.history.state_dict(),
        }

    def load(self, path: Path) -> None:
        r"""Goes on from a checkpoint."""
        state = load_checkpoint(path, self.meta, self.problem.device)
        self.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state['scheduler'])
        self.kept = state['best']
        self.history = History(self.recipe, **state['history'])


def _check_made(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise ValueError(
            f"'{name}' needs to make a PyTorch {name} "
            f'(got {type(value).__name__})'
        )
