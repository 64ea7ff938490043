r"""Exact search for the rows of largest cosine similarity, tile by tile."""

import math
from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor
from torch_geometric.utils import cumsum, degree

from crane_pyg._groups import GROUP, Products
from crane_pyg._rows import largest_entry

LAST: Final = 2**31 - 1
MAX_PAIRS: Final = 32  # Of a row, for each of its neighbors.
PART_SIZE: Final = 2**16  # Keeps products of pairs in the cache.
GPU_PART_SIZE: Final = 2**22  # Which has fewer, larger kernels to start.


class Rows:
    r"""The rows of a matrix that have the modality: those which are not zero
    and hold no NaN.

    They are read in single precision, and only where needed, as a copy of the
    whole matrix may not fit into memory; one in double precision is copied, as
    what single precision has no room for is to be scaled.
    """

    def __init__(self, x: Tensor, block_size: int) -> None:
        block_size = max(block_size, GROUP)  # Less takes as long.
        self.x, self.block_size = x.detach(), block_size
        if x.dtype == torch.double:
            blocks = self.x.split(block_size)
            self.x = torch.cat(
                [(b / largest_entry(b)[:, None]).float() for b in blocks]
            )
        # Here and below, results go to one tensor: small ones that stay, next
        # to large ones that go, split the heap, at times for gigabytes.
        scale = self.x.new_empty(self.x.size(0), 1)
        for out, b in in_parts(block_size, scale, self.x):
            out[:, 0] = largest_entry(b)
        self.index = (scale > 0).nonzero()[:, 0]  # Drops NaN as well.
        self.scale = scale.index_select(0, self.index).float()
        self.every = torch.arange(len(self), device=x.device)
        self.norm = scale.new_empty(len(self), dtype=torch.double)
        for out, row in in_parts(block_size, self.norm, self.every):
            torch.linalg.vector_norm(self[row].double(), dim=1, out=out)

    def __len__(self) -> int:
        return self.index.numel()

    def __getitem__(self, row: Tensor) -> Tensor:
        return self.x.index_select(0, self.index.index_select(0, row)).float()

    def scaled(self, row: Tensor) -> Tensor:
        r"""Returns rows whose largest entry is one or minus one."""
        return self[row].div_(self.scale[row])

    def unit(self, row: Tensor) -> Tensor:
        r"""Returns rows of length one."""
        norm = self.norm[row].unsqueeze(1) / self.scale[row]
        return self.scaled(row).div_(norm.float())

    def precise(self, row: Tensor) -> Tensor:
        r"""Returns rows of length one in double precision."""
        return self[row].double().div_(self.norm[row].unsqueeze(1))

    def rounding(self) -> float:
        r"""Returns by how much a product of unit vectors may be off."""
        eps = torch.finfo(torch.float).eps
        return 4 * eps * math.sqrt(self.x.size(1) + 16)

    def similarity(self, i: Tensor, j: Tensor) -> Tensor:
        r"""Returns the cosine of pairs, rounded to single precision."""
        part_size = GPU_PART_SIZE if self.x.is_cuda else PART_SIZE
        num_pairs = max(1, part_size // self.x.size(1))
        out = self.norm.new_empty(i.numel())
        for dot, a, b in in_parts(num_pairs, out, i, j):
            torch.sum(self[a].double().mul_(self[b]), dim=1, out=dot)
        out /= self.norm[i] * self.norm[j]
        return out.float().clamp_(-1.0, 1.0)

    def first_copies(self, num: int) -> Tensor:
        r"""Returns the rows that are among the first copies of their vector.

        Of equal rows, only the lowest ones can be neighbors, so that dropping
        the others bounds the number of ties a row has to deal with.
        """
        code = self.index.new_empty(len(self))
        for out, row in in_parts(self.block_size, code, self.every):
            out.copy_(hash_rows(self.scaled(row)))
        group = code.unique(return_inverse=True)[1]
        perm, place = place_in_group(group)
        first = perm[place == 0]
        row = (torch.bincount(group)[group] > num).nonzero()[:, 0]
        # Rows of one code are equal, but for an accident:
        same = torch.empty_like(row, dtype=torch.bool)
        for out, r in in_parts(self.block_size, same, row):
            differs = self.scaled(r) != self.scaled(first[group[r]])
            torch.logical_not(differs.any(dim=1), out=out)
        row = row[same]
        perm, place = place_in_group(group[row])
        return complement(row[perm[place >= num]], len(self))


class Candidates:
    r"""The pairs which rounding may not exclude from the :math:`k` of largest
    product of their row.

    Args:
        num_rows (int): The number of rows.
        k (int): The number of pairs of each.
        rounding (float): By how much a product may be off.
        like (torch.Tensor): Tells the type of the products.
    """

    def __init__(
        self, num_rows: int, k: int, rounding: float, like: Tensor
    ) -> None:
        # The largest entries of as many groups as there is room for, none of
        # which can be larger than the pairs looked for:
        self.best = like.new_full((num_rows, k), float('-inf'))
        self.rounding, self.num_pairs = rounding, 0
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, row: int, col: int, groups: Tensor, largest: Tensor) -> None:
        r"""Takes products :math:`(*, G, S)` of the rows from :obj:`row` on with
        :math:`G` groups of columns from :obj:`col` on, and the largest ones of
        the groups :math:`(B, G)`.
        """
        best = self.best[row : row + largest.size(0)]
        best.copy_(torch.cat([best, largest], dim=1).topk(best.size(1))[0])
        least = self._least(best)
        i, group = (largest >= least.unsqueeze(1)).nonzero().unbind(dim=1)
        value = groups[i, group]
        hit, place = (value >= least[i].unsqueeze(1)).nonzero().unbind(dim=1)
        j = col + group[hit] * groups.size(2) + place
        # There may be very many of them, for a while:
        i, j = (row + i[hit]).int(), j.int()
        self.pairs.append((i, j, value[hit, place]))
        self.num_pairs += j.numel()

    def prune(self) -> None:
        r"""Drops the pairs that later ones have excluded."""
        i, j, value = map(torch.cat, zip(*self.pairs, strict=True))
        keep = value >= self._least(self.best)[i]
        self.pairs = [(i[keep], j[keep], value[keep])]
        self.num_pairs = self.pairs[0][0].numel()

    def too_many(self) -> bool:
        r"""Whether rounding excludes so few that memory may not do."""
        limit = MAX_PAIRS * self.best.numel()
        if self.num_pairs > limit:
            self.prune()
        return self.num_pairs > limit

    def _least(self, best: Tensor) -> Tensor:
        # Finite, as what fills up the groups is not:
        least = best[:, -1] - self.rounding
        return least.clamp(min=torch.finfo(best.dtype).min)


