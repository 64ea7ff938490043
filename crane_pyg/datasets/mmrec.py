import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data.hetero_data import HeteroData

from crane_pyg.datasets._base import MultimodalDataset
from crane_pyg.datasets._cache import (
    check_data,
    fingerprint,
    load_cache,
    make_folder,
    save_cache,
)
from crane_pyg.datasets._features import read_features
from crane_pyg.datasets._inter import SPLITS, Pairs, read_inter

SUFFIX = '_feat.npy'
SUFFIXES = (SUFFIX, '_feat.npz')
ATTRS = ('edge_index', 'val_edge_label_index', 'test_edge_label_index')
EXPECTED = f"one '*.inter' (or '*.inter.gz') file and '<modality>{SUFFIX}'"


def read_mmrec(folder: str | Path) -> HeteroData:
    r"""Reads a folder in the layout of the `MMRec
    <https://github.com/enoche/MMRec>`_ toolbox.

    The folder holds one tab-separated :obj:`*.inter` file (or
    :obj:`*.inter.gz`) with the columns :obj:`userID`, :obj:`itemID` and
    :obj:`x_label` (:obj:`0` = training, :obj:`1` = validation, :obj:`2` =
    test) in any order, further columns being ignored, and one matrix
    :obj:`<modality>_feat.npy` per modality, whose row :obj:`i` describes the
    item :obj:`i`; or a :obj:`<modality>_feat.npz` that holds it alone. A row
    of NaN stands for an item that lacks the modality, and so does a row of
    zeros wherever features are used.

    The result holds

    * :obj:`data['user'].num_nodes` and :obj:`data['item'].num_nodes`,
    * :obj:`data['item'].x_<modality>`, of 32-bit floating-point values,
    * :obj:`data['user', 'rates', 'item'].edge_index`, the training pairs, and
      :obj:`val_edge_label_index` and :obj:`test_edge_label_index` next to it.

    A :class:`UserWarning` tells of all that is not as it was in the files:

    * held-out pairs of users without any training pair are dropped, and so is
      a pair that stands again in the same split,
    * a split of no pairs, validation or test, is left out,
    * users and items in no pair, due to gaps in their ids or further rows of
      features, keep their id,
    * a dot in the name of a modality becomes an underscore.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If the folder, its :obj:`*.inter` file or its
            feature files are missing.
        ValueError: If the files do not hold what is described above, *e.g.*,
            user ids with more gaps than users, a pair that stands in two
            splits, or feature matrices of other lengths.
    """
    inter_path, feature_paths = find_files(folder)
    pairs = read_inter(inter_path)
    splits = _split(pairs)
    names = _modality_names(feature_paths)

    data = HeteroData()
    data['user'].num_nodes = pairs.num_users
    xs = {name: read_features(path, pairs) for name, path in names.items()}
    data['item'].num_nodes = _num_items(names, xs)
    for name, x in xs.items():
        data['item'][f'x_{name}'] = x
    store = data['user', 'rates', 'item']
    for name, edge_index in splits.items():
        store[name] = edge_index
    _warn_of_others(pairs, data['item'].num_nodes)
    return data


