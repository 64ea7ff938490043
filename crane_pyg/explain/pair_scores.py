r"""The scores of pairs, for the explainers of PyG."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn import Module, ModuleDict
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType, NodeType

from crane_pyg._edges import get_graph, rev_edge_type
from crane_pyg._rows import as_pairs
from crane_pyg.explain.scores import are_same, check_ranker, check_users
from crane_pyg.nn.conv import CRANEConv
from crane_pyg.nn.crane import CRANE
from crane_pyg.nn.objective import CRANEOutput
from crane_pyg.ranking import Neighborhood, Ranker

__all__ = ['PairScores']


class PairScores(Module):
    r"""The scores of pairs of users and items, as a model that every algorithm
    of :class:`torch_geometric.explain.Explainer` for heterogeneous graphs can
    explain, by masks of edges as well as of features.

    A mask of an edge weighs its message wherever the edge carries one, in the
    propagation, the user profiles and the neighborhood. What the model learned
    about each user and each item counts among their features. Relations that
    come of the embeddings, and not with :obj:`data`, and what scales the
    neighborhood, are those without masks.

    .. code-block:: python

        scores = PairScores(model, data)
        explainer = Explainer(
            scores,
            algorithm=GNNExplainer(),
            explanation_type='model',
            edge_mask_type='object',
            model_config={'mode': 'regression', 'task_level': 'edge'},
        )
        pair = torch.tensor([[user], [item]])
        explanation = explainer(*scores.inputs(), edge_label_index=pair)

    .. note::
        In PyG 2.8, :class:`~torch_geometric.explain.CaptumExplainer` passes
        its edge masks through a sigmoid if the graph is heterogeneous: with
        masks of edges, what it explains are the scores of a graph whose
        messages are all multiplied by :math:`\sigma(1) \approx 0.73`.

    Args:
        model (CRANE): The model, of which a frozen copy is taken.
        data (torch_geometric.data.HeteroData): As in its forward pass.
        ranker (Ranker, optional): What ranks by the embeddings of the same
            model and data, and may add relations between items to their inner
            products. (default: :obj:`None`)

    Shapes:
        - **input:**
          user features :math:`(U, (1 + M) d)`, item features
          :math:`(I, \sum_m d_m + (1 + M) d)`, as :meth:`inputs` returns
          them, and pairs :math:`(2, P)`
        - **output:** scores :math:`(P)`

    Raises:
        ValueError: If a graph is missing from :obj:`data`, or if the ranker is
            one of other data or of another model.
    """

    def __init__(
        self, model: CRANE, data: HeteroData, ranker: Ranker | None = None
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.eval()  # As an explainer returns to the mode that it found.
        self.data, self.ranker = data, ranker
        self.user, _, self.item = model.edge_type
        self.item_sizes = dict(model.in_channels)
        self.edge_index: dict[EdgeType, Tensor] = {}
        self.neighbor_weight: dict[EdgeType, Tensor] = {}

        weights: dict[str, float] = {}
        if ranker is not None:
            with torch.no_grad():
                check_ranker(ranker, model, data, self.model(data).user)
            weights = ranker.neighborhood.weights
        if model.num_layers > 0 or any(weights.values()):
            self._add_graph(model.edge_type)
        if model.num_item_layers > 0:
            self._add_graph((self.item, model.item_edge, self.item))
        layers = max(model.num_layers, model.num_item_layers)
        if layers > 0 or model.gate is not None:
            self._add_graph(rev_edge_type(model.edge_type))
        if ranker is not None:
            self._add_neighbors(ranker.neighborhood)
        self.conv = _ConvByEdgeType(list(self.edge_index))
        self.model.conv = self.conv  # type: ignore[assignment]

    def inputs(
        self,
    ) -> tuple[dict[NodeType, Tensor], dict[EdgeType, Tensor]]:
        r"""Returns the features of all nodes, and all edges that matter."""
        preference = [self.model.preference[f'x_{m}'] for m in self.item_sizes]
        store = self.data[self.item]
        features = [store[f'x_{m}'] for m in self.item_sizes]
        users, items = preference, [*features, *self.model.offset.values()]
        if self.model.user_id is not None and self.model.item_id is not None:
            users = [*users, self.model.user_id]
            items = [*items, self.model.item_id]
        # As NaN times zero is NaN; the forward pass puts them back:
        item = torch.cat(items, dim=-1).nan_to_num(nan=0.0)
        user = torch.cat(users, dim=-1).detach()
        return {self.user: user, self.item: item.detach()}, self.edge_index

    def forward(
        self,
        x_dict: dict[NodeType, Tensor],
        edge_index_dict: dict[EdgeType, Tensor],
        edge_label_index: object,
    ) -> Tensor:
        r"""Returns the scores of the pairs.

        Raises:
            ValueError: If there is no such user or item, or if the ranker
                gives a user popular items or none.
        """
        size, name = self.model.size, 'edge_label_index'
        device = x_dict[self.user].device
        users, items = as_pairs(name, edge_label_index, size, device)
        if self.ranker is not None:
            check_users(self.ranker, users)
        data, params = self._replace(x_dict, edge_index_dict)
        self.conv.known = edge_index_dict
        out: CRANEOutput = functional_call(self.model, params, (data,))
        score: Tensor = (out.user[users] * out.item[items]).sum(dim=-1)
        if len(self.neighbor_weight) == 0:
            return score

        # One column per pair, as these sums are a propagation as well:
        x = F.one_hot(users, self.model.size[0]).t().to(score.dtype)
        edge_index = edge_index_dict[self.model.edge_type]
        x = self.conv((x, None), edge_index, size=self.model.size)
        pair = torch.arange(users.numel(), device=items.device)
        size = (self.model.size[1],) * 2
        for edge_type, weight in self.neighbor_weight.items():
            edge_index = edge_index_dict[edge_type]
            near = self.conv((x, None), edge_index, weight, size=size)
            score = score + near[items, pair]
        return score

    def _add_graph(self, edge_type: EdgeType) -> None:
        self.edge_index[edge_type], _ = get_graph(self.data, edge_type)

    def _add_neighbors(self, neighborhood: Neighborhood) -> None:
        for name, weight in neighborhood.weights.items():
            edge_type = (self.item, name, self.item)
            if weight == 0.0:
                continue
            if edge_type in self.data.edge_types:
                self._add_graph(edge_type)
                value = self.data[edge_type].edge_weight
            else:
                items = torch.arange(
                    self.model.size[1], device=neighborhood.history.ptr.device
                )
                src, dst, value = neighborhood.relations[name][items]
                keep = value != 0.0  # Of a matrix, too.
                value = value[keep]
                self.edge_index[edge_type] = torch.stack([src, dst])[:, keep]
            self.neighbor_weight[edge_type] = weight * value

    def _replace(
        self,
        x_dict: dict[NodeType, Tensor],
        edge_index_dict: dict[EdgeType, Tensor],
    ) -> tuple[HeteroData, dict[str, Tensor]]:
        data = copy.copy(self.data)
        for edge_type, edge_index in edge_index_dict.items():
            if edge_type in data.edge_types:
                data[edge_type].edge_index = edge_index

        channels = self.model.channels
        users = x_dict[self.user].split(channels, dim=-1)
        sizes = list(self.item_sizes.values())
        rest = [channels] * (
            (x_dict[self.item].size(-1) - sum(sizes)) // channels
        )
        items = x_dict[self.item].split([*sizes, *rest], dim=-1)
        params = {}
        for name, user, x in zip(self.item_sizes, users, items, strict=False):
            params[f'preference.x_{name}'] = user
            given = self.data[self.item][f'x_{name}']
            x = x.to(given.dtype).masked_fill(given.isnan(), float('nan'))
            data[self.item][f'x_{name}'] = x
        offsets = items[len(sizes) :]  # And the IDs, after them.
        for name, offset in zip(self.model.offset, offsets, strict=False):
            params[f'offset.{name}'] = offset
        if self.model.user_id is not None:
            params['user_id'], params['item_id'] = users[-1], items[-1]
        return data, params


class _ConvByEdgeType(Module):
    r"""One layer for each type of edges, as explainers set masks by it."""

    def __init__(self, edge_types: list[EdgeType]) -> None:
        super().__init__()
        convs = {
            '__'.join(key): CRANEConv(normalize=False)  # type: ignore[abstract]
            for key in [*edge_types, ('other',)]
        }
        self.convs = ModuleDict(convs)
        self.known: dict[EdgeType, Tensor] = {}

    def forward(
        self,
        x: tuple[Tensor, None],
        edge_index: Tensor,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> Tensor:
        # The model does not say which edges it passes:
        keys = [k for k, x in self.known.items() if are_same(x, edge_index)]
        conv = self.convs['__'.join(keys[0] if keys else ('other',))]
        out: Tensor = conv(x, edge_index, *args, **kwargs)
        return out
