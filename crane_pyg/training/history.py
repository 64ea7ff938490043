r"""What a training has led to, epoch by epoch."""

from dataclasses import asdict, dataclass, field
from typing import Any

from crane_pyg.training.recipe import Recipe

__all__ = ['History']


@dataclass
class History:
    r"""What :func:`~crane_pyg.training.fit` returns.

    Args:
        recipe (Recipe): How the model was trained.
        epochs (list[dict]): For each epoch its number :obj:`"epoch"`, counted
            from one, the mean :obj:`"loss"` and that of each of its terms, the
            validation metrics if any, and the :obj:`"seconds"` it took.
        best_epoch (int): The epoch whose weights the model has: the first of
            those with the best validation metric, or the last one if there was
            no validation; :obj:`0` before the first.
        best (dict): The validation metrics at that epoch.
        stopped (str, optional): What ended the training: :obj:`"patience"`,
            :obj:`"epochs"` or :obj:`"callback"`; :obj:`None` while it goes on.
    """

    recipe: Recipe = field(default_factory=Recipe)
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    stopped: str | None = None

    def __len__(self) -> int:
        return len(self.epochs)

    def curve(self, name: str) -> list[float]:
        r"""Returns one value of all epochs, *e.g.*, of :obj:`"ndcg@20"`.

        Raises:
            ValueError: If there is no such value.
        """
        known = self.epochs[0] if self.epochs else {}
        if self.epochs and name not in known:
            raise ValueError(
                f"'name' needs to be one of {list(known)} (got {name!r})"
            )
        return [row[name] for row in self.epochs]

    @property
    def loss(self) -> list[float]:
        r"""The mean loss of each epoch."""
        return self.curve('loss')

    @property
    def metric(self) -> list[float]:
        r"""The validation metric of each epoch by which the best was chosen;
        none if there was no validation.
        """
        if self.epochs and self.recipe.metric not in self.epochs[0]:
            return []
        return self.curve(self.recipe.metric)

    @property
    def seconds(self) -> float:
        r"""The seconds that all epochs took."""
        return sum(self.curve('seconds'))

    def add(self, row: dict[str, float], metrics: dict[str, float]) -> bool:
        r"""Adds an epoch, and returns whether it is the best so far."""
        self.epochs.append({'epoch': len(self) + 1, **row})
        metric = self.recipe.metric
        if metrics and self.best and not metrics[metric] > self.best[metric]:
            return False
        self.best_epoch, self.best = len(self), dict(metrics)
        return True

    def ending(self) -> str | None:
        r"""Returns why training ends here by its recipe, if it does."""
        patience, done = self.recipe.patience, len(self)
        if patience is not None and done >= max(
            self.recipe.min_epochs, self.best_epoch + patience
        ):
            return 'patience'
        return 'epochs' if done >= self.recipe.epochs else None

    def state_dict(self) -> dict[str, Any]:
        r"""Returns it in plain values, but for the recipe."""
        state = asdict(self)
        del state['recipe']
        return state