def find_files(folder: str | Path) -> tuple[Path, list[Path]]:
    r"""Finds the files that :meth:`read_mmrec` reads.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If the folder or any of its files is missing.
        ValueError: If there is more than one :obj:`*.inter` file.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder '{folder}', expected to hold {EXPECTED}"
        )
    paths = [p for p in sorted(folder.iterdir()) if p.is_file()]
    paths = [path for path in paths if not path.name.startswith('.')]
    inter = [p for p in paths if p.name.endswith(('.inter', '.inter.gz'))]
    features = [p for p in paths if p.name.endswith(SUFFIXES)]
    features = [path for path in features if path.name not in SUFFIXES]
    if not inter or not features:
        what = '*.inter' if not inter else f'<modality>{SUFFIX}'
        raise FileNotFoundError(
            f"There is no file '{what}' in '{folder}', expected to hold "
            f'{EXPECTED}'
        )
    if len(inter) > 1:
        raise ValueError(
            f"'{folder}' needs to hold exactly one '*.inter' file "
            f'(got {[path.name for path in inter]})'
        )
    return inter[0], sorted(features, key=_stem)


def _stem(path: Path) -> str:
    return path.name[: -len(SUFFIX)]


def _modality_names(paths: list[Path]) -> dict[str, Path]:
    r"""Returns the files by the names of the modalities. A module of PyTorch,
    in a model, cannot have a name with dots.
    """
    out: dict[str, Path] = {}
    for path in paths:
        name = _stem(path).replace('.', '_')
        if name in out:
            raise ValueError(
                f"'{path.parent}' needs to have one file for the modality "
                f"'{name}' (got '{out[name].name}' and '{path.name}')"
            )
        if name != _stem(path):
            warnings.warn(
                f"'{path}' is read as the modality '{name}', as names of "
                f'modalities have no dots',
                stacklevel=3,
            )
        out[name] = path
    return out


def _num_items(paths: dict[str, Path], xs: dict[str, torch.Tensor]) -> int:
    num_rows = {name: x.size(0) for name, x in xs.items()}
    if len(set(num_rows.values())) > 1:
        found = {path.name: num_rows[name] for name, path in paths.items()}
        raise ValueError(
            f'Feature files need to have as many rows as each other, one for '
            f'each item (got {found})'
        )
    return next(iter(num_rows.values()))


def _warn_of_others(pairs: Pairs, num_items: int) -> None:
    for name, index, num in [
        ('users', pairs.user, pairs.num_users),
        ('items', pairs.item, num_items),
    ]:
        num_others = num - np.unique(index).size
        if num_others > 0:
            warnings.warn(
                f"'{pairs.path}': {num_others} of {num} {name} are in no pair, "
                f'and keep their ids',
                stacklevel=3,
            )


def _split(pairs: Pairs) -> dict[str, torch.Tensor]:
    has_train = np.zeros(pairs.num_users, dtype=bool)
    has_train[pairs.user[pairs.label == 0]] = True
    keep = has_train[pairs.user]

    out, missing = {}, []
    for label, name in enumerate(SPLITS):
        mask = pairs.label == label
        if label > 0 and not mask.any():
            missing.append(name)
            continue
        mask &= keep
        if not mask.any():
            raise ValueError(
                f"'{pairs.path}': 'x_label' needs to be {label} ({name}) for "
                f'at least one pair of a user with training pairs '
                f'(got {int((pairs.label == label).sum())} pairs in all)'
            )
        edge_index = np.stack([pairs.user[mask], pairs.item[mask]])
        out[ATTRS[label]] = torch.from_numpy(edge_index)

    if not keep.all():
        warnings.warn(
            f"'{pairs.path}': dropped {int((~keep).sum())} held-out pairs of "
            f'{int((~has_train).sum())} users without any training pair',
            stacklevel=3,
        )
    if missing:
        warnings.warn(
            f"'{pairs.path}' has no pairs of the splits {missing}, which are "
            f'left out of the data',
            stacklevel=3,
        )
    return out


class MMRecDataset(MultimodalDataset):
    r"""A multimodal recommendation dataset in the folder layout of the `MMRec
    <https://github.com/enoche/MMRec>`_ toolbox, see :meth:`read_mmrec`.

    The processed data are cached in a single file, which is rebuilt whenever a
    raw file or :obj:`pre_transform` changes: its options, tensors, and the code
    of its own and of what it refers to. One that cannot be told from others,
    as it holds, *e.g.*, an open file, is applied every time, with a
    :class:`UserWarning`. Reading the cache executes no code from it.

    Args:
        root: The folder with the raw files. It may be read-only if
            :obj:`processed_dir` is given.
        transform: A function/transform that takes in a
            :class:`~torch_geometric.data.HeteroData` object and returns a
            transformed version, applied on every access.
        pre_transform: A function/transform that takes in a
            :class:`~torch_geometric.data.HeteroData` object and returns a
            transformed version, applied before the data are cached.
        processed_dir: The folder of the cache file.
            (default: :obj:`root/processed`)
        force_reload: Whether to rebuild the cache file in any case.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If a raw file is not as :meth:`read_mmrec` needs it, if
            :obj:`pre_transform` returns anything else than tensors and plain
            values in :class:`~torch_geometric.data.HeteroData`, or if
            :obj:`processed_dir` cannot be written to.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        processed_dir: str | Path | None = None,
        force_reload: bool = False,
    ) -> None:
        root = Path(root).expanduser()
        folder = Path(processed_dir or root / 'processed').expanduser()
        self._processed_dir = str(folder)
        # Without a `process` method, PyG leaves the cache to this class, and
        # never loads its own `pre_transform.pt`, which may execute code.
        super().__init__(
            str(root), transform, pre_transform, force_reload=force_reload
        )
        self._data = self._load()

    @property
    def raw_dir(self) -> str:
        r"""The folder with the raw files."""
        return str(self.root)

    @property
    def processed_dir(self) -> str:
        r"""The folder of the cache file."""
        return self._processed_dir

    @property
    def raw_file_names(self) -> list[str]:
        r"""The names of the raw files."""
        inter_path, feature_paths = find_files(self.raw_dir)
        return [path.name for path in [inter_path, *feature_paths]]

    @property
    def processed_file_names(self) -> list[str]:
        r"""The name of the cache file."""
        return ['data.pt']

    def _load(self) -> HeteroData:
        path = Path(self.processed_paths[0])
        key = fingerprint(map(Path, self.raw_paths), self.pre_transform)
        data = None
        if key is not None and not self.force_reload:
            data = load_cache(path, key)
        if data is None:
            if key is not None:
                make_folder(path.parent)
            data = read_mmrec(self.raw_dir)
            if self.pre_transform is not None:
                data = check_data(self.pre_transform(data))
            if key is not None:
                save_cache(path, key, data)
        return data
