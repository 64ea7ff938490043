import copy
import math
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch_geometric.nn import GraphSAGE, SAGEConv, Sequential, to_hetero
from torch_geometric.testing import onlyCUDA
from toys import no_sync

from crane_pyg.nn.rca import (
    RCA,
    correlation_step,
    covariance,
    cross_correlation,
    stack_modalities,
)

MODES = ['correlation', 'token']


def random_rca(*args, seed=12, **kwargs):
    r"""A module that is away from where it starts, which is the identity."""
    torch.manual_seed(seed)
    rca = RCA(*args, **kwargs)
    with torch.no_grad():
        for param in rca.parameters():
            param += 0.1 * torch.randn_like(param)
    return rca


def random_inputs(num_rows, channels, num_modalities, seed=7, scale=1.0):
    r"""Modalities that depend on each other, and have no zero mean."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_modalities, num_rows, channels)
    x = torch.randn(size, generator=generator, dtype=torch.double)
    x = scale * (x + 0.7 * x.roll(1, 0) + 0.5)
    return [row.clone().requires_grad_() for row in x]


def random_masks(num_rows, num_modalities, seed=3):
    r"""Rows of all, of some, and (the last one) of no modalities."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(num_modalities, num_rows, generator=generator) > 0.35
    mask[:, 0] = True
    mask[0, 1], mask[1, 1] = True, False
    mask[:, -1] = False
    return list(mask)


def as_floats(xs):
    return [x.detach().float().requires_grad_() for x in xs]


def as_mask(masks, num_rows, num_modalities):
    if masks is None:
        return [[True] * num_rows] * num_modalities
    return [mask.tolist() for mask in masks]


def zero_missing(rows, present):
    r"""Puts zeros in the rows a modality is missing from."""
    return [
        [x if p else torch.zeros_like(x) for x, p in zip(row, has, strict=True)]
        for row, has in zip(rows, present, strict=True)
    ]


def naive_correlation(rca, xs, masks=None, eps=1e-5):
    r"""The equations, row by row, with a joint space that has a bias.

    The rows that a modality is missing from take the mean of the others,
    and so deviate from it by nothing.
    """
    num_modalities, num_rows = len(xs), xs[0].size(0)
    present = as_mask(masks, num_rows, num_modalities)
    rows = zero_missing([list(x) for x in xs], present)

    for r in range(rca.num_steps):
        step = rca.steps[0 if rca.shared else r]
        bias = torch.linspace(-2, 3, step.weight.size(1), dtype=torch.double)

        means = []
        for row, has in zip(rows, present, strict=True):
            total, count = torch.zeros_like(row[0]), 0
            for x, p in zip(row, has, strict=True):
                total, count = (total + x, count + 1) if p else (total, count)
            means.append(total / max(count, 1))

        filled = [
            [x if p else mean for x, p in zip(rows[m], present[m], strict=True)]
            for m, mean in enumerate(means)
        ]
        joint = [
            torch.cat([filled[m][n] for m in range(num_modalities)])
            @ step.weight
            + bias
            for n in range(num_rows)
        ]
        joint_mean = sum(joint) / num_rows
        joint_var = sum((e - joint_mean) ** 2 for e in joint) / num_rows

        outs = []
        for m, mean in enumerate(means):
            var = sum((x - mean) ** 2 for x in filled[m]) / num_rows
            cov = sum(
                torch.outer(x - mean, e - joint_mean)
                for x, e in zip(filled[m], joint, strict=True)
            )
            scale = torch.outer((var + eps).sqrt(), (joint_var + eps).sqrt())
            corr = torch.tanh(cov / num_rows / scale)
            outs.append(
                [
                    x
                    + torch.relu(
                        x @ step.weight_x[m] + (x @ corr) @ step.weight_c[m]
                    )
                    @ step.weight_h[m]
                    for x in rows[m]
                ]
            )
        rows = zero_missing(outs, present)
    return [torch.stack(row) for row in rows]


