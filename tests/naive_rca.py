r"""RCA from its equations, with loops over rows and modalities."""

import math

import torch

from crane_pyg.nn import RCA

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


def mean_of(rows, has):
    return sum(x for x, p in zip(rows, has, strict=True) if p) / sum(has)


def naive_moments(rows, present):
    r"""Deviations (zero of what is missing) and root mean squares."""
    deviations, units = [], []
    for row, has in zip(rows, present, strict=True):
        mean = mean_of(row, has)
        deviation = [
            x - mean if p else torch.zeros_like(x)
            for x, p in zip(row, has, strict=True)
        ]
        var = sum(x**2 for x in deviation) / len(row)
        deviations.append(deviation)
        units.append((var + mean**2).mean().sqrt())
    return deviations, units


def naive_correlation(rca, xs, masks=None, eps=1e-5):
    r"""The equations, row by row and modality by modality."""
    num_modalities, num_rows = len(xs), xs[0].size(0)
    present = as_mask(masks, num_rows, num_modalities)
    rows = zero_missing([list(x) for x in xs], present)

    for r in range(rca.num_steps):
        step = rca.steps[0 if rca.shared else r]
        deviations, units = naive_moments(rows, present)
        joint = [
            torch.cat([deviations[m][n] / u for m, u in enumerate(units)])
            @ step.weight
            for n in range(num_rows)
        ]
        joint_var = sum(e**2 for e in joint) / num_rows
        joint = [e / (joint_var + eps).sqrt() for e in joint]

        outs = []
        for m, unit in enumerate(units):
            scaled = [x / unit for x in deviations[m]]
            var = sum(x**2 for x in scaled) / num_rows
            cov = sum(
                torch.outer(x, e) for x, e in zip(scaled, joint, strict=True)
            )
            corr = torch.tanh(cov / num_rows / (var + eps).sqrt()[:, None])
            outs.append([])
            for x, e in zip(rows[m], joint, strict=True):
                attended = unit * (corr @ (e + step.bias))
                attended = attended / math.sqrt(num_modalities * x.numel())
                hidden = torch.relu(
                    x @ step.weight_x[m] + attended @ step.weight_c[m]
                )
                outs[m].append(x + hidden @ step.weight_h[m])
        rows = zero_missing(outs, present)
    return [torch.stack(row) for row in rows]


def naive_token(rca, xs, masks=None):
    r"""Softmax attention between the modalities of one row at a time."""
    num_modalities, num_rows = len(xs), xs[0].size(0)
    present = as_mask(masks, num_rows, num_modalities)
    rows = zero_missing([list(x) for x in xs], present)

    for r in range(rca.num_steps):
        step = rca.steps[0 if rca.shared else r]
        weight_q, weight_k, weight_v = step.weight.mT.chunk(3, dim=1)
        bias_q, bias_k, bias_v = step.bias.squeeze(1).chunk(3, dim=1)
        outs = [[] for _ in range(num_modalities)]
        for n in range(num_rows):
            others = [m for m in range(num_modalities) if present[m][n]]
            for m in range(num_modalities):
                if not present[m][n]:
                    outs[m].append(torch.zeros_like(rows[m][n]))
                    continue
                query = weight_q[m] @ rows[m][n] + bias_q[m]
                exps = [
                    torch.exp(
                        query
                        @ (weight_k[o] @ rows[o][n] + bias_k[o])
                        / math.sqrt(rca.channels)
                    )
                    for o in others
                ]
                attended = sum(
                    exp / sum(exps) * (weight_v[o] @ rows[o][n] + bias_v[o])
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
