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
SIZES = {'image': 6, 'text': 5, 'audio': 3}
FILES = ['config.json', 'model.safetensors']


def get_sizes(num_modalities=2):
    return dict(list(SIZES.items())[:num_modalities])


def get_model(num_modalities=2, **kwargs):
    torch.manual_seed(12)
    kwargs = {'profile': 'input', 'mode': 'correlation', **kwargs}
    sizes = get_sizes(num_modalities)
    model = CRANE(NUM_USERS, NUM_ITEMS, sizes, channels=4, **kwargs)
    with torch.no_grad():
        for x in [*model.parameters(), *model.buffers()]:
            if x.is_floating_point():  # No zeros, as after some training.
                x += 0.1 * torch.rand_like(x)
    return model


def assert_same(out, expected):
    assert type(out) is type(expected)
    state, other = out.state_dict(), expected.state_dict()
    assert list(state) == list(other)
    for name, x in state.items():
        assert x.dtype == other[name].dtype
        assert torch.equal(x, other[name]), name


@pytest.fixture
def folder(tmp_path):
    r"""A saved model."""
    folder = tmp_path / 'model'
    get_model().save_pretrained(folder)
    assert sorted(os.listdir(folder)) == FILES
    return folder


def edit(folder, change):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def edit_tensors(folder, change):
    path = folder / 'model.safetensors'
    tensors = safetensors.load_file(path)
    tensors = {name: x.clone() for name, x in tensors.items()}
    change(tensors)
    safetensors.save_file(tensors, path)


@pytest.mark.parametrize('num_modalities', [1, 2, 3])
@pytest.mark.parametrize('use_id', [False, True])
@pytest.mark.parametrize('profile', ['input', 'contrast', None])
@pytest.mark.parametrize('mode', ['correlation', 'token', None])
def test_pretrained_variants(num_modalities, use_id, profile, mode, tmp_path):
    sizes = get_sizes(num_modalities)
    dataset = FakeMultimodalDataset(NUM_USERS, NUM_ITEMS, sizes)
    data = T.BuildDualGraph(k=3)(dataset[0])
    kwargs = {'use_id': use_id, 'profile': profile, 'mode': mode}
    model = get_model(num_modalities, num_layers=1, num_steps=2, **kwargs)
    model.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    out = CRANE.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert not out.training
    assert_same(out, model)
    assert str(out) == str(model)
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
    model = get_model(edge_type=edge_type, dropout=0.5, profile=None)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    assert list(config) == [
        'format_version',
        'package_version',
        'class',
        'arguments',
    ]
    assert config['format_version'] == 1
    assert config['package_version'] == crane_pyg.__version__
    assert config['class'] == 'CRANE'
    arguments = config['arguments']
    assert arguments['num_users'] == NUM_USERS
    assert list(arguments['in_channels'].items()) == [('image', 6), ('text', 5)]
    assert arguments['channels'] == 4
    assert arguments['num_layers'] == 2  # A default.
    assert arguments['dropout'] == 0.5
    assert arguments['profile'] is None
    assert arguments['edge_type'] == {'__tuple__': list(edge_type)}

    out = CRANE.from_pretrained(tmp_path)
    assert out.edge_type == edge_type
    assert isinstance(out.edge_type, tuple)
    assert out.dropout == 0.5
    assert out.profile is None


def test_pretrained_keeps_the_order_of_modalities(tmp_path):
    model = CRANE(4, 3, {'text': 2, 'image': 5, 'audio': 1})
    model.save_pretrained(tmp_path)
    out = CRANE.from_pretrained(tmp_path)
    assert list(out.in_channels) == ['text', 'image', 'audio']


@pytest.mark.parametrize('dtype', [torch.double, torch.half, torch.bfloat16])
def test_pretrained_precision(dtype, tmp_path):
    model = get_model().to(dtype)
    model.save_pretrained(tmp_path)
    out = CRANE.from_pretrained(tmp_path)
    assert out.user_id.dtype == dtype
    assert_same(out, model)


def test_pretrained_files_do_not_depend_on_the_run(folder, tmp_path):
    # Another process, other random numbers, and positional arguments:
    parts = {'profile': 'input', 'mode': 'correlation'}
    model = CRANE(NUM_USERS, NUM_ITEMS, get_sizes(), 4, **parts)
    model.load_state_dict(get_model().state_dict())
    other = tmp_path / 'a' / 'b'
    model.save_pretrained(str(other))
    for name in FILES:
        assert (other / name).read_bytes() == (folder / name).read_bytes()


