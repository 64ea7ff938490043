import copy
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
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
        # Of those that do not fit, the constructor itself complains, and of
        # those that cannot even be copied, 'save_pretrained':
        with suppress(Exception):
            bound = signature(cls.__init__).bind(model, *args, **kwargs)
            bound.apply_defaults()
            model._arguments = dict([*bound.arguments.items()][1:])
            model._arguments = copy.deepcopy(model._arguments)
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
        text = json.dumps(_config(self), indent=2) + '\n'
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
        **kwargs: Any,  # noqa: ANN401
    ) -> Model:
        r"""Loads a model that :meth:`save_pretrained` saved, in evaluation
        mode and in the precision it was saved in. The global random number
        generator is left alone. Another version of the package may have saved
        it, as long as format and arguments are known to this one.

        Args:
            folder (str): The folder. If it is a string, and no folder has this
                name, it is that of a repository on the Hugging Face Hub,
                *e.g.*, :obj:`"user/repo"`.
            **kwargs (optional): For the Hub only, those of
                :func:`huggingface_hub.snapshot_download`, *e.g.*,
                :obj:`revision`, :obj:`token` or :obj:`cache_dir`.

        Raises:
            FileNotFoundError: If the folder or a file is missing.
            ImportError: Without :obj:`safetensors` or, where the Hub is asked,
                :obj:`huggingface_hub`.
            ValueError: If a file is damaged, or of another class, another
                format, or a model of another size.
        """
        path = Path(folder).expanduser()
        if path.is_dir():
            if kwargs:
                raise ValueError(
                    f"'{folder}' is a folder here, and takes no arguments of "
                    f'the Hub (got {list(kwargs)})'
                )
            return _load(cls, path)
        if isinstance(folder, Path) or not REPO_ID.fullmatch(folder):
            raise FileNotFoundError(f"There is no folder '{folder}'")
        hub = require('huggingface_hub', f"'{folder}' is no folder. The Hub")
        kwargs['allow_patterns'] = [CONFIG, WEIGHTS]  # Of the same commit.
        return _load(cls, Path(hub.snapshot_download(folder, **kwargs)))

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # noqa: ANN401
        r"""Uploads the files of :meth:`save_pretrained` and a model card to
        the Hugging Face Hub, and returns the address of the commit.

        Args:
            repo_id (str): The repository, *e.g.*, :obj:`"user/repo"`, created
                if it is missing.
            **kwargs (optional): Further arguments of
                :meth:`huggingface_hub.ModelHubMixin.push_to_hub`, *e.g.*,
                :obj:`private`, :obj:`token` or :obj:`commit_message`.

        Raises:
            ImportError: If :obj:`safetensors` or :obj:`huggingface_hub` is
                not installed.
            ValueError: If an argument of the constructor is no plain value.
        """
        require('huggingface_hub', 'The Hub')
        from crane_pyg.nn._hub import HubModel

        _config(self)  # Fails before there is a repository.
        card = {'repo_id': repo_id, 'model_class': type(self)}
        hub_model = HubModel(self.save_pretrained)
        url = hub_model.push_to_hub(repo_id, model_card_kwargs=card, **kwargs)
        return str(url)


def _config(model: PretrainedMixin) -> dict[str, object]:
    cls, arguments = type(model), model._arguments
    _bind(cls, arguments)  # They may be more by now, see 'extend'.
    return {
        'format_version': FORMAT_VERSION,
        'package_version': __version__,
        'class': cls.__name__,
        'arguments': {k: _encode(k, value) for k, value in arguments.items()},
    }


def _bind(cls: type[Model], arguments: dict[str, object]) -> partial[Model]:
    bound = signature(cls.__init__).bind_partial(None)
    known = bound.signature.parameters
    if unknown := sorted(arguments.keys() - known):
        raise ValueError(
            f"'{cls.__name__}' needs to have {unknown} among the arguments of "
            f'its constructor (got {list(known)[1:]})'
        )
    bound.arguments.update(arguments)
    return partial(cls, *bound.args[1:], **bound.kwargs)


def _encode(name: str, value: object) -> object:
    r"""Turns a plain value into one that JSON can hold, tuples included."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, tuple):
        return {TUPLE: _encode(name, list(value))}
    if isinstance(value, list):
        return [_encode(name, item) for item in value]
    if (
        isinstance(value, Mapping)
        and all(isinstance(key, str) for key in value)
        and TUPLE not in value
    ):
        return {key: _encode(name, item) for key, item in value.items()}
    raise ValueError(
        f"'{name}' needs to consist of plain values to be saved (got {value!r})"
    )


def _decode(value: dict[str, Any]) -> object:
    return tuple(value[TUPLE]) if TUPLE in value else value


def _load(cls: type[Model], folder: Path) -> Model:
    safetensors = require('safetensors.torch')
    with torch.random.fork_rng(devices=[]):
        with _naming(folder / CONFIG, cls) as path:
            build = _bind(cls, _read_arguments(path, cls))
            # Takes no memory, as the sizes have yet to prove true:
            with torch.device('meta'):
                shell = build()
        with _naming(folder / WEIGHTS, cls) as path:
            tensors = safetensors.load_file(path)
            _check_kinds(tensors, shell.state_dict())
            shell.load_state_dict(tensors, assign=True)
        model = build()
    state = {
        name: tensors[name].to(value.device, copy=True)  # Not of the file.
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.eval()


@contextmanager
def _naming(path: Path, cls: type[PretrainedMixin]) -> Iterator[Path]:
    try:
        yield path
    except OSError:  # It names the file itself.
        raise
    except Exception as e:  # Values of any kind can fail anywhere.
        raise ValueError(
            f"'{path}' is damaged or holds no '{cls.__name__}' "
            f'(got {type(e).__name__}: {e})'
        ) from e


def _read_arguments(path: Path, cls: type[Model]) -> dict[str, object]:
    config = json.loads(path.read_text(encoding='utf-8'), object_hook=_decode)
    arguments: dict[str, object] = config.pop('arguments', {})
    config.pop('package_version', None)
    needed = {'format_version': FORMAT_VERSION, 'class': cls.__name__}
    if config != needed:
        raise ValueError(f'needs to have {needed} (got {config})')
    return arguments


def _check_kinds(found: dict[str, Tensor], needed: dict[str, Tensor]) -> None:
    # The precision is the user's choice, the kind of number is not:
    for name in found.keys() & needed.keys():
        x, need = found[name], needed[name]
        floating = x.is_floating_point() and need.is_floating_point()
        if x.dtype != need.dtype and not floating:
            raise ValueError(
                f"'{name}' needs to be like {need.dtype} (got {x.dtype})"
            )
