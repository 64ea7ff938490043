import copy
import inspect
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from inspect import Parameter, Signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from crane_pyg import __version__
from crane_pyg._files import replacing
from crane_pyg._optional import require

FORMAT_VERSION: Final = 1
CONFIG: Final = 'config.json'
WEIGHTS: Final = 'model.safetensors'
TUPLE: Final = '__tuple__'
REPO_ID: Final = re.compile(r'\w[\w.-]*/[\w.-]+')
NO_CONFIG: Final = (
    AttributeError,  # Of a value that is no dictionary.
    RecursionError,
    UnicodeDecodeError,
    json.JSONDecodeError,
)

Model = TypeVar('Model', bound='PretrainedMixin')


class PretrainedMixin(torch.nn.Module):
    r"""Keeps a model in a folder of two files: :obj:`model.safetensors` holds
    its parameters and buffers, :obj:`config.json` the arguments of its
    constructor, whatever these are. Neither can hold code.

    The arguments need to be plain values: numbers, strings, :obj:`None`, and
    tuples, lists and dictionaries of these. The data are not kept: a model
    needs the users and items that it was trained on, in the same order. Nor are
    attributes that were changed after the construction.
    """

    _arguments: dict[str, object]

    def __new__(cls: type[Model], *args: object, **kwargs: object) -> Model:
        r"""Notes the arguments, before the constructor can change them."""
        model = super().__new__(cls)
        # A copy is made without arguments, and is given the note afterwards.
        # Of arguments that do not fit, the constructor itself complains:
        with suppress(TypeError):
            bound = _signature(cls).bind(*args, **kwargs)
            bound.apply_defaults()
            values = {k: _copy(value) for k, value in bound.arguments.items()}
            model.__dict__['_arguments'] = values
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        r"""Saves the model, replacing an earlier one in the same folder.

        Args:
            folder (str): The folder, created if it is missing.

        Raises:
            ImportError: If :obj:`safetensors` is not installed.
            ValueError: If an argument of the constructor is no plain value.
        """
        safetensors = require('safetensors.torch')
        text = json.dumps(self._config(), indent=2) + '\n'
        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
        }
        folder = Path(folder).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        # Both files are complete before either gets its name:
        with (
            replacing(folder / CONFIG) as config,
            replacing(folder / WEIGHTS) as weights,
        ):
            config.write_text(text, encoding='utf-8')
            safetensors.save_file(tensors, weights)
            # Some versions keep it from the other users of the machine:
            weights.chmod(config.stat().st_mode)
            # If cut off now, there is no model, and none that is of two:
            (folder / CONFIG).unlink(missing_ok=True)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        folder: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> Model:
        r"""Loads a model that :meth:`save_pretrained` saved, in evaluation
        mode and in the precision it was saved in. The global random number
        generator is left alone. Another version of the package may have saved
        it, as long as format and arguments are known to this one.

        Args:
            folder (str): The folder. If it is a string, and no folder has this
                name, it is that of a repository on the Hugging Face Hub,
                *e.g.*, :obj:`"user/repo"`.
            revision (str, optional): The branch, tag or commit. This and what
                follows is for the Hub only. (default: :obj:`None`)
            token (str, optional): The access token. (default: :obj:`None`)
            cache_dir (str, optional): The folder for downloads.
                (default: :obj:`None`)
            force_download (bool, optional): If set to :obj:`True`, downloads
                once more what is there already. (default: :obj:`False`)
            local_files_only (bool, optional): If set to :obj:`True`, downloads
                nothing. (default: :obj:`False`)

        Raises:
            FileNotFoundError: If the folder or a file is missing.
            ImportError: If :obj:`safetensors` is not installed, or
                :obj:`huggingface_hub` where the Hub is asked.
            ValueError: If a file is damaged, or of another class, another
                format, or a model of another size.
        """
        path = Path(folder).expanduser()
        if path.is_dir():
            return _load(cls, path)
        if isinstance(folder, Path) or not REPO_ID.fullmatch(folder):
            raise FileNotFoundError(f"There is no folder '{folder}'")
        require('huggingface_hub', f"'{folder}' is no folder here. The Hub")
        from crane_pyg.nn._hub import HubModel

        try:
            model = HubModel.from_pretrained(
                folder,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                model_class=cls,
            ).model
        except NO_CONFIG as e:  # It is read before it can be checked here.
            raise ValueError(
                f"'{CONFIG}' of '{folder}' is no JSON object (got {e})"
            ) from e
        assert isinstance(model, cls)
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
        commit_message: str = 'Upload a model of crane_pyg',
    ) -> str:
        r"""Uploads the files of :meth:`save_pretrained` and a model card to
        the Hugging Face Hub.

        Args:
            repo_id (str): The repository, *e.g.*, :obj:`"user/repo"`, created
                if it is missing.
            private (bool, optional): If set to :obj:`True`, a new repository
                is private. (default: :obj:`None`)
            token (str, optional): The access token. (default: :obj:`None`)
            branch (str, optional): The branch. (default: :obj:`None`)
            create_pr (bool, optional): If set to :obj:`True`, opens a pull
                request. (default: :obj:`None`)
            commit_message (str, optional): The title of the commit.
                (default: :obj:`"Upload a model of crane_pyg"`)

        Returns:
            str: The address of the commit.

        Raises:
            ImportError: If :obj:`safetensors` or :obj:`huggingface_hub` is
                not installed.
            ValueError: If an argument of the constructor is no plain value.
        """
        require('huggingface_hub', 'The Hub')
        from crane_pyg.nn._hub import HubModel

        cls = type(self)
        card = {'module': cls.__module__, 'class_name': cls.__name__}
        url = HubModel(self).push_to_hub(
            repo_id,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
            commit_message=commit_message,
            model_card_kwargs={**card, 'repo_id': repo_id},
        )
        return str(url)

    def _config(self) -> dict[str, object]:
        arguments, known = {}, _signature(type(self)).parameters
        for name, value in self._arguments.items():
            if name not in known:  # Noted by 'extend'.
                raise ValueError(
                    f"'{type(self).__name__}' needs to name '{name}' among the "
                    f'arguments of its constructor to be saved '
                    f'(got {list(known)})'
                )
            try:
                arguments[name] = _encode(value)
            except TypeError as e:
                raise ValueError(
                    f"'{name}' needs to consist of plain values to be saved "
                    f'(got {value!r})'
                ) from e
        return {
            'format_version': FORMAT_VERSION,
            'package_version': __version__,
            'class': type(self).__name__,
            'arguments': arguments,
        }


