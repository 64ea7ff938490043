import json
import sys

import cold_table


def record(seed, recall, chosen):
    metrics = {'recall@20': recall, 'ndcg@20': recall / 2}
    return {
        'dataset': 'shop',
        'seed': seed,
        'cold': {
            'crane': {'chosen': chosen, 'test': metrics},
            'random': {'chosen': None, 'test': metrics},
        },
        'warm': {'before': metrics},
        'arguments': {'epochs': 8},
        'revision': 'abc',
        'versions': {'torch': '2.0'},
    }


def test_table_shows_means_and_spreads():
    text = cold_table.tables([record(0, 0.1, 5), record(1, 0.3, [0.5, 1.0])])
    assert '**shop**, seeds 0, 1' in text
    # The deviation of two values from their mean, over one degree of freedom:
    cells = '0.2000 ± 0.1414 | 0.1000 ± 0.0707'
    assert f'| cold | crane | {cells} | 5; [0.5, 1.0] |' in text
    assert f'| cold | random | {cells} | - |' in text
    assert f'| warm | crane, before | {cells} | - |' in text
    assert 'revision abc; at most 8 epochs; torch 2.0' in text
    assert '| 0.1000 | 0.0500 |' in cold_table.tables([record(0, 0.1, 5)])


def test_table_is_written_between_the_comments(tmp_path, monkeypatch):
    page = tmp_path / 'page.md'
    begin, end = cold_table.BEGIN, cold_table.END
    page.write_text(f'before\n{begin}\nold\n{end}\nafter')
    (tmp_path / 'shop-0.json').write_text(json.dumps(record(0, 0.1, 5)))
    monkeypatch.setattr(cold_table, 'PAGE', page)
    args = ['cold_table.py', '--results', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', args)
    cold_table.main()
    assert 'old' in page.read_text()
    monkeypatch.setattr(sys, 'argv', [*args, '--write'])
    cold_table.main()
    text = page.read_text()
    assert 'old\n' not in text
    assert text.startswith(f'before\n{begin}\n**shop**')
    assert text.endswith(f'{end}\nafter')
