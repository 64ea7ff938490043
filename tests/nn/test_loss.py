import math

import pytest
import torch
import torch.nn.functional as F

from crane_pyg.nn.loss import (
    InfoNCELoss,
    SampledSoftmaxLoss,
    hardest_negative,
    info_nce_loss,
    sampled_softmax_loss,
)


def randn(*size, seed=12):
    generator = torch.Generator().manual_seed(seed)
    out = torch.randn(size, generator=generator, dtype=torch.double)
    return out.requires_grad_()


def naive_sampled_softmax(pos, neg, mask=None, log_q_pos=None, log_q_neg=None):
    total = 0.0
    for b in range(pos.size(0)):
        pos_exp = torch.exp(pos[b])
        if log_q_pos is not None:
            pos_exp = pos_exp / torch.exp(log_q_pos[b])
        denominator = pos_exp
        for s in range(neg.size(1)):
            if mask is not None and mask[b, s]:
                continue
            neg_exp = torch.exp(neg[b, s])
            if log_q_neg is not None:
                neg_exp = neg_exp / torch.exp(log_q_neg[s])
            denominator = denominator + neg_exp
        total = total - torch.log(pos_exp / denominator)
    return total / pos.size(0)


def cosine(x, y):
    return x @ y / (x.norm() * y.norm())


def assert_same(out, expected, inputs):
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    grads = torch.autograd.grad(out, inputs)
    expected_grads = torch.autograd.grad(expected, inputs)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert expected_grad.abs().max() > 0
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('corrected', [False, True])
def test_sampled_softmax_loss(masked, corrected):
    pos, neg = randn(6, seed=1), randn(6, 5, seed=2)
    kwargs = {}
    if masked:
        mask = torch.rand(6, 5) > 0.6
        mask[0], mask[1] = True, False
        kwargs['neg_mask'] = mask
    if corrected:
        kwargs['log_q_pos'] = randn(6, seed=3).softmax(0).log().detach()
        kwargs['log_q_neg'] = randn(5, seed=4).softmax(0).log().detach()

    out = sampled_softmax_loss(pos, neg, **kwargs)
    assert out.dim() == 0
    expected = naive_sampled_softmax(
        pos,
        neg,
        *[kwargs.get(key) for key in ('neg_mask', 'log_q_pos', 'log_q_neg')],
    )
    assert_same(out, expected, [pos, neg])

    if masked:  # A row without negatives has nothing to learn:
        grad = torch.autograd.grad(
            sampled_softmax_loss(pos, neg, **kwargs), [pos, neg]
        )
        assert grad[0][0].abs() < 1e-12
        assert (grad[1][mask] == 0).all()


def test_sampled_softmax_loss_equals_cross_entropy():
    pos, neg = randn(6, seed=1), randn(6, 5, seed=2)
    logits = torch.cat([pos.unsqueeze(-1), neg], dim=-1)
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.long))
    assert_same(sampled_softmax_loss(pos, neg), expected, [pos, neg])


def test_sampled_softmax_loss_uniform_correction_cancels():
    pos, neg = randn(6, seed=1), randn(6, 5, seed=2)
    out = sampled_softmax_loss(
        pos,
        neg,
        log_q_pos=torch.full((6,), -3.0),
        log_q_neg=torch.full((5,), -3.0),
    )
    assert_same(out, sampled_softmax_loss(pos, neg), [pos, neg])


def test_sampled_softmax_loss_is_stable():
    pos, neg = torch.tensor([-900.0, 900.0]), torch.full((2, 3), 1000.0)
    out = sampled_softmax_loss(pos, neg)
    assert out == pytest.approx((1900 + 100) / 2 + math.log(3))


@pytest.mark.parametrize('given', ['log_q_pos', 'log_q_neg'])
def test_sampled_softmax_loss_needs_both_corrections(given):
    match = rf"need to be given together \(got only '{given}'\)"
    with pytest.raises(ValueError, match=match):
        sampled_softmax_loss(randn(5), randn(5, 5), **{given: randn(5)})


@pytest.mark.parametrize('normalize', [False, True])
@pytest.mark.parametrize('temperature', [0.2, 1.5])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('corrected', [False, True])
def test_sampled_softmax_loss_module(normalize, temperature, masked, corrected):
    user, pos_item = randn(6, 4, seed=1), randn(6, 4, seed=2)
    neg_item = randn(5, 4, seed=3)
    mask = torch.rand(6, 5) > 0.6 if masked else None

    score = cosine if normalize else torch.dot
    pos = torch.stack(
        [score(user[b], pos_item[b]) / temperature for b in range(6)]
    )
    neg = torch.stack(
        [
            torch.stack(
                [score(user[b], neg_item[s]) / temperature for s in range(5)]
            )
            for b in range(6)
        ]
    )
    loss = SampledSoftmaxLoss(temperature, normalize)
    log_q = [None, None]
    if corrected:
        log_q = [randn(n, seed=n).softmax(0).log().detach() for n in (6, 5)]
    out = loss(user, pos_item, neg_item, mask, *log_q)
    expected = naive_sampled_softmax(pos, neg, mask, *log_q)
    assert_same(out, expected, [user, pos_item, neg_item])


