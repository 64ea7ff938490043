r"""What CRANE is trained for, and the output that it is computed from."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.models.lightgcn import BPRLoss

from crane_pyg._check import check_least, check_size
from crane_pyg._rows import check_shape
from crane_pyg.nn.loss import hardest_negative, info_nce_loss


class CRANEOutput(NamedTuple):
    r"""What :class:`~crane_pyg.nn.CRANE` returns.

    Args:
        user (torch.Tensor): The embeddings of the users :math:`(U, D)`, whose
            inner products with those of the items rank these.
        item (torch.Tensor): The embeddings of the items :math:`(I, D)`.
        profile (torch.Tensor, optional): The profiles of the users by modality
            :math:`(U, M, d)`, where they are what the contrastive objective
            compares with.
        user_semantic (torch.Tensor, optional): The semantic view of the users
            :math:`(U, D)`: what the item graph adds to their embeddings.
        item_semantic (torch.Tensor, optional): That of the items
            :math:`(I, D)`.
    """

    user: Tensor
    item: Tensor
    profile: Tensor | None = None
    user_semantic: Tensor | None = None
    item_semantic: Tensor | None = None


def loss_terms(
    out: CRANEOutput,
    user_index: Tensor,
    pos_index: Tensor,
    neg_index: Tensor,
    lambda_reg: float = 3e-2,
    contrast_weight: float = 1e-2,
    temperature: float = 0.2,
    contrast_size: int = 1024,
) -> dict[str, Tensor]:
    r"""Returns the summands of the objective of a mini-batch of training pairs
    as :obj:`"bpr"`, :obj:`"l2"` and :obj:`"contrast"`.

    .. math::
        \mathcal{L} = \mathcal{L}_{\text{BPR}} + \frac{\lambda}{B}
        \sum_{(u, i)} \left( \| \mathbf{x}_u \|^2 +
        \| \mathbf{x}_i \|^2 \right) + \lambda_c
        \left( \mathcal{L}_{\text{InfoNCE}}(\mathcal{U}) +
        \mathcal{L}_{\text{InfoNCE}}(\mathcal{I}) \right)

    BPR takes the negative that scores highest among those given. InfoNCE
    compares the behavior view and the semantic view of the users and of the
    items of the mini-batch; with :obj:`profile="contrast"`, it is the profiles
    that the modalities of the users' behavior view, summed, are compared with.

    Args:
        out (CRANEOutput): The output of the forward pass.
        user_index (torch.Tensor): The users :math:`(B)`.
        pos_index (torch.Tensor): Their items :math:`(B)`.
        neg_index (torch.Tensor): Items that are not theirs :math:`(B, S)`
            or :math:`(B)`.
        lambda_reg (float, optional): The :math:`L_2` regularization strength
            :math:`\lambda` of the users and of their items.
            (default: :obj:`3e-2`)
        contrast_weight (float, optional): :math:`\lambda_c`; :obj:`0` leaves
            the contrastive objective out. (default: :obj:`1e-2`)
        temperature (float, optional): The temperature of InfoNCE.
            (default: :obj:`0.2`)
        contrast_size (int, optional): The number of pairs InfoNCE takes, the
            first of the mini-batch; its cost grows with the square.
            (default: :obj:`1024`)

    Raises:
        ValueError: If there is no pair, if items are of another shape, if a
            value is out of its range, or if there is an objective for views,
            and the model has no layer over the item graph.
    """
    check_least(0, lambda_reg=lambda_reg, contrast_weight=contrast_weight)
    check_size(1, contrast_size=contrast_size)
    neg_index = _check_batch(user_index, pos_index, neg_index)
    user = F.embedding(user_index, out.user)
    neg_index = hardest_negative(user, out.item, neg_index)
    pos, neg = F.embedding(torch.stack([pos_index, neg_index]), out.item)
    scores = (user * pos).sum(dim=-1), (user * neg).sum(dim=-1)
    square = torch.cat([user, pos]).norm().square()
    terms: dict[str, Tensor] = {
        'bpr': BPRLoss()(*scores),
        'l2': lambda_reg / user_index.numel() * square,
    }
    if contrast_weight > 0:
        n = contrast_size
        index = user_index[:n], pos_index[:n]
        losses = [
            info_nce_loss(*pair, temperature, nodes)
            for pair, nodes in zip(
                _views(out, *index, user[:n], pos[:n]), index, strict=True
            )
        ]
        terms['contrast'] = contrast_weight * (losses[0] + losses[1])
    return terms


def _check_batch(user: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
    r"""Returns the negatives of each pair :math:`(B, S)`."""
    num_pairs = user.numel()
    check_least(1, **{'len(user_index)': num_pairs})
    check_shape('pos_index', pos, num_pairs)
    neg = neg.unsqueeze(1) if neg.dim() == 1 else neg
    check_shape('neg_index', neg, num_pairs, max(neg.size(-1), 1))
    return neg


def _views(
    out: CRANEOutput,
    user_index: Tensor,
    item_index: Tensor,
    user: Tensor,
    item: Tensor,
) -> list[tuple[Tensor, Tensor]]:
    r"""Returns the behavior view and the semantic view of some users, and
    those of some items, from their embeddings.
    """
    if out.user_semantic is None or out.item_semantic is None:
        raise ValueError(
            'The semantic view needs the item graph (got '
            "'num_item_layers=0'); 'contrast_weight=0' leaves out the "
            'objective that compares it'
        )
    user_near = F.embedding(user_index, out.user_semantic)
    item_near = F.embedding(item_index, out.item_semantic)
    user, item = user - user_near, item - item_near
    if out.profile is not None:
        # IDs have no profile, and stand before the modalities:
        profile = out.profile[user_index]
        user = user[:, -profile[0].numel() :].view_as(profile).sum(dim=1)
        user_near = profile.sum(dim=1)
    return [(user, user_near), (item, item_near)]
