import copy
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import Trap

import crane_pyg
import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.nn import CRANE
from crane_pyg.nn.pretrained import PretrainedMixin

safetensors = pytest.importorskip('safetensors.torch')

NUM_USERS, NUM_ITEMS = 60, 40
SIZES = {'text': 5, 'image': 6, 'audio': 3}  # In no order of the alphabet.
FILES = ['config.json', 'model.safetensors']


def get_data(**kwargs):
    dataset = FakeMultimodalDataset(NUM_USERS, NUM_ITEMS, SIZES, **kwargs)
    return T.BuildDualGraph(k=3)(dataset[0])


def get_model(sizes=SIZES, **kwargs):
    torch.manual_seed(12)
    kwargs = {'profile': 'input', 'mode': 'correlation', **kwargs}
    model = CRANE(NUM_USERS, NUM_ITEMS, sizes, channels=4, **kwargs)
    with torch.no_grad():
        for x in [*model.parameters(), *model.buffers()]:
            if x.is_floating_point():  # No zeros, as after some training.
                x += 0.1 * torch.rand_like(x)
    return model


class Toy(PretrainedMixin):
    def __init__(self, num_users, option=((1, 2), [3, (4.5,)]), **kwargs):
        super().__init__()
        if num_users < 1:
            raise ValueError(f"'num_users' needs to be >= 1 (got {num_users})")
        self.args = (num_users, option, kwargs)
        self.weight = torch.nn.Parameter(torch.rand(num_users, 2))
        self.register_buffer('count', torch.tensor(3))


class SubToy(Toy):
    def __init__(self, *args, scale: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale


def assert_same(out, expected):
    assert type(out) is type(expected)
    state, other = out.state_dict(), expected.state_dict()
    assert list(state) == list(other)
    for name, x in state.items():
        assert x.dtype == other[name].dtype
        assert torch.equal(x, other[name]), name


@pytest.fixture
def toy():
    return Toy(5)


@pytest.fixture
def folder(tmp_path, toy):
    r"""A saved model."""
    folder = tmp_path / 'model'
    toy.save_pretrained(folder)
    assert sorted(os.listdir(folder)) == FILES
    return folder


def edit(folder, change):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder, change):
    path = folder / 'model.safetensors'
    tensors = safetensors.load(path.read_bytes())
    change(tensors)
    safetensors.save_file(tensors, path)


def read(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def assert_refused(cls, folder, name, match):
    r"""The error names the file, and the random numbers are left alone."""
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=match) as info:
        cls.from_pretrained(folder)
    assert str(info.value).startswith(f"'{folder / name}' is damaged or holds")
    assert f" no '{cls.__name__}' (got " in str(info.value)
    assert torch.equal(torch.get_rng_state(), before)


# Keeping and loading #########################################################


@pytest.mark.parametrize('num_modalities', [1, 3])
@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        {'mode': 'token', 'profile': 'contrast', 'num_steps': 2},
        {'mode': None, 'profile': None, 'use_id': False, 'num_layers': 1},
    ],
    ids=['default', 'contrast', 'plain'],
)
def test_pretrained_variants(num_modalities, kwargs, tmp_path):
    data = get_data()
    model = get_model(dict([*SIZES.items()][:num_modalities]), **kwargs)
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    out = CRANE.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not out.training
    assert_same(out, model)
    assert str(out) == str(model)
    assert list(out.in_channels) == list(SIZES)[:num_modalities]
    for x, expected in zip(out(data), model.eval()(data), strict=True):
        assert (x is None) == (expected is None)
        assert x is None or torch.equal(x, expected)

    # As good as a new one: it learns, and can be kept again.
    assert all(param.requires_grad for param in out.parameters())
    with torch.no_grad():
        for param in out.parameters():
            param += 1
    out.save_pretrained(tmp_path)
    assert_same(CRANE.from_pretrained(str(tmp_path)), out)


