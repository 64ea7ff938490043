import math

import pytest
import torch

from crane_pyg.nn.encoder import ModalityEncoder

SIZES = {'image': 6, 'text': 3}


def get_features():
    torch.manual_seed(5)
    return {name: torch.randn(7, size) for name, size in SIZES.items()}


def test_encoder_projects_rows_of_unit_length():
    xs, encoder = get_features(), ModalityEncoder(SIZES, 4)
    outs = encoder(xs)
    for (name, x), out in zip(xs.items(), outs, strict=True):
        linear = encoder.lins[f'x_{name}']
        for row, value in zip(x, out, strict=True):
            expected = linear.weight @ row / math.sqrt(sum(row**2))
            torch.testing.assert_close(value, expected + linear.bias)


@pytest.mark.parametrize('mode', ['correlation', 'token', None])
def test_encoder_leaves_out_what_is_missing(mode):
    xs, encoder = get_features(), ModalityEncoder(SIZES, 4, mode)
    xs['text'][2], xs['image'][4, 1] = 0.0, math.nan
    image, text = encoder(xs)
    assert not text[2].any()
    assert not image[4].any()
    assert image[2].any()
    assert text[4].any()
    # By the order of its own modalities, not that of the features:
    flipped = encoder.eval()(dict(reversed(xs.items())))
    for x, y in zip(encoder(xs), flipped, strict=True):
        assert torch.equal(x, y)


def test_encoder_of_one_modality_has_no_rca():
    encoder = ModalityEncoder({'text': 3}, 4, mode='correlation')
    assert encoder.rca is None
    assert str(encoder) == "ModalityEncoder(in_channels={'text': 3}, rca=None)"
    before = encoder.lins['x_text'].weight.clone()
    encoder.reset_parameters()
    assert not torch.equal(encoder.lins['x_text'].weight, before)
