import json
import re

import numpy as np
import pytest
import table
from scipy import stats


def save(folder, model, seed, recalls, dataset='fake'):
    r"""A result as `accuracy.py` writes it, with NDCG half of the recall."""
    recalls = np.array(recalls)
    record = {
        'dataset': dataset,
        'model': model,
        'seed': seed,
        'test': {
            metric: recalls.mean() / (1 + metric.startswith('ndcg'))
            for metric in table.METRICS
        },
        'epoch': 3 + seed,
        'seconds': 1.0,
        'revision': 'abc1234',
        'date': '2026-01-01',
        'versions': {'torch': '1', 'torch_geometric': '2', 'numpy': '3'},
    }
    path = folder / f'{dataset}-{model}-{seed}'
    path.with_suffix('.json').write_text(json.dumps(record))
    np.savez(path.with_suffix('.npz'), recall=recalls, ndcg=recalls / 2)


@pytest.fixture
def text(tmp_path):
    rng = np.random.default_rng(0)
    peer = rng.random(50)
    for seed in (0, 1):
        save(tmp_path, 'worse', seed, peer / 2)
        save(tmp_path, 'peer', seed, peer)
        save(tmp_path, 'peer-neighborhood', seed, 1.1 * peer)
        save(tmp_path, 'crane-otherwise', seed, 1.2 * peer)
        save(tmp_path, 'crane', seed, 1.25 * peer + 0.01 * seed)
    return table.tables([table.load(p) for p in tmp_path.glob('*.json')])


def test_table_rows(text):
    rows = [line for line in text.splitlines() if line.startswith('| ')]
    assert [row.split()[1] for row in rows[2:]] == [
        'worse',
        'peer',
        'peer-neighborhood',
        'crane-otherwise',
        'crane',
    ]
    assert '| 0, 1 |' in rows[-1]
    assert '| 3, 4 |' in rows[-1]
    assert '± 0.0071' in rows[-1]  # 0.01 / sqrt(2).


def test_table_compares_with_the_best_peers(text):
    rng = np.random.default_rng(0)
    mean = rng.random(50).mean()
    for peer, factor, kind in [
        ('peer', 1, 'without a part of it'),
        ('peer-neighborhood', 1.1, 'with its neighborhood'),
    ]:
        gain = (1.25 * mean + 0.005) / (factor * mean) - 1
        for metric in ('recall@20', 'ndcg@20'):
            found = re.search(
                rf'{metric} of \*crane\* is (\S+) against \*{peer}\*, the '
                rf'best peer {kind} \(p = (\S+) over 50 users, '
                rf'p = (\S+) over seeds\)\.',
                text,
            )
            assert found[1] == f'{gain:+.1%}'
            assert 0 < float(found[2]) < 1e-9
            assert 1e-3 < float(found[3]) < 0.1
    assert '*worse*,' not in text
    assert '*crane-otherwise*,' not in text


def test_table_without_metrics_of_each_user(tmp_path):
    save(tmp_path, 'peer', 0, [0.5, 0.5])
    save(tmp_path, 'worse', 0, [0.5, 0.4])
    save(tmp_path, 'crane', 0, [0.5, 1.0])
    (tmp_path / 'fake-peer-0.npz').unlink()
    text = table.tables([table.load(p) for p in tmp_path.glob('*.json')])
    assert 'is +50.0% against *peer*, the best' in text
    assert '(not tested)' in text
    assert ' users' not in text


@pytest.mark.parametrize(('dataset', 'test'), [('fake', 'rel'), ('own', 'ind')])
def test_table_tests_seeds(tmp_path, dataset, test):
    rng = np.random.default_rng(0)
    draws = rng.random((3, 4))  # Data of their own, for fake ones.
    for seed, recalls in enumerate(draws):
        save(tmp_path, 'crane', seed, 1.1 * recalls, dataset)
        save(tmp_path, 'peer', seed, recalls + 0.01 * seed, dataset)
    text = table.tables([table.load(p) for p in tmp_path.glob('*.json')])
    x = draws.mean(axis=1)
    pair = 1.1 * x, x + [0, 0.01, 0.02]
    options = {} if test == 'rel' else {'equal_var': False}
    p = getattr(stats, f'ttest_{test}')(*pair, **options).pvalue
    assert f', p = {p:.1g} over seeds).' in text


def test_tables_of_ones_own_data(tmp_path):
    save(tmp_path, 'peer', 0, [0.5, 0.6], 'my-shop')
    save(tmp_path, 'peer', 0, [0.5, 0.7], 'tiktok')
    records = [table.load(path) for path in tmp_path.glob('*.json')]
    text, short = table.tables(records), table.summary(records)
    assert text.index('**TikTok') < text.index('**my-shop**')
    assert 'crane' not in text + short  # There is nothing to compare.
    assert 'my-shop, recall@20' in short.splitlines()[0]
    assert len(short.splitlines()) == 3


def test_summary_of_all_data_sets(tmp_path):
    for n, name in enumerate(['amazon-sports', 'tiktok'], start=1):
        save(tmp_path, 'crane', 0, [0.9 / n, 0.7 / n], name)
        save(tmp_path, 'peer', 0, [0.5 / n, 0.6 / n], name)
        save(tmp_path, 'peer-all-pairs', 0, [0.5, 0.5], name)
    save(tmp_path, 'peer', 0, [1.0, 1.0])
    save(tmp_path, 'elsewhere', 0, [1.0, 1.0], 'tiktok')
    records = [table.load(path) for path in tmp_path.glob('*.json')]
    head, _, *rows = table.summary(records).splitlines()
    assert head.split(' | ')[1] == 'Amazon Sports, recall@20'
    assert rows[:3] == [
        '| peer | 0.5500 | 0.2750 | 0.2750 | 0.1375 |',
        '| crane | 0.8000 | 0.4000 | 0.4000 | 0.2000 |',
        '| elsewhere | - | - | 1.0000 | 0.5000 |',
    ]
    assert rows[3] == ''
    assert rows[4].startswith('Amazon Sports: recall@20 of *crane* is +45.5%')
    assert rows[6].startswith('TikTok: ')
    assert len(rows) == 7


def test_training_time_is_that_of_a_cpu():
    runs = [
        {'seconds': 1.0},  # Older files do not say.
        {'seconds': 2.0, 'device': 'cpu'},
        {'seconds': 9.0, 'device': 'NVIDIA H200'},
    ]
    assert table.training_time(runs) == '2'  # 1.5, rounded.
    assert table.training_time(runs[2:]) == '-'
    assert table.training_time([{'test': {}}]) == '-'
