from torch_geometric.data.hetero_data import HeteroData
from torch_geometric.data.in_memory_dataset import InMemoryDataset


class MultimodalDataset(InMemoryDataset):
    r"""A dataset of one graph of users and items with multimodal features."""

    _data: HeteroData

    @property
    def num_users(self) -> int:
        r"""The number of users."""
        return int(self._data['user'].num_nodes)

    @property
    def num_items(self) -> int:
        r"""The number of items."""
        return int(self._data['item'].num_nodes)

    @property
    def modalities(self) -> list[str]:
        r"""The sorted names of the modalities, *e.g.*,
        :obj:`["image", "text"]`.
        """
        keys = [str(key) for key in self._data['item']]
        return sorted(key[2:] for key in keys if key.startswith('x_'))
