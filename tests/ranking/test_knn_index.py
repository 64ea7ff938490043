r"""The item embeddings in an index of PyG, as the README recommends."""

import pytest
import torch
from torch_geometric.nn.pool import MIPSKNNIndex

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.ranking import top_k

pytest.importorskip('faiss')


@pytest.fixture(scope='module')
def ranking():
    r"""Embeddings of users and items, and the pairs seen."""
    dataset = FakeMultimodalDataset(60, 40, {'image': 6, 'text': 5})
    data = T.BuildDualGraph(k=3)(dataset[0])
    torch.manual_seed(12)
    model = CRANE(60, 40, {'image': 6, 'text': 5}, channels=4).eval()
    with torch.no_grad():
        out = model(data)
    return out.user, out.item, data['user', 'rates', 'item'].edge_index


@pytest.mark.parametrize('k', [1, 5, 40])
def test_knn_index(ranking, k):
    user, item, seen = ranking
    index = MIPSKNNIndex(item)
    out = index.search(user, k, exclude_links=seen)
    expected = top_k(user, item, k, exclude=seen).index
    assert torch.equal(out.index, expected)
    assert bool((expected < 0).any()) == (k == 40)  # Padded in the same way.
    score = (user @ item.t()).gather(1, expected.clamp(min=0))
    score = score.masked_fill(expected < 0, float('-inf'))
    torch.testing.assert_close(out.score, score)


def test_knn_index_of_some_users(ranking):
    user, item, seen = ranking
    users = torch.tensor([7, 3, 31])
    # Links name users by their row in the query:
    links = [seen[1][seen[0] == u] for u in users]
    row = torch.arange(3).repeat_interleave(torch.tensor(list(map(len, links))))
    links = torch.stack([row, torch.cat(links)])
    out = MIPSKNNIndex(item).search(user[users], 5, exclude_links=links)
    assert torch.equal(out.index, top_k(user, item, 5, users, seen).index)
    assert not torch.equal(out.index, top_k(user, item, 5, users).index)
