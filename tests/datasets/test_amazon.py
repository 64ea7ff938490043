import gzip
import os
import re

import pytest

from crane_pyg.datasets import AmazonMultimodal, MMRecDataset, read_mmrec

NAMES = ['baby', 'sports', 'clothing', 'electronics']


@pytest.mark.parametrize('name', NAMES)
def test_amazon(make_folder, tmp_path, name):
    folder = make_folder(name=name, folder=name)
    dataset = AmazonMultimodal(tmp_path, name)
    assert isinstance(dataset, MMRecDataset)
    assert str(dataset) == f"AmazonMultimodal(name='{name}')"
    assert len(dataset) == 1
    assert dataset.name == name
    assert dataset.raw_dir == str(folder)
    assert dataset.processed_paths == [str(folder / 'processed' / f'{name}.pt')]
    assert os.listdir(folder / 'processed') == [f'{name}.pt']
    assert dataset.modalities == ['image', 'text']
    expected = read_mmrec(folder)['item'].x_image
    assert dataset[0]['item'].x_image.tolist() == expected.tolist()


def test_amazon_arguments(make_folder, tmp_path):
    make_folder(name='baby', folder='baby')

    def note(text):  # A list that grows would be another transform.
        with (tmp_path / 'calls').open('a') as file:
            file.write(f'{text}\n')

    def transform(data):
        note('transform')
        return data

    def pre_transform(data):
        note('pre_transform')
        return data

    for force_reload in [False, False, True]:
        dataset = AmazonMultimodal(
            str(tmp_path),
            'baby',
            transform,
            pre_transform,
            processed_dir=tmp_path / 'cache',
            force_reload=force_reload,
        )
        assert dataset[0]['user'].num_nodes == 3
    once, calls = ['transform'], (tmp_path / 'calls').read_text().split()
    assert calls == ['pre_transform', *once, *once, 'pre_transform', *once]


def test_amazon_names_share_a_cache_folder(make_folder, tmp_path):
    cache = tmp_path / 'cache'
    for name in ['baby', 'sports']:
        make_folder(name=name, folder=name)
        AmazonMultimodal(tmp_path, name, processed_dir=cache)
    assert sorted(os.listdir(cache)) == ['baby.pt', 'sports.pt']


def test_amazon_gzip(make_folder, tmp_path):
    folder = make_folder(name='sports', folder='sports')
    path = folder / 'sports.inter'
    (folder / 'sports.inter.gz').write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert AmazonMultimodal(tmp_path, 'sports').num_items == 4


@pytest.mark.parametrize('name', ['Sports', 'toys', '', '../baby', None])
def test_amazon_unknown_name(tmp_path, name):
    message = f"'name' needs to be one of {NAMES} (got {name!r})"
    with pytest.raises(ValueError, match=re.escape(message)):
        AmazonMultimodal(tmp_path, name)


FILES = ['baby.inter', 'image_feat.npy', 'text_feat.npy']


@pytest.mark.parametrize('missing', [FILES, *[[name] for name in FILES]])
def test_amazon_missing_files(make_folder, tmp_path, missing):
    folder = make_folder(name='baby', folder='baby')
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(FileNotFoundError) as info:
        AmazonMultimodal(tmp_path, 'baby')
    message = str(info.value)
    assert f"{missing} are missing in '{folder}'" in message
    assert 'https://github.com/enoche/MMRec' in message
    assert "'python examples/amazon_sports.py --demo'" in message
    for name in FILES:
        assert (name in message) == (name in missing)
    assert not (folder / 'processed').exists()


def test_amazon_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError) as info:
        AmazonMultimodal(tmp_path / 'none', 'baby')
    assert str(FILES) in str(info.value)
    assert str(tmp_path / 'none' / 'baby') in str(info.value)
    assert os.listdir(tmp_path) == []
