import copy
import math

import pytest
import torch
import torch.nn.functional as F
from naive_rca import (
    MODES,
    NAIVE,
    as_floats,
    assert_close,
    gradients,
    naive_correlation,
    random_inputs,
    random_masks,
    random_rca,
    train_statistics,
)

from crane_pyg.nn import RCA


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
    assert_close(initial, naive_no_correlation(rca, xs))

    # After one update, they are those of the rows themselves:
    expected = rca.train()(xs)
    outs = rca.eval()(xs)
    assert_close(outs, expected)
    assert (outs[0] - initial[0]).abs().max() > 1e-3

    for r in range(rca.num_steps):
        for stats, value in [(rca.covariance, torch.eye(8)), (rca.mean, 2.0)]:
            before = stats.clone()
            stats[r] = value
            assert (rca(xs)[0] - outs[0]).abs().max() > 1e-3
            stats.copy_(before)


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
            lambda _, args: inputs.append(list(args[0].detach()))
        )

    expected = None
    for i in range(4):
        inputs.clear()
        rca(random_inputs(9, 4, 2, seed=i))
        assert len(inputs) == 2
        z = torch.stack([torch.cat(xs, dim=-1) for xs in inputs])
        cov = torch.stack([torch.cov(x.t(), correction=0) for x in z])
        latest = [z.mean(dim=1), cov]
        if expected is None:
            expected = latest
        for old, new in zip(expected, latest, strict=True):
            old.lerp_(new, momentum)
        assert_close([rca.mean, rca.covariance], expected)
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

    statistics = {'mean', 'covariance', 'num_updates'} & set(rca.state_dict())
    assert len(statistics) == (3 if mode == 'correlation' else 0)


@pytest.mark.parametrize('mode', MODES)
def test_rca_reset_parameters(mode):
    rca = random_rca(4, 3, 2, mode)
    train_statistics(rca)
    rca.reset_parameters()
    for name, value in rca.state_dict().items():
        zeros = ['mean', 'covariance', 'num_updates', 'weight_h', 'lin_out']
        zeros += ['bias'] if mode == 'correlation' else []
        if any(part in name for part in zeros):
            assert (value == 0).all()
        else:
            assert value.unique().numel() > 1
            assert value.abs().max() <= math.sqrt(6 / 8)


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
            {'num_modalities': 0},
            r"'num_modalities' needs to be at least 1 \(got 0\)",
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


@pytest.mark.parametrize('value', [float('inf'), 1e30])
def test_rca_statistics_survive_overflow(value):
    rca = train_statistics(random_rca(4, 2))
    before = copy.deepcopy(rca.state_dict())
    xs = list(torch.randn(2, 5, 4))
    xs[1][2, 0] = value
    rca.train()(xs)
    assert rca.num_updates == before['num_updates'] + 1
    assert rca.mean.isfinite().all()
    if value == float('inf'):
        assert torch.equal(rca.mean, before['mean'])
        assert torch.equal(rca.covariance, before['covariance'])
    assert rca.covariance.isfinite().all()


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('training', [True, False])
def test_rca_takes_nan_for_missing(mode, training):
    xs, masks = random_inputs(9, 4, 3), random_masks(9, 3)
    xs = [x.detach() for x in xs]
    rca = train_statistics(random_rca(4, 3, 2, mode).double()).train(training)
    twin = copy.deepcopy(rca)
    expected = twin(xs, masks)

    # One tells by a NaN, one by its mask, and one by both:
    for m in [0, 2]:
        xs[m][~masks[m], m] = float('nan')
    outs = rca(xs, [None, *masks[1:]])
    assert_close(outs, expected, rtol=0, atol=0)
    assert_close(list(rca.buffers()), list(twin.buffers()), rtol=0, atol=0)


@pytest.mark.parametrize('mode', MODES)
def test_rca_of_one_modality_is_the_identity(mode):
    rca = RCA(4, 1, 2, mode)
    assert list(rca.state_dict()) == []
    x = torch.randn(5, 4)
    for training in [True, False]:
        (out,) = rca.train(training)([x])
        assert torch.equal(out, x)
    mask = torch.tensor([True, False, True, True, True])
    out = rca({'text': x}, {'text': mask})['text']
    assert torch.equal(out, x * mask.unsqueeze(1))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('num_modalities', [2, 3])
def test_rca_crosses_modalities_of_a_row_in_evaluation(mode, num_modalities):
    rca = train_statistics(random_rca(4, num_modalities, mode=mode)).eval()
    xs = as_floats(random_inputs(9, 4, num_modalities))
    before = rca(xs)[0]
    xs[1] = xs[1].detach().clone()
    xs[1][3] = torch.randn(4)
    change = (rca(xs)[0] - before).abs().amax(dim=1)
    assert change[3] > 1e-2
    change[3] = 0.0
    assert change.max() < 1e-6


def synergy_accuracy(num_modalities, rca=None, num_steps=300):
    r"""The accuracy, on other rows in evaluation, of a linear model of all
    modalities, on a label that only two of them together tell.
    """
    generator = torch.Generator().manual_seed(12)
    size = (num_modalities, 3000, 4)
    x = torch.randn(size, generator=generator)
    direction = torch.randn(num_modalities, 4, 1, generator=generator)
    label = (x @ direction)[:2, :, 0].sign().prod(dim=0)
    train, test = x[:, :2000], x[:, 2000:]

    torch.manual_seed(12)
    lin = torch.nn.Linear(4 * num_modalities, 1)
    model = torch.nn.ModuleList([lin] if rca is None else [lin, rca])

    def predict(x):
        xs = list(x) if rca is None else rca(list(x))
        return lin(torch.cat(xs, dim=-1)).squeeze(-1)

    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(num_steps):
        optimizer.zero_grad()
        F.softplus(-label[:2000] * predict(train)).mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        return float((label[2000:] * predict(test) > 0).float().mean())


@pytest.mark.parametrize('num_modalities', [2, 3])
def test_rca_learns_what_modalities_say_together(num_modalities):
    assert synergy_accuracy(num_modalities) < 0.6
    for mode in MODES:
        torch.manual_seed(12)
        rca = RCA(4, num_modalities, mode=mode)
        assert synergy_accuracy(num_modalities, rca) >= 0.95, mode