def test_pretrained_does_not_hold_on_to_the_file(folder):
    model = CRANE.from_pretrained(folder)
    path = folder / 'model.safetensors'
    with path.open('r+b') as f:
        f.write(bytes(path.stat().st_size))
    assert_same(model, get_model())


def test_pretrained_replaces_an_earlier_one(folder):
    model = get_model(num_layers=7, mode=None)
    model.save_pretrained(folder)
    out = CRANE.from_pretrained(folder)
    assert out.num_layers == 7
    assert_same(out, model)
    assert sorted(os.listdir(folder)) == FILES


@pytest.mark.parametrize('umask', [0o022, 0o077])
def test_pretrained_is_as_private_as_other_files(umask, folder):
    before = os.umask(umask)
    try:
        get_model().save_pretrained(folder)
    finally:
        os.umask(before)
    for name in FILES:
        assert (folder / name).stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize('name', ['save_file', 'write_text'])
def test_pretrained_is_replaced_as_a_whole(folder, name, monkeypatch):
    def fail(*args, **kwargs):
        path = next(x for x in args if isinstance(x, Path))
        path.write_bytes(b'half')
        raise KeyboardInterrupt

    obj = safetensors if name == 'save_file' else Path
    monkeypatch.setattr(obj, name, fail)
    with pytest.raises(KeyboardInterrupt):
        get_model(num_layers=7, mode=None).save_pretrained(folder)
    monkeypatch.undo()
    assert sorted(os.listdir(folder)) == FILES
    out = CRANE.from_pretrained(folder)
    assert out.num_layers == 2
    assert_same(out, get_model())


def test_pretrained_is_never_of_two_models(folder, monkeypatch):
    replace, calls = os.replace, []

    def fail(*args):
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(args)
        replace(*args)

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(KeyboardInterrupt):
        get_model(neighbor_weights={}).save_pretrained(folder)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r'config\.json'):
        CRANE.from_pretrained(folder)
    get_model(neighbor_weights={}).save_pretrained(folder)
    assert CRANE.from_pretrained(folder).neighbor_weights == {}


def test_keeps_the_factor_of_the_neighborhood(tmp_path):
    model = get_model()
    model.neighbor_scale.fill_(0.5)
    model.save_pretrained(tmp_path)
    assert CRANE.from_pretrained(tmp_path).neighbor_scale == 0.5


def test_pretrained_in_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    get_model().save_pretrained('~/model')
    assert_same(CRANE.from_pretrained('~/model'), get_model())
    assert os.listdir(tmp_path) == ['model']


def test_pretrained_of_a_copy(folder):
    # None of these calls the constructor:
    buffer = io.BytesIO()
    torch.save(get_model(), buffer)
    buffer.seek(0)
    for model in [
        copy.deepcopy(get_model()),
        pickle.loads(pickle.dumps(get_model())),
        torch.load(buffer, weights_only=False),
        CRANE.from_pretrained(folder),
    ]:
        model.save_pretrained(folder.parent / 'copy')
        for name in FILES:
            expected = (folder / name).read_bytes()
            assert (folder.parent / 'copy' / name).read_bytes() == expected


class Toy(PretrainedMixin):
    def __init__(self, num_users, option=((1, 2), [3, (4.5,)]), **kwargs):
        super().__init__()
        self.args = (num_users, option, kwargs)
        self.weight = torch.nn.Parameter(torch.ones(num_users))


