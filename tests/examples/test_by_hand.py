r"""The example with a training loop of its own."""

import re

import torch

from crane_pyg import CRANE, BuildDualGraph, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset

EPOCH = re.compile(r'Epoch (\d+): loss (\S+), validation recall@20 (\S+)')


def test_by_hand_is_what_fit_does(run):
    result = run('by_hand.py', '--epochs', 8, '--patience', 2)
    assert result.error is None
    assert result.stderr == ''
    rows = [
        m.groups() for m in map(EPOCH.match, result.stdout.split('\n')) if m
    ]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dataset = FakeMultimodalDataset(
            600, 400, pre_transform=BuildDualGraph()
        )
        model = CRANE(600, 400, {'image': 64, 'text': 32})
        recipe = Recipe(8, patience=2, batch_size=256, min_batches=1)
        history = fit(model, dataset[0], recipe, progress=False)
    assert [int(row[0]) for row in rows] == history.curve('epoch')
    assert 2 < len(rows) < 8  # Both were stopped.
    recalls = [float(row[2]) for row in rows]
    torch.testing.assert_close(recalls, history.metric, rtol=0, atol=1e-4)
    best = f'Test recall@20 at epoch {history.best_epoch}: 0.'
    assert best in result.stdout
    for key, value in result.names['model'].state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