def test_pretrained_config(tmp_path):
    edge_type = ('customer', 'buys', 'product')
    get_model(edge_type=edge_type).save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    arguments = config.pop('arguments')
    assert config == {
        'format_version': 1,
        'package_version': crane_pyg.__version__,
        'class': 'CRANE',
    }
    assert arguments['num_users'] == NUM_USERS
    assert list(arguments['in_channels'].items()) == list(SIZES.items())
    assert arguments['channels'] == 4
    assert arguments['num_layers'] == 2  # A default.
    assert arguments['edge_type'] == {'__tuple__': list(edge_type)}
    assert CRANE.from_pretrained(tmp_path).edge_type == edge_type


def test_pretrained_of_more_users_and_items(tmp_path):
    data = T.BuildDualGraph(k=3)(FakeMultimodalDataset(70, 50, SIZES)[0])
    model = get_model().extend(data)
    model.save_pretrained(tmp_path)
    out = CRANE.from_pretrained(tmp_path)
    assert_same(out, model)
    user, item = out(data)[:2]
    assert (user.size(0), item.size(0)) == (70, 50)
    assert torch.equal(user, model(data).user)
    assert torch.equal(item, model(data).item)


def test_pretrained_of_more_arguments_than_the_constructor_has(tmp_path):
    class Other(CRANE):
        def __init__(self, *args, boost=1.0, **kwargs):
            super().__init__(*args, **kwargs)

    model = Other(NUM_USERS, NUM_ITEMS, SIZES).extend(get_data())
    match = r"'Other' .* 'num_users'\] .* \(got .*'boost'"
    with pytest.raises(ValueError, match=match):
        model.save_pretrained(tmp_path / 'model')
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('dtype', [torch.double, torch.half, torch.bfloat16])
def test_pretrained_precision(dtype, folder, toy):
    toy.to(dtype).save_pretrained(folder)
    out = Toy.from_pretrained(folder)
    assert (out.weight.dtype, out.count.dtype) == (dtype, torch.long)
    assert_same(out, toy)


def test_pretrained_files_do_not_depend_on_the_run(folder, toy):
    model = Toy(num_users=5)  # Other random numbers, and other calls.
    model.load_state_dict(toy.state_dict())
    other = folder.parent / 'a' / 'b'
    model.save_pretrained(str(other))
    assert read(other) == read(folder)


def test_pretrained_of_a_copy(folder, toy):
    # None of these calls the constructor:
    buffer = io.BytesIO()
    torch.save(toy, buffer)
    buffer.seek(0)
    for model in [
        copy.deepcopy(toy),
        pickle.loads(pickle.dumps(toy)),
        torch.load(buffer, weights_only=False),
        Toy.from_pretrained(folder),
    ]:
        model.save_pretrained(folder.parent / 'copy')
        assert read(folder.parent / 'copy') == read(folder)


def test_pretrained_of_a_transposed_tensor(folder, toy):
    toy.weight = torch.nn.Parameter(torch.arange(10.0).view(2, 5).t())
    toy.save_pretrained(folder)
    weight = Toy.from_pretrained(folder).weight
    assert weight.tolist() == [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]


def test_pretrained_does_not_hold_on_to_the_file(folder, toy):
    model = Toy.from_pretrained(folder)
    path = folder / 'model.safetensors'
    with path.open('r+b') as f:
        f.write(bytes(path.stat().st_size))
    assert_same(model, toy)


def test_pretrained_in_home(tmp_path, monkeypatch, toy):
    monkeypatch.setenv('HOME', str(tmp_path))
    toy.save_pretrained('~/model')
    assert_same(Toy.from_pretrained('~/model'), toy)
    assert os.listdir(tmp_path) == ['model']


# The pair of files ###########################################################


def test_pretrained_replaces_an_earlier_one(folder):
    model = Toy(7, None)
    model.save_pretrained(folder)
    out = Toy.from_pretrained(folder)
    assert out.args == (7, None, {})
    assert_same(out, model)
    assert sorted(os.listdir(folder)) == FILES


