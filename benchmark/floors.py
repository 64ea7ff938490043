r"""The parts of a training step of CRANE, each above what its bytes or FLOPs
take at least.
"""

import copy
from collections.abc import Callable

import torch
from measure import Row, medians, row
from torch import Tensor
from torch_geometric.data import HeteroData

from crane_pyg.nn import CRANE
from crane_pyg.nn.propagate import propagate

WIDTH, COPIED = 2048, 2**26  # Of the product and the copy that are ceilings.


def probes(device: torch.device | str = 'cpu') -> dict[str, Callable]:
    """What measures the ceilings, in turns with what stands below them, as
    those of a shared machine come and go.
    """
    x, y = torch.randn(2, WIDTH, WIDTH, device=device)
    big = torch.randn(COPIED, device=device)
    other = torch.empty_like(big)
    return {'flops': lambda: x @ y, 'bytes': lambda: other.copy_(big)}


def ceilings(times: dict[str, float]) -> tuple[float, float]:
    """FLOPs a second of a matrix product, bytes a second of a copy."""
    return 2 * WIDTH**3 / times['flops'], 2 * 4 * COPIED / times['bytes']


def backward(
    run: Callable[[], Tensor], *inputs: Tensor
) -> Callable[[], object]:
    """Forward and backward, by a gradient of ones; in a step, the inputs have
    no gradient to add it to.
    """

    def both() -> None:
        for x in inputs:
            x.grad = None
        out = run()
        out.backward(torch.ones_like(out))

    return both


def parts(
    model: CRANE,
    data: HeteroData,
    pairs: tuple[Tensor, Tensor, Tensor],
    repeats: int,
) -> list[Row]:
    """The parts of a step, forward and backward, each above its floor."""
    num_users, num_items = model.size
    d, num_modalities = model.channels, len(model.in_channels)
    width, wide = d * (1 + num_modalities), d * num_modalities
    graphs = model.graphs(data)
    adj, _, similar = graphs
    streams = [torch.randn(num_items, d, requires_grad=True) for _ in range(2)]
    user = torch.randn(num_users, width, requires_grad=True)
    item = torch.randn(num_items, width, requires_grad=True)
    out = model(data)
    views = out.user_semantic, out.item_semantic
    leaves = [x.detach().requires_grad_() for x in (*out[:2], *views)]
    out = type(out)(*leaves[:2], None, *leaves[2:])
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for weight in model.parameters():
        weight.grad = torch.randn_like(weight)

    encoder = copy.deepcopy(model.encoder)
    encoder.rca = None

    def project() -> Tensor:
        xs = {m: data['item'][f'x_{m}'] for m in model.in_channels}
        return torch.cat(encoder(xs), dim=-1)

    def smooth() -> Tensor:
        near = model.conv((item, None), *similar)
        size = (num_items, num_users)
        x, y = propagate(model.conv, user, item, *graphs[:2], model.num_layers)
        x = x + model.conv((near, None), *graphs[1], size=size)
        return torch.cat([x.view(-1), (y + near).view(-1)])

    runs = {
        'projection': backward(project),
        'RCA': backward(
            lambda: torch.cat(model.encoder.rca(streams), dim=-1), *streams
        ),
        'propagation': backward(smooth, user, item),
        'loss': backward(lambda: model.loss(out, *pairs), *leaves),
        'optimizer': optimizer.step,
    }
    times = medians({**runs, **probes()}, repeats)
    flops, speed = ceilings(times)
    nodes, num_edges = num_users + num_items, adj[0].size(1)
    # Reads of each edge's row and weight, and one write of each output row:
    spmm = 5 * num_edges * (4 * width + 12) + 3 * 4 * width * nodes
    spmm += similar[0].size(1) * (4 * width + 12)
    num_weights = sum(weight.numel() for weight in model.parameters())
    wide_product = num_items * sum(model.in_channels.values()) * d
    product = num_items * wide * d
    contrast = 2 * 1024**2 * width
    floors = {
        'projection': 2 * 2 * wide_product / flops,
        'RCA': 2 * (2 * num_items * wide**2 + 6 * product) / flops,
        'propagation': 2 * spmm / speed,
        'loss': 2 * 3 * contrast / flops + 4 * width * nodes / speed,
        'optimizer': 7 * 4 * num_weights / speed,
    }
    lines = [
        row(
            f'{name} / its floor',
            times[name] / floor,
            'x',
            3,
            f'{times[name] * 1e3:.0f} ms against {floor * 1e3:.1f} ms',
        )
        for name, floor in floors.items()
    ]
    text = f'{flops / 1e9:.0f} GFLOP/s, {speed / 1e9:.1f} GB/s'
    lines[0]['detail'] += f' (ceilings: {text})'
    return lines
