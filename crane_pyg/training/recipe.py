r"""How a model is trained, in plain values."""

from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

from crane_pyg._check import (
    check_finite,
    check_fraction,
    check_option,
    check_positive,
    check_size,
)
from crane_pyg.ranking.metrics import METRICS

__all__ = ['Recipe']

AUTOCAST: Final = (None, 'bfloat16')
LEAST: Final = {
    'epochs': 1,
    'patience': 1,
    'min_epochs': 0,
    'batch_size': 1,
    'min_batches': 1,
    'num_negatives': 1,
}


@dataclass(frozen=True)
class Recipe:
    r"""How :func:`~crane_pyg.training.fit` trains a model.

    The defaults are those that all results of this package were made with.

    Args:
        epochs (int, optional): The number of epochs at most.
            (default: :obj:`200`)
        patience (int, optional): The number of epochs without a gain after
            which training stops; :obj:`None` never stops it.
            (default: :obj:`10`)
        min_epochs (int, optional): The number of epochs before which
            :obj:`patience` does not stop it. (default: :obj:`0`)
        metric (str, optional): The metric of the validation pairs that
            chooses the best epoch, the largest value being the best, *e.g.*,
            :obj:`"ndcg@10"`. (default: :obj:`"recall@20"`)
        lr (float, optional): The learning rate of the default optimizer.
            (default: :obj:`0.003`)
        batch_size (int, optional): The number of training pairs of a step at
            most. (default: :obj:`8192`)
        min_batches (int, optional): Makes mini-batches smaller where all
            training pairs would fill fewer of them. (default: :obj:`25`)
        num_negatives (int, optional): The number of items drawn for each
            pair, once per epoch. (default: :obj:`4`)
        edge_dropping (float, optional): The share of edges that an epoch
            leaves out of the graph, see
            :class:`~crane_pyg.transforms.DegreeDropEdges`.
            (default: :obj:`0.8`)
        disjoint (bool, optional): Whether an epoch trains only on the pairs
            whose edges it leaves out, such that no graph holds the answer; on
            all pairs where none are left out. (default: :obj:`True`)
        autocast (str, optional): The data type that the forward pass and the
            loss are cast to, :obj:`"bfloat16"`, or :obj:`None`.
            (default: :obj:`None`)

    Raises:
        ValueError: If a value is out of its range, or a metric is unknown.
    """

    epochs: int = 200
    patience: int | None = 10
    min_epochs: int = 0
    metric: str = 'recall@20'
    lr: float = 0.003
    batch_size: int = 8192
    min_batches: int = 25
    num_negatives: int = 4
    edge_dropping: float = 0.8
    disjoint: bool = True
    autocast: str | None = None

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            value = getattr(self, name)
            if name != 'patience' or value is not None:
                check_size(least, **{name: value})
                self._set(name, int(value))  # NumPy's are no plain values.
        for name in ('lr', 'edge_dropping'):
            number: Any = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, Real):
                raise ValueError(
                    f"'{name}' needs to be a number (got {number!r})"
                )
            check_finite(name, float(number))
        check_positive(self.lr, 'lr')
        check_fraction('edge_dropping', self.edge_dropping)
        self._set('lr', float(self.lr))
        self._set('edge_dropping', float(self.edge_dropping))
        check_option('disjoint', self.disjoint, (False, True))
        self._set('disjoint', bool(self.disjoint))
        check_option('autocast', self.autocast, AUTOCAST)
        parse_metric(self.metric)

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    def batch_size_of(self, num_pairs: int) -> int:
        r"""Returns the size of the mini-batches for a number of training
        pairs.
        """
        return min(self.batch_size, num_pairs // self.min_batches + 1)


def parse_metric(metric: str) -> tuple[str, int]:
    r"""Splits a metric such as :obj:`"recall@20"` into name and length."""
    name, _, k = metric.partition('@') if isinstance(metric, str) else ('',) * 3
    # `isdecimal` takes digits that `int` reads, but not those such as '²'.
    if name not in METRICS or not k.isdecimal() or int(k) < 1:
        raise ValueError(
            f"'metric' needs to be 'name@k', with a name out of "
            f'{sorted(METRICS)} and a positive k (got {metric!r})'
        )
    return name, int(k)
