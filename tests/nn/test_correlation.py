import math

import pytest
import torch

from crane_pyg.nn.correlation import (
    Moments,
    centre,
    column_means,
    correlation_step,
    covariance,
    inner_weights,
    joint_space,
    root_mean_square,
)


def random_x(num_rows=9, channels=3, num_modalities=2, seed=7):
    r"""Modalities that depend on each other, and have no zero mean."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_modalities, num_rows, channels)
    x = torch.randn(size, generator=generator, dtype=torch.double)
    return x + 0.7 * x.roll(1, 0) + 0.5


def all_rows(x):
    return torch.ones(x.size()[:2], dtype=torch.bool)


def get_moments(x, mask=None):
    mask = all_rows(x) if mask is None else mask
    mean = column_means(x, mask)
    return Moments(mean, covariance(centre(x, mean, mask)))


def random_weights(num_modalities, d, seed=1):
    generator = torch.Generator().manual_seed(seed)
    m, size = num_modalities, num_modalities * d
    sizes = [(size, size), (size,), (m, d, d), (m, d, d)]
    return [
        torch.randn(s, generator=generator, dtype=torch.double) for s in sizes
    ]


def test_moments():
    x = random_x()
    z = torch.cat(list(x), dim=-1)
    expected = torch.cov(z.t(), correction=0)
    moments = get_moments(x)
    torch.testing.assert_close(moments.mean, z.mean(dim=0))
    torch.testing.assert_close(moments.covariance, expected)
    shifted = get_moments(x + 100)
    torch.testing.assert_close(shifted.mean, z.mean(dim=0) + 100)
    torch.testing.assert_close(
        shifted.covariance, expected, rtol=1e-8, atol=1e-8
    )
    repeated = get_moments(x.repeat(1, 4, 1))
    torch.testing.assert_close(repeated, moments)


def test_moments_of_missing_rows():
    x = random_x(num_modalities=1)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    mean = x[0, :6].mean(dim=0)
    x[0, 6:] = mean  # The same as if they had the mean of the others.
    expected = get_moments(x)
    out = get_moments(x.masked_fill(~mask.unsqueeze(-1), 0.0), mask)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(out.mean, mean)


def test_covariance_gradient():
    z = torch.randn(5, 6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(covariance, (z,))
    assert torch.autograd.gradgradcheck(covariance, (z,))


def test_covariance_under_func():
    z = torch.randn(4, 5, 6)
    expected = torch.stack([covariance(row) for row in z])
    out = torch.func.vmap(covariance)(z)
    torch.testing.assert_close(out, expected)

    def loss(z):
        return covariance(z).square().sum()

    out = torch.func.vmap(torch.func.grad(loss))(z)
    z.requires_grad_()
    total = sum((row.t() @ row / 5).square().sum() for row in z)
    (expected,) = torch.autograd.grad(total, z)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_covariance_is_single_precision(dtype):
    # The sum over all rows is beyond the range of half precision.
    x = 40 * torch.randn(2, 500, 3)
    expected = get_moments(x)
    largest = 500 * expected.covariance.diagonal()
    assert largest.min() > torch.finfo(torch.half).max
    for out, ref in zip(get_moments(x.to(dtype)), expected, strict=True):
        assert out.dtype == torch.float
        torch.testing.assert_close(out, ref, rtol=1e-2, atol=5.0)


def test_root_mean_square():
    x = random_x(num_modalities=3)
    expected = x.square().mean(dim=(1, 2)).sqrt()
    out = root_mean_square(get_moments(x), 3)
    torch.testing.assert_close(out, expected)


def test_joint_space():
    x, weight = random_x(channels=2), torch.randn(4, 4, dtype=torch.double)
    z = torch.cat(list(x), dim=-1)
    joint = torch.cat([m / m.square().mean().sqrt() for m in x], dim=-1)
    joint = joint @ weight
    projection, corr = joint_space(get_moments(x), weight, 2, eps=0.0)

    out = (z - z.mean(dim=0)) @ projection
    expected = (joint - joint.mean(dim=0)) / joint.std(dim=0, correction=0)
    torch.testing.assert_close(out, expected)
    expected = torch.corrcoef(torch.cat([z, joint], dim=-1).t())[:4, 4:]
    assert corr.size() == (2, 2, 4)
    torch.testing.assert_close(corr.view(4, 4), expected.tanh())

    # A constant column correlates with nothing:
    x[0, :, 1] = 4.0
    _, corr = joint_space(get_moments(x), weight, 2)
    assert corr[0, 1].abs().max() < 1e-9
    assert corr[1, 1].abs().min() > 1e-3


def test_joint_space_of_many_rows_does_not_saturate():
    torch.manual_seed(12)
    weight = torch.randn(8, 8)
    _, few = joint_space(get_moments(torch.randn(2, 50, 4)), weight, 2)
    _, many = joint_space(get_moments(torch.randn(2, 20000, 4)), weight, 2)
    bound = math.tanh(1.0) + 1e-6
    assert few.abs().max() <= bound
    assert many.abs().max() <= bound
    assert many.abs().mean() < 0.5


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_small_matrices_are_single_precision(dtype):
    moments = get_moments(torch.randn(2, 50, 4))
    weights = [weight.float() for weight in random_weights(2, 4)]
    expected = inner_weights(moments, *weights)
    with torch.autocast('cpu', dtype):
        out = inner_weights(moments, *weights)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)

    moments = Moments(*(value.to(dtype) for value in moments))
    weights = [weight.to(dtype) for weight in weights]
    expected = inner_weights(
        Moments(*(value.float() for value in moments)),
        *(weight.float() for weight in weights),
    )
    out = inner_weights(moments, *weights)
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize('num_modalities', [2, 3])
def test_inner_weights(num_modalities):
    # They stand for the attended features, of which no row is ever made:
    x = random_x(num_modalities=num_modalities)
    mask, moments = all_rows(x), get_moments(x)
    weights = random_weights(num_modalities, 3)
    weight, bias, weight_x, weight_c = weights
    z = centre(x, moments.mean, mask)
    projection, corr = joint_space(moments, weight, num_modalities)
    joint = z @ projection + bias
    hidden = []
    for m, sigma in enumerate(root_mean_square(moments, num_modalities)):
        attended = sigma / math.sqrt(bias.numel()) * joint @ corr[m].t()
        hidden.append(x[m] @ weight_x[m] + attended @ weight_c[m])
    matrix, offset = inner_weights(moments, *weights)
    torch.testing.assert_close(z @ matrix + offset, torch.cat(hidden, dim=-1))


def test_inner_weights_do_not_depend_on_units():
    x, weights = random_x(), random_weights(2, 3)
    scale = torch.tensor([0.05, 50.0], dtype=torch.double).view(2, 1, 1)

    def hidden(x):
        moments = get_moments(x)
        matrix, offset = inner_weights(moments, *weights)
        out = centre(x, moments.mean, all_rows(x)) @ matrix + offset
        return out.view(9, 2, 3).transpose(0, 1)

    torch.testing.assert_close(
        hidden(scale * x), scale * hidden(x), rtol=1e-5, atol=1e-9
    )


def test_correlation_step_dropout():
    # With W_h the identity, a step adds its hidden units to its input:
    torch.manual_seed(12)
    x = torch.rand(2, 50, 4) + 0.1
    mask, z = all_rows(x), torch.cat(list(x), dim=-1)
    inner = torch.rand(8, 8), torch.rand(8)
    eye = torch.eye(4).expand(2, -1, -1)

    hidden = correlation_step(x, z, mask, inner, eye) - x
    expected = (z @ inner[0] + inner[1]).view(50, 2, 4).transpose(0, 1)
    torch.testing.assert_close(hidden, expected)
    dropped = correlation_step(x, z, mask, inner, eye, dropout=0.5) - x
    kept = dropped.abs() > 1e-5
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * hidden[kept])
    out = correlation_step(x, z, mask, inner, eye, 0.5, training=False)
    assert torch.equal(out - x, hidden)