def search(
    rows: Rows, cols: Tensor, k: int, query: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Returns pairs of a row and another one in :obj:`cols`, among them those
    of the :obj:`k` largest similarities of all rows, or of those in
    :obj:`query`. They are sorted by the other one.
    """
    k = max(1, min(k, len(rows) - 1))
    blocks = list(cols.split(rows.block_size))
    others = complement(cols, len(rows)) if query is None else query
    num_symmetric = len(blocks) if query is None else 0
    queries = blocks[:num_symmetric] + list(others.split(rows.block_size))
    query = torch.cat(queries)

    size = min(rows.block_size, len(rows))
    like = rows.norm.float()
    products, step = Products(size, size, like), group_size(size, k + 1)
    # The row itself is among them:
    found = Candidates(query.numel(), k + 1, rows.rounding(), like)
    row = 0
    for n, block in enumerate(queries):
        x, col = rows.unit(block), 0
        for m, other in enumerate(blocks):
            if n >= num_symmetric or m >= n:
                tile = products(x, rows.unit(other))
                tall = tile.unflatten(1, (-1, step))
                found.add(row, col, tall, tall.amax(dim=2)[: block.numel()])
            if n < num_symmetric and m > n:
                wide = tile.unflatten(0, (-1, step))
                largest = wide.amax(dim=1).t()[: other.numel()]
                found.add(col, row, wide.permute(2, 0, 1), largest)
            if found.too_many():
                return search_alike(rows, cols, k, query)
            col += other.numel()
        found.prune()
        row += block.numel()
    i, j, _ = found.pairs[0]
    return to_pairs(query[i], cols[j])


def search_alike(
    rows: Rows, cols: Tensor, k: int, query: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Does the same for rows so much alike that single precision cannot tell
    them apart: in double precision, with memory for the best pairs only.
    """
    best = query.new_full((query.numel(), k + 1), torch.iinfo(torch.long).min)
    for top, block in in_parts(rows.block_size, best, query):
        x, col = rows.precise(block), 0
        for other in cols.split(rows.block_size):
            key = sort_key(x @ rows.precise(other).t(), col)
            top.copy_(torch.cat([top, key], dim=1).topk(k + 1)[0])
            col += other.numel()
    place = LAST - (best & LAST)
    known = place < cols.numel()
    row = known.nonzero()[:, 0]
    return to_pairs(query[row], cols[place[known]])


def to_pairs(i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the pairs of two rows, sorted by the other one."""
    j, perm = j.sort(stable=True)
    i = i[perm]
    return i[i != j], j[i != j]


def sort_key(sim: Tensor, col: int) -> Tensor:
    r"""Returns integers that sort as similarities do in single precision, and
    among equal ones the lower column, counted from :obj:`col`, above.
    """
    bits = (sim.float().clamp_(-1.0, 1.0) + 0.0).view(torch.int32)
    bits = torch.where(bits < 0, bits ^ LAST, bits).long()
    place = torch.arange(col, col + sim.size(1), device=sim.device)
    return (bits << 32) | (LAST - place)


def group_size(num_cols: int, k: int) -> int:
    r"""Returns the size of the groups of columns: not so large that the first
    :obj:`num_cols` columns have few groups for :obj:`k` of them to matter.
    """
    size = GROUP
    while size > 1 and num_cols < 2 * k * size:
        size //= 2
    return size


def in_parts(size: int, *xs: Tensor) -> Iterable[tuple[Tensor, ...]]:
    r"""Yields parts of all, of as many rows each."""
    return zip(*(x.split(size) for x in xs), strict=True)


def complement(index: Tensor, size: int) -> Tensor:
    mask = torch.ones(size, dtype=torch.bool, device=index.device)
    mask[index] = False
    return mask.nonzero().view(-1)


def hash_rows(x: Tensor) -> Tensor:
    r"""Returns a number for each row, the same for equal ones."""
    rng, size = torch.Generator('cpu').manual_seed(0), (x.size(1),)
    weight = torch.randint(2**31, size, generator=rng, device='cpu').int()
    weight |= 1  # Not to lose the highest bit, which is the sign.
    bits = (x + 0.0).view(torch.int32)  # There are two zeros.
    bits ^= bits >> 15  # As round numbers have nothing but zeros below.
    return bits.mul_(weight.to(x.device)).sum(dim=1)


def place_in_group(group: Tensor) -> tuple[Tensor, Tensor]:
    r"""Sorts by group, and returns the places within them."""
    group, perm = group.sort(stable=True)
    ptr = cumsum(degree(group, dtype=torch.long))
    return perm, torch.arange(group.numel(), device=group.device) - ptr[group]


def rank(i: Tensor, j: Tensor, sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    r"""Keeps the :obj:`k` pairs of largest similarity of each :obj:`i`. Those
    that are equal need to arrive sorted by :obj:`j`, and stay so.
    """
    perm = sim.sort(descending=True, stable=True)[1]
    group, place = place_in_group(i[perm])
    perm = perm[group][place < k]
    return torch.stack([j[perm], i[perm]]), sim[perm]
