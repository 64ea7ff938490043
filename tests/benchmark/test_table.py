import sys

import pytest
import records
import table
from scipy import stats

ORIGIN = {
    'device': 'cpu',
    'revision': 'abc1234',
    'date': '2026-01-01',
    'versions': {'torch': '1', 'torch_geometric': '2', 'numpy': '3'},
}


def record(model, seed, dataset='tiktok', **recalls):
    r"""A line as `accuracy.py` writes it, with NDCG half of the recall."""
    test = {
        kind: {'recall@20': value, 'ndcg@20': value / 2}
        for kind, value in recalls.items()
    }
    about = {'dataset': dataset, 'model': model, 'seed': seed, 'test': test}
    trained = {'best_epoch': 3 + (seed or 0), 'seconds': 1.0 + (seed or 0)}
    return {**about, **(trained if seed is not None else {}), **ORIGIN}


@pytest.fixture
def folder(tmp_path):
    lines = [
        record('most-popular', None, alone=0.1),
        record('most-popular', None, 'shop', alone=0.3),
        record('ease', None, alone=0.2),
        record('all-relations', None, alone=0.9),
        record('crane', 0, alone=0.5, ranker=0.6),
        record('crane', 1, alone=0.52, ranker=0.64),
        record('crane', 0, 'shop', alone=0.6, ranker=0.7),
        record('crane-wide', 0, alone=0.8, ranker=0.9),
        record('peer', 0, alone=0.4, ranker=0.61),
        record('peer', 1, alone=0.41, ranker=0.62),
        record('before', 0, alone=0.3),
        record('peer', 0, 'shop', alone=0.8, ranker=0.9),
    ]
    for line in lines:
        path = records.path_of('accuracy', line['dataset'], tmp_path)
        records.put(path, line)
    return tmp_path


def cells(text):
    r"""The rows of all tables by the first cell, those that repeat apart."""
    out = {}
    for line in text.splitlines():
        if line.startswith('| '):
            first, *rest = (x.strip() for x in line.strip('|').split(' | '))
            out.setdefault(first, []).append(rest)
    return out


def test_accuracy(folder):
    datasets = table.by_dataset(folder / 'accuracy')
    text = table.accuracy(datasets)
    rows = cells(text)
    assert rows['Recall@20 / NDCG@20'] == [['TikTok', 'shop']]
    std = stats.tstd([0.5, 0.52])
    assert rows['crane'][0] == [
        f'.5100 ± {std:.4f} / .2550 ± {std / 2:.4f}'.replace('0.', '.'),
        '.6000 / .3000',
    ]
    assert rows['peer + ranker'] == [
        ['.6150 ± .0071 / .3075 ± .0035', '.9000 / .4500']
    ]
    assert rows['before'][0] == ['.3000 / .1500', '-']
    assert 'before + ranker' not in rows  # There is none of it.
    assert 'most-popular + ranker' not in rows
    # Number of seeds, best epochs, mean seconds:
    assert rows['peer'][1] == ['2; 3 to 4; 2', '1; 3; 1']
    assert len(rows['most-popular']) == 1
    assert 'revision abc1234; date 2026-01-01; device cpu' in text
    # By the gain on the most popular items, worst first:
    names = [name for name in rows if 'ranker' not in name]
    places = [names.index(x) for x in ('most-popular', 'ease', 'crane')]
    assert places == sorted(places)


@pytest.mark.parametrize('kind', ['alone', 'ranker'])
def test_margins_are_to_the_best_peer(folder, kind):
    rows = cells(table.accuracy(table.by_dataset(folder / 'accuracy')))
    ours, theirs = {
        'alone': ([0.5, 0.52], [0.4, 0.41]),
        'ranker': ([0.6, 0.64], [0.61, 0.62]),
    }[kind]
    p = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
    gain = sum(ours) / sum(theirs) - 1
    label = {'alone': 'TikTok', 'ranker': 'TikTok + ranker'}[kind]
    assert rows[label][-1:] == [[f'{gain:+.1%} (peer, p = {p:.1g})'] * 2]
    other = {'alone': 'shop', 'ranker': 'shop + ranker'}[kind]
    gain = {'alone': 0.6 / 0.8, 'ranker': 0.7 / 0.9}[kind] - 1
    assert rows[other][-1:] == [[f'{gain:+.1%} (peer)'] * 2]


def test_summary(folder):
    datasets = table.by_dataset(folder / 'accuracy')
    rows = cells(table.summary({**datasets, 'fake': datasets['shop']}))
    assert rows['peer'] == [['.4050 → .6150', '.8000 → .9000']]
    assert rows['**crane**'] == [['.5100 → .6200', '.6000 → .7000']]
    assert rows['ease'] == [['.2000', '-']]


def test_seconds_are_those_of_a_cpu():
    runs = [
        {'seconds': 1.0, 'device': 'cpu'},
        {'seconds': 3.0, 'device': 'cpu'},
        {'seconds': 9.0, 'device': 'NVIDIA H200'},
    ]
    assert table.effort(runs) == '3; 2'
    assert table.effort(runs[2:]) == '1'


def test_writes_pages(folder, monkeypatch, tmp_path, capsys):
    names = ['results', 'ablation', 'cold-start', 'missing']
    for path, keys in [('PAGE', names), ('README', ['summary'])]:
        page = tmp_path / f'{path}.md'
        old = '<!-- {0}:begin -->\nBEFORE\n<!-- {0}:end -->'
        page.write_text('a'.join(old.format(key) for key in keys))
        monkeypatch.setattr(table, path, page)
    argv = ['table.py', '--write', '--results', str(folder)]
    monkeypatch.setattr(sys, 'argv', argv)
    table.main()
    text, short = table.PAGE.read_text(), table.README.read_text()
    assert 'BEFORE' not in text + short
    datasets = table.by_dataset(folder / 'accuracy')
    begin, end = '<!-- results:begin -->', '<!-- results:end -->'
    assert f'{begin}\n{table.accuracy(datasets)}\n{end}a<!--' in text
    assert table.summary(datasets) in short
    assert table.summary(datasets) in capsys.readouterr().out