def naive_token(rca, xs, masks=None):
    r"""Softmax attention between the modalities of one row at a time."""
    num_modalities, num_rows = len(xs), xs[0].size(0)
    present = as_mask(masks, num_rows, num_modalities)
    rows = zero_missing([list(x) for x in xs], present)

    for r in range(rca.num_steps):
        step = rca.steps[0 if rca.shared else r]
        weight_q, weight_k, weight_v = step.lin_qkv.weight.chunk(3)
        bias_q, bias_k, bias_v = step.lin_qkv.bias.chunk(3)
        outs = [[] for _ in range(num_modalities)]
        for n in range(num_rows):
            others = [m for m in range(num_modalities) if present[m][n]]
            for m in range(num_modalities):
                if not present[m][n]:
                    outs[m].append(torch.zeros_like(rows[m][n]))
                    continue
                query = weight_q @ rows[m][n] + bias_q
                exps = [
                    torch.exp(
                        query
                        @ (weight_k @ rows[o][n] + bias_k)
                        / math.sqrt(rca.channels)
                    )
                    for o in others
                ]
                attended = sum(
                    exp / sum(exps) * (weight_v @ rows[o][n] + bias_v)
                    for o, exp in zip(others, exps, strict=True)
                )
                outs[m].append(
                    rows[m][n]
                    + step.lin_out.weight @ attended
                    + step.lin_out.bias
                )
        rows = outs
    return [torch.stack(row) for row in rows]


NAIVE = {'correlation': naive_correlation, 'token': naive_token}


def gradients(outs, inputs):
    r"""The gradients of a function that weighs every output differently."""
    out = torch.cat([out.flatten() for out in outs])
    weight = torch.linspace(-1, 2, out.numel(), dtype=out.dtype)
    loss = (weight.to(out.device) * out).sum() + out.square().mean()
    return torch.autograd.grad(loss, inputs)


def assert_close(outs, expected, **kwargs):
    assert len(outs) == len(expected)
    for out, ref in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, ref, **kwargs)


def train_statistics(rca, num_updates=3, num_rows=20):
    for seed in range(num_updates):
        xs = random_inputs(num_rows, rca.channels, rca.num_modalities, seed)
        rca([x.detach().to(next(rca.parameters())) for x in xs])
    return rca


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('num_modalities', [2, 3])
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize(
    ('num_steps', 'shared'), [(1, False), (3, False), (3, True)]
)
@pytest.mark.parametrize('scale', [1.0, 0.01])
def test_rca_equals_naive_equations(
    mode, num_modalities, masked, num_steps, shared, scale
):
    rca = random_rca(3, num_modalities, num_steps, mode, shared).double()
    xs = random_inputs(9, 3, num_modalities, scale=scale)
    masks = random_masks(9, num_modalities) if masked else None

    params = dict(rca.named_parameters())
    assert len(rca.steps) == (1 if shared else num_steps)

    outs = rca(xs, masks)
    expected = NAIVE[mode](rca, xs, masks)
    assert isinstance(outs, list)
    assert_close(outs, expected, rtol=1e-10, atol=1e-10)

    inputs = [*xs, *params.values()]
    assert_close(
        gradients(outs, inputs),
        gradients(expected, inputs),
        rtol=1e-8,
        atol=1e-8,
    )


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('masked', [False, True])
def test_rca_gradcheck(mode, masked):
    rca = random_rca(2, 2, 2, mode).double()
    masks = random_masks(5, 2) if masked else None
    params = {
        name: param.detach().requires_grad_()
        for name, param in rca.named_parameters()
    }
    xs = random_inputs(5, 2, 2)

    def forward(*inputs):
        values = dict(zip(params, inputs[2:], strict=True))
        module = copy.deepcopy(rca)
        return tuple(
            torch.func.functional_call(module, values, (inputs[:2], masks))
        )

    assert torch.autograd.gradcheck(forward, (*xs, *params.values()))


