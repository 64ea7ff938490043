r"""One number that is missing, at every door that features enter by."""

import copy

import pytest
import torch

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset

DATA = FakeMultimodalDataset(30, 40, {'image': 8, 'text': 6})[0]
DOORS = {
    'BuildDualGraph': (T.BuildDualGraph(k=3), 'x_text'),
    'AddUserProfiles': (T.AddUserProfiles(), 'x_text'),
    'ReduceFeatures': (T.ReduceFeatures(4), 'x_text'),
    'knn_item_graph': (lambda data: knn(data['item'].x_text), 'x'),
}


def knn(x):
    # From a frame of this file, to which the warning points:
    return T.knn_item_graph(x, 3)


@pytest.mark.parametrize(('door', 'name'), DOORS.values(), ids=DOORS)
def test_counted_and_dropped(door, name):
    part, whole = copy.deepcopy(DATA), copy.deepcopy(DATA)
    part['item'].x_text[[3, 20], [1, 5]] = float('nan')
    for data in (part, whole):
        data['item'].x_text[7] = float('nan')  # Which is missing, as it says.
        data['item'].x_text[9] = 0.0
    whole['item'].x_text[[3, 20]] = float('nan')
    match = rf"^2 of 40 rows of '{name}' hold a NaN next to numbers"
    torch.manual_seed(12)
    with pytest.warns(UserWarning, match=match) as record:
        out = door(part)
    assert len(record) == 1
    assert record[0].filename == __file__
    torch.manual_seed(12)
    expected = door(whole)
    if name == 'x_text':  # Some leave the features as they are.
        out['item'].x_text[[3, 20]] = float('nan')
        out, expected = out.to_dict(), expected.to_dict()
    exact = {'rtol': 0, 'atol': 0, 'equal_nan': True}
    torch.testing.assert_close(out, expected, **exact)
