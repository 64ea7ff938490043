import pytest
import torch
from naive_rca import MODES

from crane_pyg.nn import RCA
from crane_pyg.nn.modalities import stack_modalities


def test_stack_modalities():
    nan, inf = float('nan'), float('inf')
    xs = [
        torch.tensor([[1.0, nan], [2.0, 3.0], [nan, nan], [4.0, 5.0]]),
        torch.tensor([[6.0, 7.0], [8.0, 9.0], [inf, -inf], [1.0, 2.0]]),
    ]
    before = [x.clone() for x in xs]
    x, mask = stack_modalities(xs)
    assert mask.tolist() == [[False, True, False, True], [True] * 4]
    assert x[0].tolist() == [[0.0, 0.0], [2.0, 3.0], [0.0, 0.0], [4.0, 5.0]]
    assert torch.equal(x[1], xs[1])

    given = torch.tensor([True, False, True, True])
    x, mask = stack_modalities(xs, [given, None])
    assert mask.tolist() == [[False, False, False, True], [True] * 4]
    assert x[0].tolist() == [[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [4.0, 5.0]]
    for out, expected in zip(xs, before, strict=True):
        assert torch.equal(out.nan_to_num(-1.0), expected.nan_to_num(-1.0))


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
        (['image', 'text'], "'str'"),
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
        ([[True] * 5, None], r"'masks' .* \(got 'list'\)"),
        ({'text': None}, r"'masks' .* of 'xs', \[\] \(got 'text'\)"),
        (
            [torch.ones(5, 1).bool()] * 2,
            r"'masks' .* \(got torch.bool of shape \[5, 1\]\)",
        ),
    ],
)
def test_rca_invalid_masks(masks, match):
    with pytest.raises(ValueError, match=match):
        RCA(4, 2)([torch.randn(5, 4)] * 2, masks)


def test_rca_masks_of_other_names():
    xs = {'image': torch.ones(5, 4), 'text': torch.ones(5, 4)}
    match = r"of 'xs', \['image', 'text'\] \(got 'audio'\)"
    with pytest.raises(ValueError, match=match):
        RCA(4, 2)(xs, {'audio': torch.ones(5).bool()})
