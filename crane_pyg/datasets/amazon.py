from collections.abc import Callable
from pathlib import Path

from torch_geometric.data.hetero_data import HeteroData

from crane_pyg.datasets.mmrec import MMRecDataset

NAMES = ['baby', 'sports', 'clothing', 'electronics']


class AmazonMultimodal(MMRecDataset):
    r"""The Amazon 5-core review datasets of 2014 with image and text features,
    as multimodal recommendation uses them since `"Mining Latent Structures for
    Multimedia Recommendation" <https://arxiv.org/abs/2104.09036>`_.

    Nothing is downloaded. The files :obj:`<name>.inter`,
    :obj:`image_feat.npy` and :obj:`text_feat.npy` are published by the `MMRec
    <https://github.com/enoche/MMRec>`_ toolbox, in the Google Drive folder
    that the data section of its README links, and belong into the folder
    :obj:`root/name`.

    Args:
        root: The folder that holds the folder :obj:`name`.
        name: The name of the dataset (:obj:`"baby"`, :obj:`"sports"`,
            :obj:`"clothing"`, :obj:`"electronics"`).
        transform: A function/transform that takes in a
            :class:`~torch_geometric.data.HeteroData` object and returns a
            transformed version, applied on every access.
        pre_transform: A function/transform that takes in a
            :class:`~torch_geometric.data.HeteroData` object and returns a
            transformed version, applied before the data are cached.
        processed_dir: The folder of the cache file :obj:`<name>.pt`.
            (default: :obj:`root/name/processed`)
        force_reload: Whether to rebuild the cache file in any case.

    Raises:
        FileNotFoundError: If raw files are missing.
        ValueError: If :obj:`name` is unknown, if a raw file is not as
            :meth:`~crane_pyg.datasets.read_mmrec` needs it, or if
            :obj:`processed_dir` cannot be written to.

    **STATS:**

    .. list-table::
        :widths: 10 10 10 10
        :header-rows: 1

        * - Name
          - #users
          - #items
          - #interactions
        * - baby
          - 19,445
          - 7,050
          - 160,792
        * - sports
          - 35,598
          - 18,357
          - 296,337
        * - clothing
          - 39,387
          - 23,033
          - 278,677
        * - electronics
          - 192,403
          - 63,001
          - 1,689,188
    """

    def __init__(
        self,
        root: str | Path,
        name: str,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        processed_dir: str | Path | None = None,
        force_reload: bool = False,
    ) -> None:
        if name not in NAMES:
            raise ValueError(
                f"'name' needs to be one of {NAMES} (got {name!r})"
            )
        self.name = name
        folder = Path(root).expanduser() / name
        _check_files(folder, name)
        super().__init__(
            folder, transform, pre_transform, processed_dir, force_reload
        )

    @property
    def processed_file_names(self) -> list[str]:
        r"""The name of the cache file."""
        return [f'{self.name}.pt']

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(name={self.name!r})'


def _check_files(folder: Path, name: str) -> None:
    names = [f'{name}.inter', 'image_feat.npy', 'text_feat.npy']
    missing = [file for file in names if not (folder / file).is_file()]
    if (folder / f'{name}.inter.gz').is_file():
        missing = [file for file in missing if file != names[0]]
    if missing:
        raise FileNotFoundError(
            f"The files {missing} are missing in '{folder}'. The MMRec toolbox "
            f'publishes them: the data section of the README at '
            f'https://github.com/enoche/MMRec links their Google Drive folder. '
            f"'python examples/amazon_sports.py --demo' runs without them"
        )
