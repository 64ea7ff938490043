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
    record = {'model': 'a', 'seed': 1, 'share': 0.5}
    records.put(path, record, ('model', 'share', 'seed'))
    assert len(path.read_text().splitlines()) == 4
    assert records.find(records.read(path), share=0.5) == record
    assert records.find(records.read(path), share=0.25) is None


def test_failure_keeps_the_file(tmp_path):
    path = tmp_path / 'shop.jsonl'
    records.put(path, {'model': 'a', 'seed': 0})
    kept = path.read_text()
    with pytest.raises(TypeError, match='serializable'):
        records.put(path, {'model': 'b', 'seed': 0, 'value': object()})
    assert path.read_text() == kept
    records.put(path, {'model': 'b', 'seed': 0})  # The lock is free again.
    assert len(records.read(path)) == 2
