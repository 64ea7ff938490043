r"""The whole way, with a default device that nothing should land on."""

import copy
import warnings

import pytest
import torch
from toys import RATES, SIZES

import crane_pyg.transforms as T
from crane_pyg import CRANE, Ranker, Recipe, fit
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.explain import PairScores, explain_scores, save_page
from crane_pyg.ranking import ease, evaluate, item_knn, popularity, top_k
from crane_pyg.training import refit, sample_negatives

USERS, ITEMS = 60, 40
RECIPE = Recipe(epochs=2, min_batches=2, metric='ndcg@5')


def walk(model, folder):
    torch.manual_seed(7)
    data = FakeMultimodalDataset(USERS, ITEMS, SIZES, missing_rate=0.1)[0]
    data = T.AddUserProfiles()(T.BuildDualGraph(k=4)(data))
    store = data[RATES]
    out = {'negatives': sample_negatives(store.edge_index, ITEMS, 2)}
    kwargs = {'checkpoint': folder / 'last.ckpt', 'progress': False}
    history = fit(model, data, RECIPE, **kwargs)
    fit(model, data, RECIPE, resume=True, **kwargs)
    out['losses'] = [row['loss'] for row in history.epochs]
    out['metrics'] = [row['ndcg@5'] for row in history.epochs]
    user_emb, item_emb = (x.detach() for x in model(data)[:2])
    pairs = store.test_edge_label_index
    out['user_emb'] = user_emb
    out['top'] = top_k(user_emb, item_emb, 5, exclude=store.edge_index)
    names = ['recall', 'ndcg', 'precision', 'map', 'mrr', 'coverage']
    args = (user_emb, item_emb, pairs.tolist(), store.edge_index, names, 5)
    out['evaluate'] = evaluate(*args, edge_label=[1] * pairs.size(1))
    out['recommend'] = model.recommend(data, [3, 4], 5, candidates=range(20))

    ranker = Ranker.from_model(model, data, metric='ndcg@5', candidates=None)
    out['weights'], out['l2'] = ranker.weights, ranker.l2
    ranker.save(folder / 'ranker.pt')
    ranker = Ranker.load(folder / 'ranker.pt')
    out['ranked'] = ranker.top_k(5)
    out['ranker'] = ranker.evaluate(pairs, ks=5)
    ranker.export(folder / 'lists.npy', 5)
    out['lists'] = torch.frombuffer(
        bytearray((folder / 'lists.npy').read_bytes()), dtype=torch.uint8
    ).cpu()
    for build in (popularity, item_knn, ease):
        out[build.__name__] = build(data).recommend([1, 2], 5)

    out['parts'] = explain_scores(model, data, 3, [1, 2], ranker)
    scores = PairScores(model, data, ranker)
    out['pairs'] = scores(*scores.inputs(), [[1, 2], [3, 4]]).detach()
    save_page(folder / 'page.html', model, data, [1, 2], 3, ranker)
    more = T.attach_users(data, [[1, 2]], T.BuildDualGraph(k=4))
    out['extended'] = model.extend(more)(more).user.detach()
    refit(model, data, history, progress=False)
    out['refit'] = model(data).item.detach()
    return out


@pytest.mark.parametrize('mode', ['correlation', None])
def test_walk(tmp_path, mode):
    torch.manual_seed(3)
    model = CRANE(USERS, ITEMS, SIZES, 8, mode=mode, profile='input')
    other = copy.deepcopy(model)
    for name in ('plain', 'meta'):
        (tmp_path / name).mkdir()
    expected = walk(model, tmp_path / 'plain')
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('error')
        out = walk(other, tmp_path / 'meta')
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    pages = [tmp_path / name / 'page.html' for name in ('plain', 'meta')]
    assert pages[0].read_text() == pages[1].read_text()