def naive_info_nce(x, y, temperature, index=None):
    total, num_nodes = 0.0, x.size(0)
    index = list(range(num_nodes)) if index is None else index.tolist()
    for n in range(num_nodes):
        rows = [m for m in range(num_nodes) if m == n or index[m] != index[n]]
        pos = torch.exp(cosine(x[n], y[n]) / temperature)
        over_y = sum(torch.exp(cosine(x[n], y[m]) / temperature) for m in rows)
        over_x = sum(torch.exp(cosine(x[m], y[n]) / temperature) for m in rows)
        total = total - torch.log(pos / over_y) - torch.log(pos / over_x)
    return total / (2 * num_nodes)


@pytest.mark.parametrize('temperature', [0.2, 1.5])
def test_info_nce_loss(temperature):
    x, y = randn(6, 4, seed=1), randn(6, 4, seed=2)
    out = InfoNCELoss(temperature)(x, y)
    assert out.dim() == 0
    assert_same(out, naive_info_nce(x, y, temperature), [x, y])

    # It is the same in both directions, and blind to the length of a row:
    torch.testing.assert_close(info_nce_loss(y, x, temperature), out)
    torch.testing.assert_close(info_nce_loss(3 * x, y, temperature), out)


@pytest.mark.parametrize(
    'index', [[0, 1, 2, 3, 4, 5], [4, 1, 4, 2, 1, 4], [3, 3, 3, 3, 3, 3]]
)
def test_info_nce_loss_of_repeated_nodes(index):
    x, y = randn(6, 4, seed=1), randn(6, 4, seed=2)
    index = torch.tensor(index)
    before = index.clone()

    out = InfoNCELoss(0.5)(x, y, index)
    expected = naive_info_nce(x, y, 0.5, index)
    if index.unique().numel() == 1:  # There is nothing to be told apart from.
        assert float(out.detach()) == pytest.approx(0, abs=1e-12)
    else:
        assert_same(out, expected, [x, y])
    if index.unique().numel() == 6:
        torch.testing.assert_close(out, info_nce_loss(x, y, 0.5))
    assert torch.equal(index, before)


# The smallest ones leave no room for exponentials that are shared:
@pytest.mark.parametrize('temperature', [0.01, 0.02, 0.024, 0.1])
def test_info_nce_loss_of_opposite_views(temperature):
    x = torch.tensor([[1.0, 0.0], [0.999, 0.01]], requires_grad=True)
    y = -x.detach()
    out = info_nce_loss(x, y, temperature)
    expected = naive_info_nce(x.double(), y.double(), temperature)
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(out, x)[0].isfinite().all()


# The sum of a row would be beyond half precision:
@pytest.mark.parametrize('temperature', [0.22, 0.25])
def test_info_nce_loss_of_many_equal_views_in_half(temperature):
    x = torch.ones(1500, 4).half()
    out = info_nce_loss(x, x, temperature)
    expected = info_nce_loss(x.float(), x.float(), temperature)
    torch.testing.assert_close(out.float(), expected, atol=0.01, rtol=1e-3)