class SubToy(Toy):
    def __init__(self, *args, scale: float = 1.0, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = scale


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


def test_pretrained_lacks_later_keyword_arguments(tmp_path):
    Toy(3, None, x=2).save_pretrained(tmp_path)
    edit(tmp_path, lambda config: config['arguments'].pop('kwargs'))
    assert Toy.from_pretrained(tmp_path).args == (3, None, {})


def test_pretrained_of_a_transposed_tensor(tmp_path):
    model = Toy(3)
    x = torch.arange(6.0).view(2, 3)
    model.register_buffer('x', x.t())
    model.save_pretrained(tmp_path)
    tensors = safetensors.load_file(tmp_path / 'model.safetensors')
    assert tensors['x'].tolist() == [[0, 3], [1, 4], [2, 5]]


def test_pretrained_keeps_numbers_of_numpy(tmp_path):
    Toy(np.int64(3), np.float64(0.1)).save_pretrained(tmp_path)
    out = Toy.from_pretrained(tmp_path)
    assert [type(value) for value in out.args] == [int, float, dict]
    assert out.args == (3, 0.1, {})


def test_pretrained_keeps_arguments_as_they_were(tmp_path):
    option = {'a': [1]}
    model = Toy(3, option)
    option['a'].append(2)
    model.save_pretrained(tmp_path)
    assert Toy.from_pretrained(tmp_path).args[1] == {'a': [1]}


def test_pretrained_leaves_complaints_to_the_constructor():
    with pytest.raises(TypeError, match=r"missing .* 'num_items'"):
        CRANE(3)
    with pytest.raises(TypeError, match=r"unexpected .* 'x'"):
        CRANE(3, 4, {'image': 2}, x=1)


@pytest.mark.parametrize(
    'option',
    [
        torch.ones(2),
        float('nan'),
        {1: 2},
        {'__tuple__': [1]},
        [{3}],
        b'x',
        int,
        pytest.param((x for x in 'abc'), id='generator'),  # Not even a copy.
    ],
    ids=str,
)
def test_pretrained_of_other_values(option, tmp_path):
    with pytest.raises(ValueError, match=r"'option' needs .* plain .* \(got "):
        Toy(3, option).save_pretrained(tmp_path / 'toy')
    assert os.listdir(tmp_path) == []


def set_argument(name, value):
    return lambda config: config['arguments'].update({name: value})


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (
            lambda config: config.update(format_version=2),
            r"'format_version' 1 \(got 2\)",
        ),
        (
            lambda config: config.update({'class': 'FREEDOM'}),
            r"'class' 'CRANE' \(got 'FREEDOM'\)",
        ),
        (lambda config: config.update(seed=3), r"got {.*'seed': 3"),
        (lambda config: config.pop('class'), r"'class', 'arguments'\] \(got {"),
        (
            lambda config: config.update(arguments=[7]),
            r"'arguments' \(got \[7\]\)",
        ),
        (
            set_argument('layers', 2),
            r"'arguments' .* among .* \(got 'layers'\)",
        ),
        (
            lambda config: config['arguments'].pop('num_items'),
            r"'arguments' .* need to have 'num_items' \(got \['num_users', ",
        ),
        (set_argument('dropout', 7), r"'dropout' needs .* \(got 7\)"),
        (set_argument('dropout', 'much'), r"'CRANE' \(got TypeError: "),
        (set_argument('num_layers', 2.0), r"'num_layers' .* \(got 2.0\)"),
        (set_argument('in_channels', None), r"'in_channels' .* \(got None\)"),
        (set_argument('num_users', 10**40), r"'CRANE' \(got "),
    ],
    ids=range(12),
)
def test_pretrained_other_config(change, match, folder):
    edit(folder, change)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=match) as info:
        CRANE.from_pretrained(folder)
    assert f"'{folder / 'config.json'}'" in str(info.value)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    'content', [b'', b'{"class": ', b'\xff\xfe', b'[' * 10**5, b'[1]', b'null']
)
def test_pretrained_config_is_junk(content, folder):
    (folder / 'config.json').write_bytes(content)
    with pytest.raises(
        ValueError, match=r'config\.json. (is no JSON|needs to)'
    ):
        CRANE.from_pretrained(folder)


def test_pretrained_may_lack_later_arguments(folder):
    # As if saved before they were there:
    edit(folder, lambda config: config['arguments'].pop('num_layers'))
    out = CRANE.from_pretrained(folder)
    assert out.num_layers == 2
    assert_same(out, get_model())


def test_pretrained_of_another_package_version(folder):
    expected = CRANE.from_pretrained(folder).state_dict()
    edit(folder, lambda config: config.update(package_version='0.0.1'))
    out = CRANE.from_pretrained(folder).state_dict()
    assert out.keys() == expected.keys()
    assert all(torch.equal(out[key], expected[key]) for key in out)


