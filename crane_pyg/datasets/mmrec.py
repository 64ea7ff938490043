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
EXPECTED = f"one '*.inter' (or '*.inter.gz') file and '<modality>{SUFFIX}'"


def read_mmrec(folder: str | Path) -> HeteroData:
    r"""Reads a folder in the layout of the `MMRec
    <https://github.com/enoche/MMRec>`_ toolbox.

    The folder holds one tab-separated :obj:`*.inter` file (or
    :obj:`*.inter.gz`) with the columns :obj:`userID`, :obj:`itemID` and
    :obj:`x_label` (:obj:`0` = training, :obj:`1` = validation, :obj:`2` =
    test) in any order, further columns being ignored, and one matrix
    :obj:`<modality>_feat.npy` per modality, whose row :obj:`i` describes the
    item :obj:`i`. A row of NaN stands for an item that lacks the modality.

    The result holds

    * :obj:`data['user'].num_nodes` and :obj:`data['item'].num_nodes`,
    * :obj:`data['item'].x_<modality>`, of 32-bit floating-point values,
    * :obj:`data['user', 'rates', 'item'].edge_index`, the training pairs, and
      :obj:`val_edge_label_index` and :obj:`test_edge_label_index` next to it.

    Held-out pairs of users without any training pair are dropped with a
    :class:`UserWarning`; such users keep their id.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If the folder, its :obj:`*.inter` file or its
            feature files are missing.
        ValueError: If the files do not hold what is described above, *e.g.*,
            ids that do not run from zero without a gap, a pair that stands
            twice, or a feature matrix of another length.
    """
    inter_path, feature_paths = find_files(folder)
    pairs = read_inter(inter_path)
    train, val, test = _split(pairs)

    data = HeteroData()
    data['user'].num_nodes = pairs.num_users
    data['item'].num_nodes = pairs.num_items
    for path in feature_paths:
        name = 'x_' + path.name.removesuffix(SUFFIX)
        data['item'][name] = read_features(path, pairs)
    store = data['user', 'rates', 'item']
    store.edge_index = train
    store.val_edge_label_index = val
    store.test_edge_label_index = test
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
    features = [p for p in paths if p.name.endswith(SUFFIX)]
    features = [path for path in features if path.name != SUFFIX]
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
    return inter[0], sorted(features, key=lambda p: p.name.removesuffix(SUFFIX))


def _split(pairs: Pairs) -> list[torch.Tensor]:
    has_train = np.zeros(pairs.num_users, dtype=bool)
    has_train[pairs.user[pairs.label == 0]] = True
    keep = has_train[pairs.user]

    out = []
    for label, name in enumerate(SPLITS):
        mask = (pairs.label == label) & keep
        if not mask.any():
            raise ValueError(
                f"'{pairs.path}': 'x_label' needs to be {label} ({name}) for "
                f'at least one pair of a user with training pairs '
                f'(got {int((pairs.label == label).sum())} pairs in all)'
            )
        edge_index = np.stack([pairs.user[mask], pairs.item[mask]])
        out.append(torch.from_numpy(edge_index))

    if not keep.all():
        warnings.warn(
            f"'{pairs.path}': dropped {int((~keep).sum())} held-out pairs of "
            f'{int((~has_train).sum())} users without any training pair',
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