@pytest.mark.parametrize('umask', [0o022, 0o077])
def test_pretrained_is_as_private_as_other_files(umask, folder, toy):
    before = os.umask(umask)
    try:
        toy.save_pretrained(folder)
    finally:
        os.umask(before)
    for name in FILES:
        assert (folder / name).stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize('name', ['save_file', 'write_text'])
def test_pretrained_is_replaced_as_a_whole(folder, toy, name, monkeypatch):
    def fail(*args, **kwargs):
        path = next(x for x in args if isinstance(x, Path))
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    obj = safetensors if name == 'save_file' else Path
    with monkeypatch.context() as m:
        m.setattr(obj, name, fail)
        with pytest.raises(KeyboardInterrupt):
            Toy(7).save_pretrained(folder)
    assert sorted(os.listdir(folder)) == FILES
    assert_same(Toy.from_pretrained(folder), toy)


def test_pretrained_is_never_of_two_models(folder, monkeypatch):
    replace, calls = os.replace, []

    def fail(*args):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(args)
        replace(*args)

    with monkeypatch.context() as m:
        m.setattr(os, 'replace', fail)
        with pytest.raises(KeyboardInterrupt):
            Toy(5, None).save_pretrained(folder)  # Of the same shapes.
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        Toy.from_pretrained(folder)
    Toy(5, None).save_pretrained(folder)
    assert Toy.from_pretrained(folder).args == (5, None, {})


# Arguments ###################################################################


@pytest.mark.parametrize(
    'option',
    [
        None,
        True,
        'text',
        -1.5,
        (),
        [],
        {},
        [[1], (2,)],
        {'a': (1, {'b': ['c']}), '': None},
        (('user', 'rates', 'item'), ('item', 'similar_to', 'item')),
        {'tuple': [1]},
    ],
    ids=str,
)
def test_pretrained_keeps_plain_values(option, tmp_path):
    Toy(3, option).save_pretrained(tmp_path)
    out = Toy.from_pretrained(tmp_path)
    assert out.args == (3, option, {})
    assert repr(out.args[1]) == repr(option)  # Of the same types.


def test_pretrained_keeps_all_arguments(tmp_path):
    Toy(3).save_pretrained(tmp_path)
    assert Toy.from_pretrained(tmp_path).args == (3, ((1, 2), [3, (4.5,)]), {})
    Toy(option=1, num_users=3, x=2).save_pretrained(tmp_path)
    assert Toy.from_pretrained(tmp_path).args == (3, 1, {'x': 2})
    SubToy(3, (1,), scale=2.0, y=None).save_pretrained(tmp_path)
    out = SubToy.from_pretrained(tmp_path)
    assert (*out.args, out.scale) == (3, (1,), {'y': None}, 2.0)


def test_pretrained_keeps_numbers_of_numpy(tmp_path):
    option = [np.float64(0.1), np.float32(0.5), np.bool_(True)]
    Toy(np.int64(3), option).save_pretrained(tmp_path)
    num_users, option, _ = Toy.from_pretrained(tmp_path).args
    assert repr((num_users, option)) == '(3, [0.1, 0.5, True])'


def test_pretrained_keeps_arguments_as_they_were(tmp_path):
    option = {'a': [1]}
    model = Toy(3, option)
    option['a'].append(2)
    model.save_pretrained(tmp_path)
    assert Toy.from_pretrained(tmp_path).args[1] == {'a': [1]}


def test_pretrained_leaves_complaints_to_the_constructor():
    with pytest.raises(TypeError, match=r"missing .* 'num_users'"):
        Toy(option=3)
    with pytest.raises(TypeError, match=r"unexpected .* 'x'"):
        CRANE(3, 4, {'image': 2}, x=1)


