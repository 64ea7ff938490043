import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor
from torch_geometric.data.hetero_data import HeteroData

from crane_pyg._check import check_fraction, check_integer, check_size
from crane_pyg.datasets._base import MultimodalDataset

MIN_DEGREE = 5  # As in the 5-core sets that the field evaluates on.
ITEMS_PER_CLUSTER = 25
BLOCK_SIZE = 1024


class FakeMultimodalDataset(MultimodalDataset):
    r"""A fake dataset that returns a randomly generated
    :class:`~torch_geometric.data.HeteroData` object of users and items with
    multimodal features, in the form of
    :meth:`~crane_pyg.datasets.read_mmrec`.

    Items have latent factors drawn around cluster centres, users have factors
    drawn around the centres of a few clusters, and a user interacts with items
    drawn without replacement from a softmax over inner product and
    popularity. A modality is a noisy random projection of a quarter of the
    factors, which all modalities share, and of a part of the others, which no
    other modality shows. Modalities are noisier the later they stand.

    The pairs of each user are shuffled and split 8:1:1: of :math:`n < 10`
    pairs one is for validation and one for test, otherwise
    :math:`\lfloor n / 5 \rfloor` are held out, half of them (rounded down) for
    validation.

    Args:
        num_users: The number of users.
        num_items: The number of items.
        modalities: The number of features of each modality.
            (default: :obj:`{"image": 64, "text": 32}`)
        avg_degree: The average number of pairs per user, of which each has at
            least five; fewer where some would have more than all items. Items
            that nobody interacts with get one more pair.
        num_factors: The number of latent factors.
        noise: The standard deviation of the noise in the first modality,
            relative to the signal. The :math:`m`-th modality has :math:`m`
            times as much.
        missing_rate: The share of items that lack a modality (a row of NaN),
            drawn independently for each modality.
        seed: The seed. The global random number generator is left alone.
        transform: A function/transform that takes in a
            :class:`~torch_geometric.data.HeteroData` object and returns a
            transformed version, applied on every access.
        pre_transform: A function/transform that takes in a
            :class:`~torch_geometric.data.HeteroData` object and returns a
            transformed version, applied once.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        num_users: int = 2000,
        num_items: int = 1200,
        modalities: Mapping[str, int] | None = None,
        avg_degree: float = 8.0,
        num_factors: int = 16,
        noise: float = 0.5,
        missing_rate: float = 0.0,
        seed: int = 0,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
    ) -> None:
        if modalities is None:
            modalities = {'image': 64, 'text': 32}
        check_integer(seed=seed)
        _check_sizes(num_users, num_items, modalities, num_factors)
        _check_rates(avg_degree, num_items, noise, missing_rate)
        super().__init__(None, transform, pre_transform)

        # The draws are those of a CPU, whatever the default device is:
        with torch.device('cpu'):
            rng = Generator().manual_seed(int(seed))
            user, item = _draw_factors(num_users, num_items, num_factors, rng)
            data = HeteroData()
            data['user'].num_nodes = num_users
            data['item'].num_nodes = num_items
            for i, name in enumerate(modalities):
                seen = item[:, _seen(num_factors, i, len(modalities))]
                x = _project(seen, modalities[name], (i + 1) * noise, rng)
                missing = torch.randperm(num_items, generator=rng)
                x[missing[: round(missing_rate * num_items)]] = math.nan
                data['item'][f'x_{name}'] = x

            pairs = _draw_pairs(user, item, avg_degree, rng)
            train, val, test = _split(pairs, num_users, rng)
            store = data['user', 'rates', 'item']
            store.edge_index = train
            store.val_edge_label_index = val
            store.test_edge_label_index = test
        self._data = data if pre_transform is None else pre_transform(data)


def _check_sizes(
    num_users: int,
    num_items: int,
    modalities: Mapping[str, int],
    num_factors: int,
) -> None:
    check_size(
        1,
        num_users=num_users,
        num_items=num_items,
        num_factors=num_factors,
        **{f'modalities[{k!r}]': width for k, width in modalities.items()},
    )
    if len(modalities) == 0:
        raise ValueError(
            f"'modalities' needs to name at least one (got {dict(modalities)})"
        )


def _check_rates(
    avg_degree: float, num_items: int, noise: float, missing_rate: float
) -> None:
    if not MIN_DEGREE <= avg_degree <= num_items:
        raise ValueError(
            f"'avg_degree' needs to be between {MIN_DEGREE} and 'num_items' "
            f'({num_items}) (got {avg_degree})'
        )
    if not 0 <= noise < math.inf:
        raise ValueError(
            f"'noise' needs to be finite and non-negative (got {noise})"
        )
    check_fraction('missing_rate', missing_rate)


def _draw_factors(
    num_users: int, num_items: int, num_factors: int, rng: Generator
) -> tuple[Tensor, Tensor]:
    num_clusters = max(2, num_items // ITEMS_PER_CLUSTER)
    centres = torch.randn(num_clusters, num_factors, generator=rng)
    cluster = torch.randint(num_clusters, (num_items,), generator=rng)
    item = torch.randn(num_items, num_factors, generator=rng)
    item = centres[cluster] + 0.5 * item
    tastes = torch.randint(num_clusters, (num_users, 2), generator=rng)
    user = torch.randn(num_users, num_factors, generator=rng)
    return centres[tastes].mean(dim=1) + 0.5 * user, item


def _seen(num_factors: int, index: int, num_modalities: int) -> list[int]:
    shared = max(1, num_factors // 4)
    own = range(shared + index, num_factors, num_modalities)
    return [*range(shared), *own]


def _project(factors: Tensor, width: int, std: float, rng: Generator) -> Tensor:
    num_factors = factors.size(1)
    weight = torch.randn(num_factors, width, generator=rng)
    x = factors @ weight / math.sqrt(num_factors)
    return x + std * torch.randn(x.shape, generator=rng)


def _perturb(
    user: Tensor, item: Tensor, popularity: Tensor, rng: Generator
) -> Tensor:
    # The largest values of logit + Gumbel noise are draws from the softmax
    # without replacement.
    logit = user @ item.t() * (2 / math.sqrt(item.size(1))) + popularity
    gumbel = torch.empty(logit.shape).exponential_(generator=rng)
    return logit - gumbel.clamp_(min=1e-30).log_()


def _draw_pairs(
    user: Tensor, item: Tensor, avg_degree: float, rng: Generator
) -> Tensor:
    num_users, num_items = user.size(0), item.size(0)
    popularity = torch.randn(num_items, generator=rng)
    rate = torch.empty(num_users).exponential_(generator=rng)
    degree = torch.poisson(rate * (avg_degree - MIN_DEGREE), generator=rng)
    degree = (degree.long() + MIN_DEGREE).clamp(max=num_items)

    out = []
    for begin in range(0, num_users, BLOCK_SIZE):
        count = degree[begin : begin + BLOCK_SIZE]
        block = user[begin : begin + BLOCK_SIZE]
        score = _perturb(block, item, popularity, rng)
        top = score.topk(int(count.max()), dim=1).indices
        row, rank = (torch.arange(top.size(1)) < count[:, None]).nonzero().t()
        out.append(torch.stack([row + begin, top[row, rank]]))

    pairs = torch.cat(out, dim=1)
    unseen = torch.ones(num_items, dtype=torch.bool)
    unseen[pairs[1]] = False
    index = unseen.nonzero().view(-1)
    if index.numel() > 0:
        score = _perturb(user, item[index], popularity[index], rng)
        extra = torch.stack([score.argmax(dim=0), index])
        pairs = torch.cat([pairs, extra], dim=1)
    return pairs


def _split(
    pairs: Tensor, num_users: int, rng: Generator
) -> tuple[Tensor, Tensor, Tensor]:
    pairs = pairs[:, torch.randperm(pairs.size(1), generator=rng)]
    pairs = pairs[:, pairs[0].argsort(stable=True)]
    user = pairs[0]
    degree = user.bincount(minlength=num_users)
    rank = torch.arange(user.numel()) - (degree.cumsum(0) - degree)[user]

    held_out = torch.where(degree < 10, 2, degree // 5)
    num_val = (held_out // 2)[user]
    is_val = rank < num_val
    is_train = rank >= held_out[user]
    is_test = ~is_val & ~is_train
    return pairs[:, is_train], pairs[:, is_val], pairs[:, is_test]