def test_pretrained_believes_no_size(folder):
    # A table of 10^12 users would take 16 TB:
    edit(folder, set_argument('num_users', 10**12))
    with pytest.raises(
        ValueError,
        match=r"'user_id' in '.*model\.safetensors' needs to be of shape "
        r'\[1000000000000, 4\] \(got \[60, 4\]\)',
    ):
        CRANE.from_pretrained(folder)


def transpose(tensors):
    tensors['item_id'] = tensors['item_id'].t().contiguous()


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (transpose, r"'item_id' .* shape \[40, 4\] \(got \[4, 40\]\)"),
        (
            lambda tensors: tensors.pop('gate'),
            r"got none of \['gate'\], and unknown \[\]",
        ),
        (
            lambda tensors: tensors.update(bias=torch.ones(2)),
            r"got none of \[\], and unknown \['bias'\]",
        ),
        (
            lambda tensors: tensors.update(gate=torch.tensor([1, 2])),
            r"'gate' .* like torch\.float32 \(got torch\.int64\)",
        ),
        (
            lambda tensors: tensors.update(
                {'rca.num_updates': torch.tensor(True)}
            ),
            r"'rca\.num_updates' .* like torch\.int64 \(got torch\.bool\)",
        ),
    ],
    ids=range(5),
)
def test_pretrained_other_tensors(change, match, folder):
    edit_tensors(folder, change)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=match) as info:
        CRANE.from_pretrained(folder)
    assert f"'{folder / 'model.safetensors'}'" in str(info.value)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize('share', [0, 0.01, 0.5, 0.99])
def test_pretrained_truncated(share, folder):
    path = folder / 'model.safetensors'
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r'\.safetensors. is no safetensors'):
        CRANE.from_pretrained(folder)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('dump', [torch.save, pickle.dump])
def test_pretrained_runs_no_code(folder, dump):
    for name in [*FILES, 'pytorch_model.bin', 'model.pt']:
        with (folder / name).open('wb') as f:
            dump({'user_id': Trap(folder / 'payload')}, f)
    with pytest.raises(ValueError, match=r'config\.json. is no JSON file'):
        CRANE.from_pretrained(folder)
    content = (folder / 'model.safetensors').read_bytes()
    get_model().save_pretrained(folder)
    (folder / 'model.safetensors').write_bytes(content)
    with pytest.raises(ValueError, match=r'is no safetensors file'):
        CRANE.from_pretrained(folder)
    assert not (folder / 'payload').exists()


@pytest.mark.parametrize('name', FILES)
def test_pretrained_without_a_file(name, folder):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace('.', r'\.')):
        CRANE.from_pretrained(folder)


def test_pretrained_without_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder '.*missing'"):
        CRANE.from_pretrained(tmp_path / 'missing')
    for name in ['runs/best/model', './model', '/model', 'model', 'runs/']:
        with pytest.raises(FileNotFoundError, match=f"no folder '{name}'"):
            CRANE.from_pretrained(name)
    (tmp_path / 'file').touch()
    with pytest.raises(FileExistsError, match='file'):
        get_model().save_pretrained(tmp_path / 'file')


