import multiprocessing

import pytest
import records


def put_all(path, name):
    for seed in range(20):
        records.put(path, {'model': name, 'seed': seed, 'value': seed})


def test_processes_lose_no_lines(tmp_path):
    path = records.path_of('accuracy', 'shop', tmp_path)
    context = multiprocessing.get_context('fork')
    names = ['a', 'b', 'c', 'd']
    processes = [
        context.Process(target=put_all, args=(path, name)) for name in names
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = records.read(path)
    assert [(x['model'], x['seed']) for x in found] == [
        (name, seed) for name in names for seed in range(20)
    ]
    assert [x.name for x in path.parent.iterdir()] == ['shop.jsonl']


def test_same_run_takes_the_place(tmp_path):
    path = tmp_path / 'shop.jsonl'
    assert records.read(path) == []
    for seed, value in [(1, 'x'), (0, 'x'), (None, 'x'), (1, 'y'), (None, 'y')]:
        records.put(path, {'model': 'a', 'seed': seed, 'value': value})
    pairs = [(x['seed'], x['value']) for x in records.read(path)]
    assert pairs == [(0, 'x'), (1, 'y'), (None, 'y')]


def test_what_tells_runs_apart(tmp_path):
    def lines(question, *about):
        path = tmp_path / question / 'shop.jsonl'
        for n, keys in enumerate(about):
            records.put(path, {'model': 'a', 'seed': 0, 'value': n, **keys})
        return [x['value'] for x in records.read(path)]

    half, all_of_it = {'share': 0.5}, {'share': 1.0}
    assert lines('accuracy', half, all_of_it) == [1]
    assert lines('missing', half, all_of_it, half) == [2, 1]
    settings = [{'overrides': {'lr': lr}} for lr in (1, 2, 1)]
    assert lines('tuning', *settings) == [2, 1]
    assert lines('speed', {'table': 'x'}, {'table': 'y'}) == [0, 1]
    found = records.read(tmp_path / 'missing' / 'shop.jsonl')
    assert records.find(found, share=0.5)['value'] == 2
    assert records.find(found, share=0.25) is None


def test_another_folder_is_added(tmp_path, monkeypatch):
    ours, theirs = tmp_path / 'ours', tmp_path / 'theirs'
    for folder, seed, value in [(ours, 0, 1), (ours, 1, 1), (theirs, 1, 2)]:
        path = records.path_of('accuracy', 'shop', folder)
        records.put(path, {'model': 'a', 'seed': seed, 'value': value})
    argv = ['records.py', str(theirs), '--results', str(ours)]
    monkeypatch.setattr('sys.argv', argv)
    records.main()
    found = records.read(records.path_of('accuracy', 'shop', ours))
    assert [(x['seed'], x['value']) for x in found] == [(0, 1), (1, 2)]


def test_failure_keeps_the_file(tmp_path):
    path = tmp_path / 'shop.jsonl'
    records.put(path, {'model': 'a', 'seed': 0})
    kept = path.read_text()
    with pytest.raises(TypeError, match='serializable'):
        records.put(path, {'model': 'b', 'seed': 0, 'value': object()})
    assert path.read_text() == kept
    records.put(path, {'model': 'b', 'seed': 0})  # The lock is free again.
    assert len(records.read(path)) == 2