def test_covariance():
    xs = [x.detach() for x in random_inputs(9, 3, 2)]
    x, mask = stack_modalities(xs)
    assert mask is None
    assert x.size() == (2, 9, 3)

    expected = torch.cov(torch.cat(xs, dim=-1).t(), correction=0)
    torch.testing.assert_close(covariance(x), expected)
    shifted = covariance(x + 100)
    torch.testing.assert_close(shifted, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(covariance(x.repeat(1, 4, 1)), expected)

    full = torch.ones(2, 9, dtype=torch.bool)
    torch.testing.assert_close(covariance(x, full), expected)


@pytest.mark.parametrize('masked', [False, True])
def test_covariance_gradient(masked):
    x = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    mask = torch.rand(2, 5) > 0.3 if masked else None
    assert torch.autograd.gradcheck(lambda x: covariance(x, mask), (x,))
    assert torch.autograd.gradgradcheck(lambda x: covariance(x, mask), (x,))


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_covariance_is_single_precision(dtype):
    # The sum over all rows is beyond the range of half precision.
    x = 40 * torch.randn(2, 500, 3)
    assert (500 * covariance(x).diagonal()).min() > torch.finfo(torch.half).max
    out = covariance(x.to(dtype))
    assert out.dtype == torch.float
    torch.testing.assert_close(out, covariance(x), rtol=1e-2, atol=5.0)


def test_cross_correlation_is_a_squashed_correlation():
    xs = [x.detach() for x in random_inputs(9, 2, 2)]
    z = torch.cat(xs, dim=-1)
    weight = torch.randn(4, 4, dtype=torch.double)

    expected = torch.corrcoef(torch.cat([z, z @ weight], dim=-1).t())[:4, 4:]
    out = cross_correlation(covariance(torch.stack(xs)), weight, 2, eps=0.0)
    assert out.size() == (2, 2, 4)
    torch.testing.assert_close(out.view(4, 4), expected.tanh())

    # A constant column correlates with nothing:
    xs[0][:, 1] = 4.0
    out = cross_correlation(covariance(torch.stack(xs)), weight, 2)
    assert out[0, 1].abs().max() < 1e-9
    assert out[1, 1].abs().min() > 1e-3


def test_cross_correlation_of_many_rows_does_not_saturate():
    torch.manual_seed(12)
    weight = torch.randn(8, 8)
    few = cross_correlation(covariance(torch.randn(2, 50, 4)), weight, 2)
    many = cross_correlation(covariance(torch.randn(2, 20000, 4)), weight, 2)
    bound = math.tanh(1.0) + 1e-6
    assert few.abs().max() <= bound
    assert many.abs().max() <= bound
    assert many.abs().mean() < 0.5


def test_correlation_step_dropout():
    # With W_h the identity, a step adds its hidden units to its input:
    torch.manual_seed(12)
    x = torch.rand(2, 50, 4) + 0.1
    weights = [torch.rand(2, 4, 8), torch.rand(2, 4, 4), torch.rand(2, 8, 4)]
    eye = torch.eye(4).expand(2, -1, -1)

    hidden = correlation_step(x, *weights, eye) - x
    dropped = correlation_step(x, *weights, eye, dropout=0.5) - x
    kept = dropped.abs() > 1e-5
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * hidden[kept])


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('value', [123.0, float('nan'), float('inf')])
def test_rca_missing_values_have_no_weight(mode, training, value):
    rca = random_rca(4, 3, 2, mode).double()
    rca = train_statistics(rca).train(training)
    xs, masks = random_inputs(9, 4, 3), random_masks(9, 3)
    rca_twin = copy.deepcopy(rca)

    outs = rca(xs, masks)
    params = list(rca.parameters())
    grads = gradients(outs, xs + params)
    for out, x_grad, mask in zip(outs, grads[:3], masks, strict=True):
        assert out.isfinite().all()
        assert (out[~mask] == 0).all()
        assert (out[mask] != 0).any(dim=-1).all()
        assert (x_grad[~mask] == 0).all()

    others = [
        x.detach().masked_fill(~mask.unsqueeze(-1), value).requires_grad_()
        for x, mask in zip(xs, masks, strict=True)
    ]
    other_outs = rca_twin(others, masks)
    assert_close(other_outs, outs, rtol=0, atol=0)
    other_grads = gradients(other_outs, others + list(rca_twin.parameters()))
    assert all(grad.isfinite().all() for grad in other_grads)
    assert_close(other_grads, grads, rtol=0, atol=0)
    assert_close(list(rca_twin.buffers()), list(rca.buffers()), rtol=0, atol=0)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('missing', [[1], [0, 1, 2]])
