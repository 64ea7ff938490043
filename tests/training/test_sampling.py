import pytest
import torch
from torch_geometric import EdgeIndex
from torch_geometric.testing import withCUDA

from crane_pyg.training import sample_negatives, sampling


def random_pairs(num_users=30, num_items=20, num_pairs=200, seed=12):
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(num_users * num_items, generator=generator)
    index = index[:num_pairs]
    return torch.stack([index // num_items, index % num_items])


def as_set(user, item):
    return set(zip(user.tolist(), item.tolist(), strict=True))


@withCUDA
@pytest.mark.parametrize('num_samples', [1, 2, 50])
def test_sample_negatives(num_samples, device):
    pairs = random_pairs().to(device)
    before = pairs.clone()
    out = sample_negatives(pairs, 20, num_samples)
    assert torch.equal(pairs, before)
    assert out.size() == (200, num_samples)
    assert out.dtype == torch.long
    assert out.device == device
    assert out.is_contiguous()
    assert out.min() >= 0
    assert out.max() < 20
    positives = as_set(*pairs)
    for column in out.t():
        assert not as_set(pairs[0], column) & positives


def test_sample_negatives_in_blocks(monkeypatch):
    pairs = random_pairs()
    others = random_pairs(seed=13)
    positives = as_set(*torch.cat([pairs, others], dim=1))
    monkeypatch.setattr(sampling, 'BLOCK_SIZE', 7)
    out = sample_negatives(pairs, 20, 9, exclude=others)
    assert out.size() == (200, 9)
    for column in out.t():
        assert not as_set(pairs[0], column) & positives


def test_sample_negatives_of_dense_users():
    # All but one item, so that only one is left to draw:
    pairs = torch.tensor([[0, 0, 0, 2, 2, 2], [0, 1, 3, 1, 2, 3]])
    out = sample_negatives(pairs, num_items=4, num_samples=9)
    assert out.tolist() == [[2] * 9] * 3 + [[0] * 9] * 3


def test_sample_negatives_are_uniform():
    # User 0 has no pair with 8 of 10 items, user 1 with 9 of them:
    pairs = torch.tensor([[0, 1, 0], [3, 9, 5]])
    torch.manual_seed(12)
    out = sample_negatives(pairs, num_items=10, num_samples=9000)
    for row, positives in zip(out, [{3, 5}, {9}, {3, 5}], strict=True):
        count = row.bincount(minlength=10)
        left = [item for item in range(10) if item not in positives]
        assert not count[sorted(positives)].any()
        # Five standard deviations:
        mean, num_left = 9000 / len(left), len(left)
        std = (9000 / num_left * (1 - 1 / num_left)) ** 0.5
        assert (count[left] - mean).abs().max() < 5 * std

    # Rows of one user, and samples of one row, are drawn independently:
    agree = (out[0] == out[2]).float().mean()
    assert abs(float(agree) - 1 / 8) < 0.02
    agree = (out[1, :4500] == out[1, 4500:]).float().mean()
    assert abs(float(agree) - 1 / 9) < 0.03


def test_sample_negatives_of_users_with_all_items():
    pairs = torch.tensor([[0, 1, 2, 1, 2, 1, 2], [0, 2, 0, 0, 1, 1, 2]])
    match = r'^2 user\(s\) have pairs with all 3 items, and are left out'
    with pytest.warns(UserWarning, match=match):
        out = sample_negatives(pairs, 3, 5)
    assert (out[1:] == -1).all()
    assert set(out[0].tolist()) <= {1, 2}
    # All items but one, and that one by `exclude`:
    with pytest.warns(UserWarning, match=r'^1 user\(s\)') as record:
        out = sample_negatives(
            pairs[:, [0, 1, 3]], 3, exclude=torch.tensor([[1], [1]])
        )
    assert out[1:].tolist() == [[-1], [-1]]
    assert record[0].filename == __file__
    # Nothing is asked for the user who has everything:
    sample_negatives(pairs[:, :1], 3, exclude=pairs[:, 1:])


@pytest.mark.parametrize('left', [1, 3, 40, 1500])
def test_sample_negatives_of_a_bot(left):
    # Uniform over the few items that are left, by a chi-squared test, and
    # with work that does not depend on how few they are:
    num_items = 15_000
    generator = torch.Generator().manual_seed(left)
    perm = torch.randperm(num_items, generator=generator)
    mine, others = perm[left:], perm[:left]
    user = torch.tensor([4]).repeat(mine.numel())
    pairs = torch.cat([torch.stack([user, mine]), random_pairs()], dim=1)
    torch.manual_seed(12)
    out = sample_negatives(pairs, num_items, 4)[: mine.numel()]
    count = out.view(-1).bincount(minlength=num_items)
    mean = out.numel() / left
    assert int(count[others].sum()) == out.numel()
    chi = float(((count[others] - mean) ** 2 / mean).sum())
    # Five standard deviations of a chi-squared of `left - 1` degrees:
    assert abs(chi - (left - 1)) <= 5 * (2 * (left - 1)) ** 0.5


def test_sample_negatives_is_reproducible():
    pairs = random_pairs()
    outs = []
    for seed in [12, 12, 13]:
        torch.manual_seed(seed)
        outs.append(sample_negatives(pairs, 20, 3))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert not torch.equal(sample_negatives(pairs, 20, 3), outs[2])


def test_sample_negatives_of_graph():
    pairs = random_pairs()
    torch.manual_seed(12)
    out = sample_negatives(EdgeIndex(pairs, sparse_size=(30, 20)), 20, 2)
    torch.manual_seed(12)
    expected = sample_negatives(pairs, 20, 2)
    assert type(out) is torch.Tensor
    assert torch.equal(out, expected)


def test_sample_negatives_of_repeated_pairs():
    pairs = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 1]])
    assert sample_negatives(pairs, num_items=3).tolist() == [[2]] * 4