OTHER_VALUES = {
    'tensor': torch.ones(2),
    'attached': torch.ones(2, requires_grad=True) + 1,  # Not even a copy.
    'generator': (x for x in 'abc'),  # Nor here.
    'nan': float('nan'),
    'inf': [-float('inf')],
    'key': {1: 2},
    'tag': {'__tuple__': [1]},
    'set': [{3}],
    'bytes': b'x',
    'class': int,
}


@pytest.mark.parametrize('name', OTHER_VALUES)
def test_pretrained_of_other_values(name, tmp_path):
    model = Toy(3, OTHER_VALUES[name])
    with pytest.raises(ValueError, match=r"'option' needs .* plain .* \(got "):
        model.save_pretrained(tmp_path / 'toy')
    assert os.listdir(tmp_path) == []


# Files that do not fit #######################################################


def update(**kwargs):
    return lambda config: config.update(kwargs)


def set_argument(name, value):
    return lambda config: config['arguments'].update({name: value})


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (update(format_version=2), r"_version': 1, .*got .*_version': 2"),
        (lambda config: config.pop('format_version'), r"_version': 1, .*got {"),
        (update(**{'class': 'CRANE'}), r"'class': 'Toy'} \(got .*'CRANE'}"),
        (lambda config: config.pop('class'), r"'class': 'Toy'} \(got {"),
        (update(seed=3), r"\(got {.*'seed': 3}"),
        (update(arguments=[7]), r'list'),
        (update(arguments=None), r'NoneType'),
        (lambda config: config.pop('arguments'), r"missing .* 'num_users'"),
        (set_argument('layers', 2), r"\['layers'\] among .* \(got \['num_us"),
        (
            lambda config: config['arguments'].pop('num_users'),
            r"missing .* 'num_users'",
        ),
        (set_argument('num_users', 0), r"'num_users' .* \(got 0\)"),
        (set_argument('num_users', 'many'), r'got TypeError: '),
        (set_argument('num_users', None), r'got TypeError: '),
        (set_argument('num_users', 10**40), r'\(got '),
        (set_argument('kwargs', 3), r'got TypeError: '),
        (set_argument('option', {'__tuple__': 3}), r'got TypeError: '),
    ],
    ids=range(16),
)
def test_pretrained_other_config(change, match, folder):
    edit(folder, change)
    assert_refused(Toy, folder, 'config.json', match)


@pytest.mark.parametrize(
    'content', [b'', b'{"class": ', b'\xff\xfe', b'[' * 10**5, b'[1]', b'null']
)
def test_pretrained_config_is_junk(content, folder):
    (folder / 'config.json').write_bytes(content)
    assert_refused(Toy, folder, 'config.json', r'got \w+Error: ')


@pytest.mark.parametrize(
    'change',
    [
        lambda config: config['arguments'].pop('option'),
        lambda config: config['arguments'].pop('kwargs'),
        update(package_version='0.0.1'),
    ],
    ids=['option', 'kwargs', 'version'],
)
def test_pretrained_of_another_package_version(change, folder, toy):
    edit(folder, change)
    out = Toy.from_pretrained(folder)
    assert out.args == toy.args
    assert_same(out, toy)


def test_pretrained_believes_no_size(tmp_path):
    # A table of 10^12 users would take 16 TB:
    get_model().save_pretrained(tmp_path)
    edit(tmp_path, set_argument('num_users', 10**12))
    match = r'(?s)user_id: .*\[60, 4\].*\[1000000000000, 4\]'
    assert_refused(CRANE, tmp_path, 'model.safetensors', match)