def test_rca_modality_missing_everywhere(mode, training, missing):
    rca = train_statistics(random_rca(4, 3, 2, mode)).train(training)
    xs = as_floats(random_inputs(6, 4, 3))
    masks = [torch.ones(6, dtype=torch.bool) for _ in range(3)]
    for m in missing:
        masks[m].zero_()

    outs = rca(xs, masks)
    for m, out in enumerate(outs):
        assert out.isfinite().all()
        assert bool((out == 0).all()) == (m in missing)
    grads = gradients(outs, xs + list(rca.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
    assert all(buffer.isfinite().all() for buffer in rca.buffers())


@pytest.mark.parametrize('mode', MODES)
def test_rca_full_masks_change_nothing(mode):
    xs = random_inputs(6, 4, 2)
    masks = [torch.ones(6, dtype=torch.bool) for _ in range(2)]
    outs = random_rca(4, 2, 2, mode).double()(xs, masks)
    expected = random_rca(4, 2, 2, mode).double()(xs)
    assert_close(outs, expected)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('masked', [False, True])
def test_rca_does_not_modify_inputs(mode, masked):
    rca = random_rca(4, 2, 2, mode).double()
    xs = random_inputs(6, 4, 2)
    masks = random_masks(6, 2) if masked else None
    before = copy.deepcopy((xs, masks))
    rca(xs, masks)
    assert_close(xs, before[0], rtol=0, atol=0)
    if masked:
        assert_close(masks, before[1], rtol=0, atol=0)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('masked', [False, True])
@pytest.mark.parametrize('training', [True, False])
def test_rca_rows_are_equivariant(mode, masked, training):
    xs = random_inputs(9, 4, 2)
    masks = random_masks(9, 2) if masked else None
    perm = torch.randperm(9)
    permuted = [mask[perm] for mask in masks] if masked else None

    rca = random_rca(4, 2, 2, mode).double()
    rca = train_statistics(rca).train(training)
    expected = [out[perm] for out in rca(xs, masks)]
    outs = rca([x[perm] for x in xs], permuted)
    assert_close(outs, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('masked', [False, True])
def test_rca_evaluates_rows_on_their_own(mode, masked):
    rca = train_statistics(random_rca(4, 3, 2, mode)).eval()
    xs = as_floats(random_inputs(9, 4, 3))
    masks = random_masks(9, 3) if masked else None
    state = copy.deepcopy(rca.state_dict())

    outs = rca(xs, masks)
    for index in [[0], [4], [3, 1, 8], list(range(2, 9))]:
        part = rca(
            [x[index] for x in xs],
            None if masks is None else [mask[index] for mask in masks],
        )
        expected = [out[index] for out in outs]
        assert_close(part, expected, rtol=1e-6, atol=1e-6)

    # Evaluation leaves the statistics alone:
    for name, value in rca.state_dict().items():
        assert torch.equal(value, state[name])


def test_rca_trains_over_all_rows():
    rca = random_rca(4, 2).double()
    xs = random_inputs(9, 4, 2)
    outs = rca(xs)
    part = rca([x[:5] for x in xs])
    assert (outs[0][:5] - part[0]).abs().max() > 1e-3


def test_rca_evaluation_uses_stored_statistics():
    rca = random_rca(4, 2, num_steps=2).double()
    xs = random_inputs(9, 4, 2)
    initial = rca.eval()(xs)
    for x, out in zip(xs, naive_no_correlation(rca, xs), strict=True):
        assert x.size() == out.size()
    assert_close(initial, naive_no_correlation(rca, xs))

    # After one update, they are those of the rows themselves:
    expected = rca.train()(xs)
    outs = rca.eval()(xs)
    assert_close(outs, expected)
    assert (outs[0] - initial[0]).abs().max() > 1e-3

    for r in range(rca.num_steps):
        stats = rca.covariance.clone()
        rca.covariance[r] = torch.eye(8)
        assert (rca(xs)[0] - outs[0]).abs().max() > 1e-3
        rca.covariance.copy_(stats)


def naive_no_correlation(rca, xs):
    x = torch.stack(xs)
    for step in rca.steps:
        x = x + (x @ step.weight_x).relu() @ step.weight_h
    return list(x)


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('momentum', [0.1, 0.75, 1.0])
def test_rca_running_statistics(shared, momentum):
    rca = random_rca(
        4, 2, num_steps=2, shared=shared, momentum=momentum
    ).double()
    assert rca.covariance.size() == (2, 8, 8)
    assert (rca.covariance == 0).all()
    assert rca.num_updates == 0

    inputs = []
    for step in rca.steps:
        step.register_forward_pre_hook(
            lambda _, args: inputs.append(args[0].detach())
        )

    expected = None
    for i in range(4):
        inputs.clear()
        rca(random_inputs(9, 4, 2, seed=i))
        assert len(inputs) == 2
        latest = torch.stack([covariance(x) for x in inputs])
        expected = (
            latest
            if expected is None
            else (1 - momentum) * expected + momentum * latest
        )
        torch.testing.assert_close(rca.covariance, expected)
        assert (rca.covariance[0] - rca.covariance[1]).abs().max() > 1e-3
        assert rca.num_updates == i + 1
        assert not rca.covariance.requires_grad


def test_rca_accumulates_two_forward_passes():
    rca = random_rca(4, 2, num_steps=2).double()
    params = list(rca.parameters())
    first, second = random_inputs(9, 4, 2, 1), random_inputs(7, 4, 2, 2)
    outs = [*rca(first), *rca(second)]
    grads = gradients(outs, params)
    expected = gradients(
        [*naive_correlation(rca, first), *naive_correlation(rca, second)],
        params,
    )
    assert_close(grads, expected)


@pytest.mark.parametrize('mode', MODES)
def test_rca_state_dict(mode):
    rca = train_statistics(random_rca(4, 2, 2, mode)).eval()
    xs = as_floats(random_inputs(9, 4, 2))
    expected = rca(xs)

    other = random_rca(4, 2, 2, mode, seed=1).eval()
    assert (other(xs)[0] - expected[0]).abs().max() > 1e-3
    other.load_state_dict(rca.state_dict())
    assert_close(other(xs), expected, rtol=0, atol=0)

    statistics = {'covariance', 'num_updates'} & set(rca.state_dict())
    assert len(statistics) == (2 if mode == 'correlation' else 0)


@pytest.mark.parametrize('mode', MODES)
def test_rca_reset_parameters(mode):
    rca = random_rca(4, 3, 2, mode)
    train_statistics(rca)
    rca.reset_parameters()
    for name, value in rca.state_dict().items():
        zeros = ('covariance', 'num_updates', 'weight_h', 'lin_out')
        if any(part in name for part in zeros):
            assert (value == 0).all()
        else:
            assert value.unique().numel() > 1
            fan = 4 if value.dim() < 2 else value.size(-2) + value.size(-1)
            assert value.abs().max() <= math.sqrt(6 / fan)


@pytest.mark.parametrize('mode', MODES)
def test_rca_starts_as_the_identity(mode):
    xs = random_inputs(9, 4, 3)
    for x, out in zip(xs, RCA(4, 3, 2, mode).double()(xs), strict=True):
        assert torch.equal(x, out)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('case', ['one_row', 'constant', 'zero', 'large'])
def test_rca_is_finite(mode, training, case):
    rca = train_statistics(random_rca(4, 2, 2, mode)).train(training)
    xs = random_inputs(1 if case == 'one_row' else 6, 4, 2)
    if case == 'constant':
        xs[0] = torch.full_like(xs[0], 3.0)
        xs[1] = torch.full_like(xs[1], 0.1)
    if case == 'zero':
        xs = [torch.zeros_like(x) for x in xs]
    if case == 'large':
        xs = [1e4 * x for x in xs]
    xs = as_floats(xs)

    outs = rca(xs)
    assert all(out.isfinite().all() for out in outs)
    grads = gradients(outs, xs + list(rca.parameters()))
    assert all(grad.isfinite().all() for grad in grads)
    assert all(buffer.isfinite().all() for buffer in rca.buffers())


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('masked', [False, True])
def test_rca_without_rows(mode, training, masked):
    rca = random_rca(4, 2, 2, mode).train(training)
    xs = [torch.empty(0, 4, requires_grad=True) for _ in range(2)]
    masks = [torch.empty(0, dtype=torch.bool)] * 2 if masked else None
    for num_updates in [0, 1]:
        state = copy.deepcopy(rca.state_dict())
        outs = rca(xs, masks)
        assert [out.size() for out in outs] == [(0, 4), (0, 4)]
        grads = gradients([*outs, torch.ones(1)], [*xs, *rca.parameters()])
        assert [grad.size() for grad in grads[:2]] == [(0, 4), (0, 4)]
        assert all((grad == 0).all() for grad in grads[2:])
        for name, value in rca.state_dict().items():
            assert torch.equal(value, state[name])
        if mode == 'correlation' and training:
            assert rca.num_updates == num_updates
        train_statistics(rca, num_updates=1)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
@pytest.mark.parametrize('masked', [False, True])
def test_rca_half_precision(mode, dtype, masked):
    low = random_rca(4, 2, 2, mode).to(dtype)
    high = copy.deepcopy(low).double()
    masks = random_masks(9, 2) if masked else None
    xs_low = [
        x.detach().to(dtype).requires_grad_() for x in random_inputs(9, 4, 2)
    ]
    xs_high = [x.detach().double().requires_grad_() for x in xs_low]
    tol = {'rtol': 0.0, 'atol': 2e-2 if dtype == torch.half else 1e-1}

    for training in [True, False]:
        outs = low.train(training)(xs_low, masks)
        expected = high.train(training)(xs_high, masks)
        assert all(out.dtype == dtype for out in outs)
        assert_close([out.double() for out in outs], expected, **tol)
        grads = gradients(outs, xs_low + list(low.parameters()))
        assert all(grad.isfinite().all() for grad in grads)
    if mode == 'correlation':
        assert low.covariance.dtype == dtype
        assert low.num_updates == 1
        torch.testing.assert_close(
            low.covariance.double(), high.covariance, **tol
        )


def test_rca_half_precision_holds_large_statistics():
    rca = random_rca(4, 2).half()
    xs = [400 * torch.randn(50, 4).half() for _ in range(2)]
    for training in [True, True, False]:  # A variance of 160,000, twice.
        outs = rca.train(training)(xs)
        assert all(out.isfinite().all() for out in outs)
    assert (rca.covariance.diagonal(dim1=1, dim2=2) == 65504).all()


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_rca_autocast(mode, dtype):
    rca = random_rca(4, 2, 2, mode)
    reference = copy.deepcopy(rca)
    xs = as_floats(random_inputs(9, 4, 2))
    for training in [True, False]:
        expected = reference.train(training)(xs)
        with torch.autocast('cpu', dtype):
            outs = rca.train(training)(xs)
        assert_close([out.float() for out in outs], expected, rtol=0, atol=0.1)
        grads = gradients(outs, xs + list(rca.parameters()))
        assert all(grad.isfinite().all() for grad in grads)

    if mode == 'correlation':
        # The statistics do not suffer from the precision of the products:
        torch.testing.assert_close(rca.covariance[0], reference.covariance[0])


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_cross_correlation_is_single_precision(dtype):
    stats = covariance(torch.randn(2, 50, 4))
    weight = torch.randn(8, 8)
    expected = cross_correlation(stats, weight, 2)
    with torch.autocast('cpu', dtype):
        out = cross_correlation(stats, weight, 2)
    torch.testing.assert_close(out, expected)

    stats, weight = stats.to(dtype), weight.to(dtype)
    out = cross_correlation(stats, weight, 2)
    expected = cross_correlation(stats.float(), weight.float(), 2)
    torch.testing.assert_close(out, expected)


def test_rca_autocast_does_not_overflow():
    xs = [40 * torch.randn(500, 4) for _ in range(2)]
    rca = random_rca(4, 2)
    with torch.autocast('cpu', torch.half):
        outs = rca(xs)
    assert rca.covariance.isfinite().all()
    assert all(out.isfinite().all() for out in outs)


def assert_compiles(mode, training, masked, backend):
    rca = train_statistics(random_rca(4, 2, 2, mode)).train(training)
    twin = copy.deepcopy(rca)
    xs = as_floats(random_inputs(9, 4, 2))
    masks = random_masks(9, 2) if masked else None

    torch.compiler.reset()
    compiled = torch.compile(rca, fullgraph=True, backend=backend)
    outs, expected = compiled(xs, masks), twin(xs, masks)
    assert_close(outs, expected, rtol=1e-5, atol=1e-5)
    assert_close(
        gradients(outs, xs + list(rca.parameters())),
        gradients(expected, xs + list(twin.parameters())),
        rtol=1e-4,
        atol=1e-4,
    )
    assert_close(list(rca.buffers()), list(twin.buffers()))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('masked', [False, True])
def test_rca_compile(mode, training, masked):
    assert_compiles(mode, training, masked, backend='aot_eager')


@pytest.mark.skipif(shutil.which('g++') is None, reason='No C++ compiler')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('mode', MODES)
def test_rca_compile_inductor(mode):
    assert_compiles(mode, training=True, masked=True, backend='inductor')


def test_rca_in_sequential():
    xs = as_floats(random_inputs(6, 4, 2))
    masks = random_masks(6, 2)
    model = Sequential(
        'xs, masks',
        [
            (random_rca(4, 2), 'xs, masks -> xs'),
            (random_rca(4, 2, mode='token'), 'xs, masks -> xs'),
            lambda xs: torch.cat(xs, dim=-1),
        ],
    )
    out = model(xs, masks)
    assert out.size() == (6, 8)
    twin = random_rca(4, 2)(xs, masks)
    expected = random_rca(4, 2, mode='token')(twin, masks)
    torch.testing.assert_close(out, torch.cat(expected, dim=-1))


class Net(torch.nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.rca = RCA(4, 2, 2, mode)
        self.conv = SAGEConv((4, 4), 4)

    def forward(self, x_image, x_text, edge_index):
        xs = self.rca([x_image, x_text])
        return self.conv(xs[0] + xs[1], edge_index)


def hetero_inputs():
    r"""Two modalities of two types of nodes, and edges both ways."""
    user = as_floats(random_inputs(9, 4, 2))
    item = as_floats(random_inputs(5, 4, 2, seed=8))
    x_dicts = [{'user': user[m], 'item': item[m]} for m in range(2)]
    edge_index = torch.tensor([[0, 8, 3, 3, 5], [1, 1, 0, 4, 2]])
    edge_index_dict = {
        ('user', 'rates', 'item'): edge_index,
        ('item', 'rev_rates', 'user'): edge_index.flip(0),
    }
    return x_dicts, edge_index_dict


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
def test_rca_inside_to_hetero(mode, training):
    x_dicts, edge_index_dict = hetero_inputs()
    model = to_hetero(Net(mode), (['user', 'item'], list(edge_index_dict)))
    for key in ['user', 'item']:
        source = random_rca(4, 2, 2, mode, seed=len(x_dicts[0][key]))
        source = train_statistics(source)
        model.rca[key].load_state_dict(source.state_dict())
    twins = copy.deepcopy(model.rca).train(training)
    out = model.train(training)(*x_dicts, edge_index_dict)

    fused = {
        key: sum(twins[key]([x_dict[key] for x_dict in x_dicts]))
        for key in ['user', 'item']
    }
    for (src, rel, dst), edge_index in edge_index_dict.items():
        conv = model.conv[f'{src}__{rel}__{dst}']
        expected = conv((fused[src], fused[dst]), edge_index)
        torch.testing.assert_close(out[dst], expected)
    # Nodes of one type have statistics of their own:
    assert_close(list(model.rca.buffers()), list(twins.buffers()))
    params = list(model.rca.parameters())
    for grad in torch.autograd.grad(out['item'].square().sum(), params):
        assert grad.abs().max() > 0


@pytest.mark.parametrize('mode', MODES)
def test_rca_on_top_of_to_hetero(mode):
    x_dicts, edge_index_dict = hetero_inputs()
    net = GraphSAGE(4, 4, num_layers=1)
    model = to_hetero(net, (['user', 'item'], list(edge_index_dict)))
    xs = [model(x_dict, edge_index_dict)['item'] for x_dict in x_dicts]
    rca = random_rca(4, 2, mode=mode)
    out = rca(xs)[0]
    # What the image says depends on what users say about the text:
    (grad,) = torch.autograd.grad(out.square().sum(), x_dicts[1]['user'])
    assert (grad[[0, 3, 5, 8]].abs().amax(dim=1) > 0).all()
    assert (grad[[1, 2, 4, 6, 7]] == 0).all()


def test_rca_to_hetero_without_a_modality():
    x_dicts, edge_index_dict = hetero_inputs()
    net = Net('correlation')
    model = to_hetero(net, (['user', 'item'], list(edge_index_dict)))
    del x_dicts[1]['user']
    with pytest.raises(ValueError, match=r"modality \(got 'NoneType'\)"):
        model(*x_dicts, edge_index_dict)


@pytest.mark.parametrize('mode', MODES)
def test_rca_dropout(mode):
    rca = train_statistics(random_rca(8, 2, 2, mode, dropout=0.5))
    xs = as_floats(random_inputs(9, 8, 2))
    assert not torch.allclose(rca(xs)[0], rca(xs)[0])

    rca.eval()
    assert_close(rca(xs), rca(xs), rtol=0, atol=0)
    plain = random_rca(8, 2, 2, mode).eval()
    plain.load_state_dict(rca.state_dict())
    assert_close(rca(xs), plain(xs), rtol=0, atol=0)

    plain.train()
    assert_close(plain(xs), plain(xs), rtol=0, atol=0)


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('shared', [False, True])
def test_rca_gradient_flows_everywhere(mode, shared):
    rca = random_rca(8, 3, 2, mode, shared)
    xs = as_floats(random_inputs(20, 8, 3))
    sum(out.square().sum() for out in rca(xs)).backward()
    for param in [*xs, *rca.parameters()]:
        assert param.grad is not None
        assert param.grad.isfinite().all()
        assert param.grad.abs().max() > 0


@pytest.mark.parametrize('mode', MODES)
def test_rca_modalities_see_each_other(mode):
    rca = random_rca(4, 2, mode=mode)
    xs = as_floats(random_inputs(9, 4, 2))
    grad = torch.autograd.grad(rca(xs)[0].square().sum(), xs[1])[0]
    assert grad.abs().max() > 1e-4


def test_rca_repr():
    assert str(RCA(8, 2)) == (
        "RCA(8, num_modalities=2, num_steps=1, mode='correlation')"
    )
    assert str(RCA(16, 3, num_steps=4, mode='token')) == (
        "RCA(16, num_modalities=3, num_steps=4, mode='token')"
    )


@pytest.mark.parametrize(
    ('kwargs', 'match'),
    [
        ({'channels': 0}, r"'channels' needs to be at least 1 \(got 0\)"),
        ({'channels': 4.0}, r"'channels' .* an integer \(got 4.0\)"),
        (
            {'num_modalities': 1},
            r"'num_modalities' needs to be at least 2 \(got 1\)",
        ),
        ({'num_steps': 0}, r"'num_steps' needs to be at least 1 \(got 0\)"),
        (
            {'mode': 'row'},
            r"'mode' needs to be one of \('correlation', 'token'\) "
            r"\(got 'row'\)",
        ),
        ({'dropout': -0.5}, r"'dropout' .* \[0, 1\) \(got -0.5\)"),
        ({'dropout': 1.0}, r"'dropout' .* \[0, 1\) \(got 1.0\)"),
        ({'momentum': 0.0}, r"'momentum' .* \(0, 1\] \(got 0.0\)"),
        ({'momentum': 1.5}, r"'momentum' .* \(0, 1\] \(got 1.5\)"),
    ],
)
def test_rca_invalid_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        RCA(**{'channels': 4, 'num_modalities': 2, **kwargs})


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
    ('sizes', 'match'),
    [
        ([], r"'xs' needs to hold 2 modalities \(got 0\)"),
        ([(5, 4)], r"'xs' needs to hold 2 modalities \(got 1\)"),
        ([(5, 4)] * 3, r"'xs' needs to hold 2 modalities \(got 3\)"),
        ([(5, 3)] * 2, r"'xs' .* shape \[5, 4\] \(got \[5, 3\]\)"),
        ([(5, 4), (6, 4)], r"'xs' .* shape \[5, 4\] \(got \[6, 4\]\)"),
        ([(5, 4), (4,)], r"'xs' .* shape \[5, 4\] \(got \[4\]\)"),
        ([(), ()], r"'xs' .* shape \[4\] \(got \[\]\)"),
        ([(5, 4, 1)] * 2, r"'xs' .* shape \[5, 4\] \(got \[5, 4, 1\]\)"),
    ],
)
def test_rca_invalid_inputs(mode, sizes, match):
    rca = RCA(4, 2, mode=mode)
    with pytest.raises(ValueError, match=match):
        rca([torch.randn(size) for size in sizes])


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize(
    ('xs', 'match'),
    [
        ([torch.ones(5, 4), None], "'NoneType'"),
        ([torch.ones(5, 4).long()] * 2, r'torch.int64 of shape \[5, 4\]'),
        ({'image': torch.ones(5, 4), 'text': torch.ones(5, 4)}, "'str'"),
    ],
)
def test_rca_needs_floating_point_tensors(mode, xs, match):
    match = rf"'xs' .* one floating-point tensor per modality \(got {match}\)"
    with pytest.raises(ValueError, match=match):
        RCA(4, 2, mode=mode)(xs)


@pytest.mark.parametrize(
    ('masks', 'match'),
    [
        ([], r"'masks' needs to hold 2 masks \(got 0\)"),
        ([torch.ones(5).bool()], r"'masks' needs to hold 2 masks \(got 1\)"),
        (
            [torch.ones(5).bool(), torch.ones(5)],
            r"'masks' .* boolean of shape \[5\] "
            r'\(got torch.float32 of shape \[5\]\)',
        ),
        (
            [torch.ones(5).bool(), torch.ones(4).bool()],
            r"'masks' .* \(got torch.bool of shape \[4\]\)",
        ),
        ([torch.ones(5).bool(), None], r"'masks' .* \(got 'NoneType'\)"),
        (
            [torch.ones(5, 1).bool()] * 2,
            r"'masks' .* \(got torch.bool of shape \[5, 1\]\)",
        ),
    ],
)
def test_rca_invalid_masks(masks, match):
    with pytest.raises(ValueError, match=match):
        RCA(4, 2)([torch.randn(5, 4)] * 2, masks)


@onlyCUDA
@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('masked', [False, True])
def test_rca_cuda_does_not_synchronize(mode, masked):
    rca = random_rca(4, 2, 2, mode, dropout=0.1).cuda()
    xs = [
        x.detach().cuda().requires_grad_()
        for x in as_floats(random_inputs(9, 4, 2))
    ]
    masks = [mask.cuda() for mask in random_masks(9, 2)] if masked else None
    for training in [True, False]:
        rca.train(training)
        for context in [nullcontext(), no_sync()]:  # The first one warms up.
            with context:
                outs = rca(xs, masks)
                sum(out.square().sum() for out in outs).backward()
    assert all(x.grad.isfinite().all() for x in xs)
    twin = copy.deepcopy(rca).cpu()
    cpu_masks = [mask.cpu() for mask in masks] if masked else None
    expected = twin([x.detach().cpu() for x in xs], cpu_masks)
    outs = [out.cpu() for out in rca(xs, masks)]
    assert_close(outs, expected, rtol=1e-4, atol=1e-4)


def test_rca_statistics_survive_a_nan():
    rca = random_rca(4, 2)
    train_statistics(rca)
    before = rca.covariance.clone()
    xs = list(torch.randn(2, 5, 4, dtype=before.dtype))
    xs[1][2, 0] = float('nan')
    rca.train()(xs)
    assert torch.equal(rca.covariance, before)