def test_sample_negatives_of_nothing():
    pairs = torch.empty(2, 0, dtype=torch.long)
    assert sample_negatives(pairs, 5, 3).size() == (0, 3)


@pytest.mark.parametrize('graph', [False, True])
def test_sample_negatives_excludes_further_pairs(graph):
    pairs = random_pairs()
    first, rest = pairs.split([150, 50], dim=1)
    # User 30 has no pair but there, and one with every item:
    other = torch.stack([torch.full((20,), 30), torch.arange(20)])
    exclude = torch.cat([rest, other[:, 1:]], dim=1)
    if graph:
        exclude = EdgeIndex(exclude, sparse_size=(31, 20))
    out = sample_negatives(first, 20, 50, exclude)
    assert out.size() == (150, 50)
    assert type(out) is torch.Tensor
    positives = as_set(*pairs)
    for column in out.t():
        assert not as_set(first[0], column) & positives
    # Without, they are drawn:
    out = sample_negatives(first, 20, 50)
    assert as_set(first[0].repeat(50), out.t().flatten()) & as_set(*rest)


def test_sample_negatives_errors():
    pairs = random_pairs()
    for num_samples in [0, -1]:
        match = rf"'num_samples' .* at least 1 \(got {num_samples}\)"
        with pytest.raises(ValueError, match=match):
            sample_negatives(pairs, 20, num_samples)


def test_sample_negatives_argument_errors():
    pairs = random_pairs()
    with pytest.raises(ValueError, match=r"'edge_index' .* \(got \[\d+, 2\]\)"):
        sample_negatives(pairs.t(), 20)
    with pytest.raises(ValueError, match=r"'num_items' .* integer"):
        sample_negatives(pairs, 20.0)
    with pytest.raises(ValueError, match=r"'edge_index\[1\]' .* \(got 19\)"):
        sample_negatives(pairs, 19)
    with pytest.raises(ValueError, match=r"'exclude\[1\]' .* \(got 20\)"):
        sample_negatives(pairs, 20, exclude=torch.tensor([[0], [20]]))
    with pytest.raises(ValueError, match=r"'exclude\[0\]' .* \(got -1\)"):
        sample_negatives(pairs, 20, exclude=torch.tensor([[-1], [0]]))
    match = r"'edge_index' .* integers \(got torch.float32\)"
    with pytest.raises(ValueError, match=match):
        sample_negatives(pairs.float(), 20)