def set_tensor(**kwargs):
    return lambda tensors: tensors.update(kwargs)


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (set_tensor(weight=torch.ones(2, 5)), r'weight: .*\[2, 5\].*\[5, 2\]'),
        (lambda tensors: tensors.pop('count'), r'Missing .*"count"'),
        (lambda tensors: tensors.clear(), r'Missing .*"weight", "count"'),
        (set_tensor(bias=torch.ones(2)), r'Unexpected .*"bias"'),
        (
            set_tensor(weight=torch.ones(5, 2, dtype=torch.long)),
            r"'weight' .* like torch\.float32 \(got torch\.int64\)",
        ),
        (
            set_tensor(count=torch.tensor(True)),
            r"'count' .* like torch\.int64 \(got torch\.bool\)",
        ),
        (
            set_tensor(count=torch.tensor(3.0)),
            r"'count' .* like torch\.int64 \(got torch\.float32\)",
        ),
    ],
    ids=range(7),
)
def test_pretrained_other_tensors(change, match, folder):
    edit_tensors(folder, change)
    assert_refused(Toy, folder, 'model.safetensors', f'(?s){match}')


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_pretrained_truncated(share, folder):
    path = folder / 'model.safetensors'
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(Toy, folder, path.name, 'SafetensorError')


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('dump', [torch.save, pickle.dump])
def test_pretrained_runs_no_code(folder, dump):
    config = (folder / 'config.json').read_bytes()
    for name in [*FILES, 'pytorch_model.bin', 'model.pt']:
        with (folder / name).open('wb') as f:
            dump({'weight': Trap(folder / 'payload')}, f)
    assert_refused(Toy, folder, 'config.json', 'Error')
    (folder / 'config.json').write_bytes(config)
    assert_refused(Toy, folder, 'model.safetensors', 'SafetensorError')
    assert not (folder / 'payload').exists()


@pytest.mark.parametrize('name', FILES)
def test_pretrained_without_a_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace('.', r'\.')):
        Toy.from_pretrained(folder)


def test_pretrained_without_a_folder(tmp_path, toy):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*missing'"):
        Toy.from_pretrained(tmp_path / 'missing')
    for name in ['runs/best/model', './model', '/model', 'model', 'runs/']:
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}'"):
            Toy.from_pretrained(name)
    (tmp_path / 'file').touch()
    with pytest.raises(FileExistsError, match='file'):
        toy.save_pretrained(tmp_path / 'file')


# Packages that one can do without ############################################


