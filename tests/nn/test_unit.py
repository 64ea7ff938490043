import pytest
import torch
import torch.nn.functional as F

from crane_pyg.nn.unit import unit


@pytest.mark.parametrize('size', [(5, 3), (4, 2, 3), (0, 3)])
def test_unit_equals_normalize(size):
    x = torch.randn(size, dtype=torch.double, requires_grad=True)
    grad_out = torch.randn(size, dtype=torch.double)
    out, expected = unit(x), F.normalize(x, dim=-1)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out, x, grad_out),
        torch.autograd.grad(expected, x, grad_out),
    )
    assert torch.autograd.gradcheck(unit, (x,))


@pytest.mark.parametrize('value', [0.0, 1e-20])
def test_unit_of_next_to_nothing(value):
    x = torch.full((2, 3), value, dtype=torch.double, requires_grad=True)
    grad_out = torch.randn(2, 3, dtype=torch.double)
    out, expected = unit(x), F.normalize(x, dim=-1)
    torch.testing.assert_close(out, expected)
    grad = torch.autograd.grad(out, x, grad_out)[0]
    torch.testing.assert_close(
        grad, torch.autograd.grad(expected, x, grad_out)[0]
    )
    assert grad.isfinite().all()


def test_unit_leaves_its_input():
    x = torch.randn(5, 3, requires_grad=True)
    before, grad_out = x.detach().clone(), torch.randn(5, 3)
    kept = grad_out.clone()
    unit(x).backward(grad_out)
    assert torch.equal(x.detach(), before)
    assert torch.equal(grad_out, kept)


def test_unit_has_a_second_derivative():
    x = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(unit, (x,))
    grads = []
    for function in (unit, lambda x: F.normalize(x, dim=-1)):
        loss = (function(x) * torch.arange(3)).exp().sum()
        grad = torch.autograd.grad(loss, x, create_graph=True)[0]
        grads.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*grads)
    assert grads[0].abs().max() > 0.1