def test_info_nce_loss_leaves_repeated_nodes_out_at_low_temperature():
    x, y = randn(6, 4, seed=1).float(), randn(6, 4, seed=2).float()
    index = torch.tensor([4, 1, 4, 2, 1, 4])
    out = info_nce_loss(x, y, 0.02, index)
    expected = naive_info_nce(x.double(), y.double(), 0.02, index).float()
    torch.testing.assert_close(out, expected)
    for a, b in zip(
        torch.autograd.grad(out, [x, y]),
        torch.autograd.grad(expected, [x, y]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_info_nce_loss_defaults():
    x, y = randn(6, 4, seed=1), randn(6, 4, seed=2)
    expected = naive_info_nce(x, y, 0.2)
    torch.testing.assert_close(InfoNCELoss()(x, y), expected)
    torch.testing.assert_close(info_nce_loss(x, y), expected)


def test_info_nce_loss_is_minimal_when_views_agree():
    x = torch.eye(6, dtype=torch.double)
    agree = info_nce_loss(x, x.clone())
    assert agree == pytest.approx(math.log(1 + 5 * math.exp(-5)))
    for y in [x.roll(1, 0), x.flip(0), randn(6, 6).detach()]:
        assert info_nce_loss(x, y) > agree + 0.1

    y = x.clone().requires_grad_()
    grad = torch.autograd.grad(info_nce_loss(x, y), y)[0]
    step = (y - 0.1 * grad).detach()
    assert info_nce_loss(x, step) < agree

    # A single node has nothing to be told apart from:
    assert info_nce_loss(x[:1], x[1:2]) == 0


def test_info_nce_loss_of_nothing():
    with pytest.raises(ValueError, match=r"'len\(x\)' .* 1 \(got 0\)"):
        InfoNCELoss()(torch.empty(0, 4), torch.empty(0, 4))


@pytest.mark.parametrize('temperature', [0.0, -1.0])
def test_info_nce_loss_of_no_temperature(temperature):
    match = rf"'temperature' .* positive \(got {temperature}\)"
    with pytest.raises(ValueError, match=match):
        info_nce_loss(randn(6, 4), randn(6, 4), temperature)


def test_info_nce_loss_invalid_shapes():
    match = r'same shape \(got \[6, 4\] and \[5, 4\]\)'
    with pytest.raises(ValueError, match=match):
        InfoNCELoss()(randn(6, 4), randn(5, 4))
    match = r"'index' .* shape \[6\] \(got \[1\]\)"
    with pytest.raises(ValueError, match=match):
        InfoNCELoss()(randn(6, 4), randn(6, 4), torch.tensor([3]))


@pytest.mark.parametrize(
    ('name', 'size', 'match'),
    [
        ('user', (0, 4), r"'pos_item' .* \[0, 4\] \(got \[6, 4\]\)"),
        ('pos_item', (1, 4), r"'pos_item' .* \[6, 4\] \(got \[1, 4\]\)"),
        ('neg_item', (5, 3), r"'neg_item' .* \[5, 4\] \(got \[5, 3\]\)"),
        ('neg_item', (4,), r"'neg_item' .* \[4, 4\] \(got \[4\]\)"),
        ('neg_mask', (6, 1), r"'neg_mask' .* \[6, 5\] \(got \[6, 1\]\)"),
        ('log_q_pos', (1,), r"'log_q_pos' .* \[6\] \(got \[1\]\)"),
        ('log_q_neg', (6, 5), r"'log_q_neg' .* \[5\] \(got \[6, 5\]\)"),
    ],
)
def test_sampled_softmax_loss_invalid_shapes(name, size, match):
    sizes = {'user': (6, 4), 'pos_item': (6, 4), 'neg_item': (5, 4)}
    sizes |= {'neg_mask': (6, 5), 'log_q_pos': (6,), 'log_q_neg': (5,)}
    inputs = {key: randn(*size).detach() for key, size in sizes.items()}
    inputs[name] = randn(*size).detach()
    inputs['neg_mask'] = inputs['neg_mask'] > 0
    with pytest.raises(ValueError, match=match):
        SampledSoftmaxLoss()(**inputs)


def test_sampled_softmax_loss_of_nothing():
    match = r"'len\(pos_score\)' .* at least 1 \(got 0\)"
    with pytest.raises(ValueError, match=match):
        SampledSoftmaxLoss()(randn(0, 4), randn(0, 4), randn(5, 4))


@pytest.mark.parametrize('cls', [SampledSoftmaxLoss, InfoNCELoss])
@pytest.mark.parametrize('temperature', [0.0, -0.5, float('nan')])
def test_loss_invalid_temperature(cls, temperature):
    match = rf"'temperature' needs to be positive \(got {temperature}\)"
    with pytest.raises(ValueError, match=match):
        cls(temperature)


def test_loss_repr():
    assert str(SampledSoftmaxLoss()) == 'SampledSoftmaxLoss(temperature=0.2)'
    assert str(SampledSoftmaxLoss(0.5, False)) == (
        'SampledSoftmaxLoss(temperature=0.5, normalize=False)'
    )
    assert str(InfoNCELoss(0.5)) == 'InfoNCELoss(temperature=0.5)'


@pytest.mark.parametrize('num_samples', [1, 5])
def test_hardest_negative(num_samples):
    user, item_emb = randn(7, 4, seed=1), randn(9, 4, seed=2)
    index = torch.randint(9, (7, num_samples))
    out = hardest_negative(user, item_emb, index)
    assert not out.requires_grad
    for n, row in enumerate(index.tolist()):
        assert out[n] == max(row, key=lambda j, n=n: user[n] @ item_emb[j])
