import copy

import numpy as np
import pytest
import torch
from toys import HEADER, ROWS

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset, MMRecDataset

RATES = ('user', 'rates', 'item')
SMALL = T.BuildDualGraph(k=4, num_co_rated=0, undirected=False)


def fake():
    # Copies of a row, and repeated pairs, take ways of their own:
    data = FakeMultimodalDataset(60, 40, missing_rate=0.2)[0]
    data['item'].x_text[5:30] = 1.0
    pairs = data[RATES].edge_index
    data[RATES].edge_index = torch.cat([pairs, pairs[:, ::5]], dim=1)
    data[RATES].time = list(range(data[RATES].edge_index.size(1)))
    return data


def attach_items(data):
    names = ['x_image', 'x_text']
    new = {name[2:]: data['item'][name][30:33] + 1 for name in names}
    return T.attach_items(T.BuildDualGraph()(data), new)


def attach_users(data):
    return T.attach_users(SMALL(data), [[1, 2, 2], [5]], SMALL)


@pytest.mark.parametrize(
    'step',
    [
        lambda _: fake(),
        T.BuildDualGraph(k=4),
        SMALL,
        T.AddUserProfiles(),
        T.DegreeDropEdges(0.5),
        T.ReduceFeatures(8),
        attach_items,
        attach_users,
    ],
)
def test_nothing_lands_on_the_default_device(step):
    def run():
        torch.manual_seed(12)
        return step(copy.deepcopy(data)).to_dict()

    data = fake()
    expected = run()
    with torch.device('meta'):
        out = run()
    torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)


def test_files_are_not_read_to_the_default_device(tmp_path):
    lines = ['\t'.join(map(str, row)) for row in ROWS]
    (tmp_path / 'toy.inter').write_text('\n'.join([HEADER, *lines]))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.save(tmp_path / 'image_feat.npy', x)
    with torch.device('meta'):
        first = MMRecDataset(tmp_path, pre_transform=T.BuildDualGraph(k=2))
        cached = MMRecDataset(tmp_path, pre_transform=T.BuildDualGraph(k=2))
    for dataset in (first, cached):
        assert dataset[0]['item'].x_image.tolist() == x.tolist()
        assert dataset[0]['item'].neighbor_image.device.type == 'cpu'
        assert dataset[0][RATES].edge_weight.device.type == 'cpu'