def _signature(cls: type[PretrainedMixin]) -> Signature:
    signature = inspect.signature(cls.__init__)
    _, *parameters = signature.parameters.values()
    return signature.replace(parameters=parameters)


def _copy(value: object) -> object:
    try:
        return copy.deepcopy(value)
    except Exception:  # 'save_pretrained' names it, as it is no plain value.
        return value


def _encode(value: object) -> object:
    r"""Turns a plain value into one that JSON can hold, tuples included."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    if isinstance(value, tuple):
        return {TUPLE: [_encode(item) for item in value]}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping) and TUPLE not in value:
        return {_encode_key(key): _encode(item) for key, item in value.items()}
    raise TypeError(type(value).__name__)


def _encode_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(type(key).__name__)
    return key


def _decode(value: dict[str, Any]) -> object:
    if value.keys() == {TUPLE} and isinstance(value[TUPLE], list):
        return tuple(value[TUPLE])
    return value


def _load(cls: type[Model], folder: Path) -> Model:
    path = folder / CONFIG
    bound = _signature(cls).bind_partial()
    bound.arguments.update(_read_arguments(path, cls))
    try:
        # Takes no memory, as the sizes have yet to prove true:
        with torch.device('meta'):
            expected = cls(*bound.args, **bound.kwargs).state_dict()
    except Exception as e:  # Values of any kind can fail anywhere.
        raise ValueError(
            f"'{path}' needs to hold arguments of '{cls.__name__}' "
            f'(got {type(e).__name__}: {e})'
        ) from e
    tensors = _read_tensors(folder / WEIGHTS, expected)
    with torch.random.fork_rng(devices=[]):
        model = cls(*bound.args, **bound.kwargs)
    state = {
        name: tensors[name].to(value.device, copy=True)  # Not of the file.
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


def _read_arguments(
    path: Path, cls: type[PretrainedMixin]
) -> dict[str, object]:
    try:
        text = path.read_text(encoding='utf-8')
        config = json.loads(text, object_hook=_decode)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"'{path}' is no JSON file (got {e})") from e
    keys = ['format_version', 'package_version', 'class', 'arguments']
    if not isinstance(config, dict) or config.keys() != set(keys):
        raise ValueError(f"'{path}' needs to hold {keys} (got {config!r})")
    for name, value in [
        ('format_version', FORMAT_VERSION),
        ('class', cls.__name__),
    ]:
        if config[name] != value:
            raise ValueError(
                f"'{path}' needs to have '{name}' {value!r} "
                f'(got {config[name]!r})'
            )
    arguments = config['arguments']
    if not isinstance(arguments, dict):
        raise ValueError(
            f"'{path}' needs to have an object of 'arguments' "
            f'(got {arguments!r})'
        )
    _check_names(path, arguments, _signature(cls).parameters)
    return arguments


def _check_names(
    path: Path,
    arguments: dict[str, object],
    parameters: Mapping[str, Parameter],
) -> None:
    for name in arguments:
        if name not in parameters:
            raise ValueError(
                f"'arguments' in '{path}' need to be among "
                f"{list(parameters)} (got '{name}')"
            )
    for name, parameter in parameters.items():
        variadic = parameter.kind in (
            Parameter.VAR_POSITIONAL,
            Parameter.VAR_KEYWORD,
        )
        optional = variadic or parameter.default is not Parameter.empty
        if name not in arguments and not optional:
            raise ValueError(
                f"'arguments' in '{path}' need to have '{name}' "
                f'(got {list(arguments)})'
            )


def _read_tensors(path: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    safetensors = require('safetensors.torch')
    try:
        tensors: dict[str, Tensor] = safetensors.load_file(path)
    except OSError:
        raise
    except Exception as e:  # Of a class of its own.
        raise ValueError(f"'{path}' is no safetensors file (got {e})") from e
    if tensors.keys() != expected.keys():
        raise ValueError(
            f"'{path}' needs to hold the tensors of the model (got none of "
            f'{sorted(expected.keys() - tensors.keys())}, and unknown '
            f'{sorted(tensors.keys() - expected.keys())})'
        )
    for name, value in expected.items():
        if tensors[name].size() != value.size():
            raise ValueError(
                f"'{name}' in '{path}' needs to be of shape "
                f'{list(value.size())} (got {list(tensors[name].size())})'
            )
        # The precision is the user's choice, the kind of number is not:
        if _kind(tensors[name]) != _kind(value):
            raise ValueError(
                f"'{name}' in '{path}' needs to be like {value.dtype} "
                f'(got {tensors[name].dtype})'
            )
    return tensors


def _kind(x: Tensor) -> torch.dtype | str:
    return 'floating' if x.is_floating_point() else x.dtype