def forbid(monkeypatch, package):
    r"""As if the package were not installed."""
    for name in list(sys.modules):
        if name == 'crane_pyg.nn._hub' or name.partition('.')[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_pretrained_needs_safetensors(folder, toy, monkeypatch):
    forbid(monkeypatch, 'safetensors')
    match = r"needs 'safetensors', .*not installed: pip install safetensors$"
    with pytest.raises(ImportError, match=match):
        toy.save_pretrained(folder.parent / 'other')
    with pytest.raises(ImportError, match=match):
        Toy.from_pretrained(folder)
    assert os.listdir(folder.parent) == ['model']


def test_pretrained_needs_huggingface_hub_for_the_hub_only(
    folder, toy, monkeypatch
):
    forbid(monkeypatch, 'huggingface_hub')
    Toy.from_pretrained(folder).save_pretrained(folder.parent / 'other')
    assert read(folder.parent / 'other') == read(folder)
    match = r"needs 'huggingface_hub', .*: pip install huggingface_hub$"
    with pytest.raises(ImportError, match=match):
        toy.push_to_hub('user/repo')
    match = rf"'user/repo' is no folder.*{match}"
    with pytest.raises(ImportError, match=match):
        Toy.from_pretrained('user/repo')


def test_nn_does_without_optional_packages():
    # Whatever PyG brings along is not of our doing:
    code = (
        'import sys, torch_geometric.nn\n'
        'names = ["safetensors", "huggingface_hub", "pyarrow", "matplotlib"]\n'
        'before = set(sys.modules)\n'
        'import crane_pyg.nn\n'
        'added = set(sys.modules) - before\n'
        'assert "crane_pyg.nn" in added\n'
        'print(*added.intersection(names))\n'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert (out.returncode, out.stdout) == (0, '\n'), out


# The Hub #####################################################################


@pytest.fixture
def hub():
    return pytest.importorskip('huggingface_hub')


@pytest.fixture
def download(hub, folder, tmp_path):
    r"""Makes a folder of the cache of the Hub, as a download does."""
    commit = '0' * 40
    repo = tmp_path / 'cache' / 'models--user--repo'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(commit)
    (repo / 'snapshots' / commit).mkdir(parents=True)
    for name, content in read(folder).items():
        (repo / 'snapshots' / commit / name).write_bytes(content)
    return repo / 'snapshots' / commit


def from_hub(cls, download, repo_id='user/repo', **kwargs):
    cache = download.parents[2]
    return cls.from_pretrained(
        repo_id, cache_dir=cache, local_files_only=True, **kwargs
    )


def test_pretrained_from_the_hub(download, toy, hub, monkeypatch):
    snapshot_download, wanted = hub.snapshot_download, []

    def spy(*args, **kwargs):
        wanted.append(kwargs['allow_patterns'])
        return snapshot_download(*args, **kwargs)

    monkeypatch.setattr(hub, 'snapshot_download', spy)
    out = from_hub(Toy, download)
    assert wanted == [FILES]  # Whatever else a repository may hold.
    assert_same(out, toy)
    assert not out.training
    assert vars(out).keys() == vars(toy).keys()


def test_pretrained_refused_from_the_hub(download, folder):
    with pytest.raises(FileNotFoundError):
        from_hub(Toy, download, 'user/other')
    with pytest.raises(ValueError, match=r"'class': 'CRANE'} \(got .*'Toy'}"):
        from_hub(CRANE, download)
    for content in [b'{', b'[1]', b'\xff', b'[' * 10**5]:
        (download / 'config.json').write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json' is damaged"):
            from_hub(Toy, download)
    (download / 'config.json').unlink()
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        from_hub(Toy, download)


def test_pretrained_takes_no_arguments_of_the_constructor(download, folder):
    with pytest.raises(TypeError, match='option'):
        from_hub(Toy, download, option=3)
    with pytest.raises(ValueError, match=rf"'{folder}' .* \(got \['option'\]"):
        Toy.from_pretrained(folder, option=3)


@pytest.fixture
def calls(hub, monkeypatch):
    r"""What the Hub is asked to do, with the files that it is given."""
    calls = []

    def create_repo(self, **kwargs):
        calls.append({'token': self.token, **kwargs})
        return hub.RepoUrl('https://huggingface.co/user/repo')

    def upload_folder(self, **kwargs):
        calls.append(kwargs)
        paths = sorted(Path(kwargs['folder_path']).iterdir())
        calls.append({path.name: path.read_bytes() for path in paths})
        return 'https://huggingface.co/user/repo/commit/1'

    monkeypatch.setattr(hub.HfApi, 'create_repo', create_repo)
    monkeypatch.setattr(hub.HfApi, 'upload_folder', upload_folder)
    return calls


def test_pretrained_to_the_hub(folder, calls, tmp_path):
    model = get_model()
    model.save_pretrained(tmp_path / 'other')
    kwargs = {'private': True, 'token': 'secret', 'branch': 'dev'}
    url = model.push_to_hub('user/repo', commit_message='Better', **kwargs)
    assert url == 'https://huggingface.co/user/repo/commit/1'
    create, upload, files = calls
    assert (create['repo_id'], create['private']) == ('user/repo', True)
    assert create['token'] == 'secret'
    assert (upload['repo_id'], upload['revision']) == ('user/repo', 'dev')
    assert upload['commit_message'] == 'Better'

    card = files.pop('README.md').decode()
    assert files == read(tmp_path / 'other')
    assert 'library_name: crane_pyg' in card
    assert 'import CRANE\n' in card
    assert "CRANE.from_pretrained('user/repo')" in card
    assert '{{' not in card


def test_pretrained_of_other_values_makes_no_repository(calls):
    with pytest.raises(ValueError, match="'option' needs"):
        Toy(3, {4}).push_to_hub('user/repo')
    with pytest.raises(TypeError, match='privat'):
        Toy(3).push_to_hub('user/repo', privat=True)
    assert calls == []