def forbid(monkeypatch, package):
    r"""As if the package were not installed."""
    for name in list(sys.modules):
        if name == 'crane_pyg.nn._hub' or name.partition('.')[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


def test_pretrained_needs_safetensors(folder, monkeypatch):
    forbid(monkeypatch, 'safetensors')
    match = r"needs 'safetensors', .*not installed: pip install safetensors$"
    with pytest.raises(ImportError, match=match):
        get_model().save_pretrained(folder.parent / 'other')
    with pytest.raises(ImportError, match=match):
        CRANE.from_pretrained(folder)
    assert os.listdir(folder.parent) == ['model']


def test_pretrained_needs_huggingface_hub_for_the_hub_only(
    folder, monkeypatch, tmp_path
):
    forbid(monkeypatch, 'huggingface_hub')
    model = CRANE.from_pretrained(folder)
    model.save_pretrained(tmp_path / 'other')
    for name in FILES:
        expected = (folder / name).read_bytes()
        assert (tmp_path / 'other' / name).read_bytes() == expected
    match = r"needs 'huggingface_hub', .*: pip install huggingface_hub$"
    with pytest.raises(ImportError, match=match):
        model.push_to_hub('user/repo')
    with pytest.raises(
        ImportError, match=rf"'user/repo' is no folder.*{match}"
    ):
        CRANE.from_pretrained('user/repo')


def test_pretrained_imports_nothing_up_front():
    code = (
        'import sys, crane_pyg.nn, crane_pyg.nn.pretrained\n'
        'names = {"safetensors", "huggingface_hub", "pyarrow", "matplotlib"}\n'
        'assert not names & set(sys.modules), names & set(sys.modules)\n'
    )
    out = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr


def put_into_cache(folder, cache, repo_id='user/repo', commit='0' * 40):
    r"""Makes a folder of the cache of the Hub, as a download does."""
    repo = cache / f'models--{repo_id.replace("/", "--")}'
    (repo / 'refs').mkdir(parents=True)
    (repo / 'refs' / 'main').write_text(commit)
    (repo / 'snapshots' / commit).mkdir(parents=True)
    for path in folder.iterdir():
        target = repo / 'snapshots' / commit / path.name
        target.write_bytes(path.read_bytes())


def test_pretrained_from_the_hub(folder, tmp_path, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
    put_into_cache(folder, tmp_path / 'cache')
    wanted = []

    def spy(*args, **kwargs):
        wanted.append(kwargs['allow_patterns'])
        return hub.snapshot_download(*args, **kwargs)

    monkeypatch.setattr('crane_pyg.nn._hub.snapshot_download', spy)
    kwargs = {'cache_dir': tmp_path / 'cache', 'local_files_only': True}
    out = CRANE.from_pretrained('user/repo', **kwargs)
    assert wanted == [FILES]  # Whatever else a repository may hold.
    assert_same(out, get_model())
    assert not out.training
    assert vars(out).keys() == vars(CRANE.from_pretrained(folder)).keys()

    with pytest.raises(FileNotFoundError):
        CRANE.from_pretrained('user/other', **kwargs)
    with pytest.raises(ValueError, match=r"'class' 'Toy' \(got 'CRANE'\)"):
        Toy.from_pretrained('user/repo', **kwargs)
    with pytest.raises(TypeError, match='dropout'):
        CRANE.from_pretrained('user/repo', dropout=0.5)


@pytest.mark.parametrize('content', [b'{', b'[1]', b'\xff', b'[' * 10**5])
def test_pretrained_from_the_hub_is_junk(content, folder, tmp_path):
    pytest.importorskip('huggingface_hub')
    (folder / 'config.json').write_bytes(content)
    put_into_cache(folder, tmp_path / 'cache')
    kwargs = {'cache_dir': tmp_path / 'cache', 'local_files_only': True}
    match = r"'config\.json' of 'user/repo' is no JSON object"
    with pytest.raises(ValueError, match=match):
        CRANE.from_pretrained('user/repo', **kwargs)


def test_pretrained_to_the_hub(folder, tmp_path, monkeypatch):
    hub = pytest.importorskip('huggingface_hub')
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
    kwargs = {'private': True, 'token': 'secret', 'branch': 'dev'}
    url = get_model().push_to_hub('user/repo', **kwargs)
    assert url == 'https://huggingface.co/user/repo/commit/1'
    create, upload, files = calls
    assert (create['repo_id'], create['private']) == ('user/repo', True)
    assert create['token'] == 'secret'
    assert (upload['repo_id'], upload['revision']) == ('user/repo', 'dev')

    assert list(files) == ['README.md', *FILES]
    for name in FILES:
        assert files[name] == (folder / name).read_bytes()
    card = files['README.md'].decode()
    assert 'library_name: crane_pyg' in card
    assert "CRANE.from_pretrained('user/repo')" in card
    assert '{{' not in card


def test_extended_model_of_other_arguments(tmp_path):
    class Other(CRANE):
        def __init__(self, *args, boost=1.0, **kwargs):
            super().__init__(*args, **kwargs)

    data = T.BuildDualGraph()(FakeMultimodalDataset(30, 20)[0])
    sizes = {'image': 64, 'text': 32}
    model = Other(30, 20, sizes).extend(data)
    with pytest.raises(ValueError, match=r"'Other' .* 'num_users' .*'boost'"):
        model.save_pretrained(tmp_path / 'model')
    assert not (tmp_path / 'model').exists()
