import math

import torch
import torch.nn.functional as F
from torch import Tensor

from crane_pyg._check import check_least, check_positive
from crane_pyg._rows import check_shape


@torch.no_grad()
def hardest_negative(user: Tensor, item_emb: Tensor, index: Tensor) -> Tensor:
    r"""Returns the negative of highest score for each user :math:`(B)`.

    Args:
        user (torch.Tensor): The embeddings of the users :math:`(B, d)`.
        item_emb (torch.Tensor): The embeddings of all items :math:`(I, d)`.
        index (torch.Tensor): The negatives of each :math:`(B, S)`.
    """
    if index.size(1) == 1:
        return index.squeeze(1)
    score = torch.einsum('bd,bsd->bs', user, F.embedding(index, item_emb))
    return index.gather(1, score.argmax(dim=1, keepdim=True)).squeeze(1)


def sampled_softmax_loss(
    pos_score: Tensor,
    neg_score: Tensor,
    neg_mask: Tensor | None = None,
    log_q_pos: Tensor | None = None,
    log_q_neg: Tensor | None = None,
) -> Tensor:
    r"""The functional form of :class:`SampledSoftmaxLoss`, on logits.

    Args:
        pos_score (torch.Tensor): Logits of the positives :math:`(B)`.
        neg_score (torch.Tensor): Logits of the negatives :math:`(B, S)`.
        neg_mask (torch.Tensor, optional): :obj:`True` where a negative is a
            positive of its row, and is left out :math:`(B, S)`.
            (default: :obj:`None`)
        log_q_pos (torch.Tensor, optional): Log-probability with which the
            positives would be drawn as negatives :math:`(B)`.
            (default: :obj:`None`)
        log_q_neg (torch.Tensor, optional): The same of the negatives
            :math:`(S)`. (default: :obj:`None`)

    Raises:
        ValueError: If only one of :obj:`log_q_pos` and :obj:`log_q_neg` is
            given, if shapes differ from these, or if there is no positive.
    """
    num_pos, num_neg = pos_score.size(0), neg_score.size(-1)
    check_least(1, **{'len(pos_score)': num_pos})
    check_shape('pos_score', pos_score, num_pos)
    check_shape('neg_score', neg_score, num_pos, num_neg)
    check_shape('neg_mask', neg_mask, num_pos, num_neg)
    check_shape('log_q_pos', log_q_pos, num_pos)
    check_shape('log_q_neg', log_q_neg, num_neg)
    if (log_q_pos is None) != (log_q_neg is None):
        given = 'log_q_neg' if log_q_pos is None else 'log_q_pos'
        raise ValueError(
            f"'log_q_pos' and 'log_q_neg' need to be given together "
            f"(got only '{given}')"
        )
    if log_q_pos is not None and log_q_neg is not None:
        pos_score = pos_score - log_q_pos
        neg_score = neg_score - log_q_neg
    if neg_mask is not None:
        neg_score = neg_score.masked_fill(neg_mask, float('-inf'))
    logits = torch.cat([pos_score.unsqueeze(-1), neg_score], dim=-1)
    return (logits.logsumexp(dim=-1) - pos_score).mean()


def info_nce_loss(
    x: Tensor,
    y: Tensor,
    temperature: float = 0.2,
    index: Tensor | None = None,
) -> Tensor:
    r"""The functional form of :class:`InfoNCELoss`.

    Args:
        x (torch.Tensor): One view of the nodes :math:`(N, d)`.
        y (torch.Tensor): The other view of the nodes :math:`(N, d)`.
        temperature (float, optional): :math:`\tau`. (default: :obj:`0.2`)
        index (torch.Tensor, optional): Which node each row is :math:`(N)`; a
            node that occurs twice is no negative of itself. All differ if
            not given. (default: :obj:`None`)

    Raises:
        ValueError: If :obj:`temperature` is not positive, if the views or
            :obj:`index` are of another shape, or if there is no node.
    """
    if x.size() != y.size():
        raise ValueError(
            f'The two views need to have the same shape '
            f'(got {list(x.size())} and {list(y.size())})'
        )
    check_positive(temperature, 'temperature')
    check_least(1, **{'len(x)': x.size(0)})
    check_shape('index', index, x.size(0))
    x, y = F.normalize(x, dim=-1) / temperature, F.normalize(y, dim=-1)
    logits = x @ y.t()
    if index is not None:
        same = (index.unsqueeze(0) == index.unsqueeze(1)).fill_diagonal_(False)
        with torch.no_grad():  # The gradient of what follows is zero there.
            logits.masked_fill_(same, float('-inf'))
    total = _logsumexps(logits, 1 / temperature)
    return (0.5 * total - (x * y).sum(dim=-1)).mean()


def _logsumexps(logits: Tensor, peak: float) -> Tensor:
    r"""Sums those of the rows and of the columns of logits, which are between
    :obj:`-peak` and :obj:`peak`, or left out; overwrites them.
    """
    # The same exponentials serve both, unless some could be too small, or the
    # sum of them too large:
    largest = peak + math.log(max(logits.size(0), 1))
    if max(2 * peak, largest) > -math.log(torch.finfo(logits.dtype).tiny):
        return logits.logsumexp(dim=0) + logits.logsumexp(dim=1)
    exp = logits.exp_()
    return exp.sum(dim=0).log() + exp.sum(dim=1).log()


class SampledSoftmaxLoss(torch.nn.Module):
    r"""The softmax loss over one positive and :math:`S` negatives that the
    whole mini-batch shares.

    .. math::
        \mathcal{L} = - \frac{1}{B} \sum_{(u, i)} \log
        \frac{\exp(s_{ui} / \tau)}
        {\exp(s_{ui} / \tau) + \sum_{j \in \mathcal{S}} \exp(s_{uj} / \tau)}

    where :math:`s` is the cosine of the embeddings of user and item, or their
    inner product. With uniform negatives, see
    `"On the Effectiveness of Sampled Softmax Loss for Item Recommendation"
    <https://arxiv.org/abs/2201.02327>`_. Where items are drawn as negatives
    with unequal probabilities :math:`q`, :math:`\log q` is subtracted from
    the logits.

    Args:
        temperature (float, optional): :math:`\tau`. (default: :obj:`0.2`)
        normalize (bool, optional): If set to :obj:`False`, :math:`s` is the
            inner product. (default: :obj:`True`)

    Shapes:
        - **input:** users :math:`(B, d)`, positive items :math:`(B, d)`,
          negative items :math:`(S, d)`, mask :math:`(B, S)`, :obj:`True`
          where a negative is left out *(optional)*, :math:`\log q` of the
          positives :math:`(B)` and of the negatives :math:`(S)` *(optional)*
        - **output:** scalar

    Raises:
        ValueError: If :obj:`temperature` is not positive, if only one
            :math:`\log q` is given, if shapes differ from these, or if there
            is no user.
    """

    def __init__(
        self,
        temperature: float = 0.2,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        check_positive(temperature, 'temperature')
        self.temperature = temperature
        self.normalize = normalize

    def forward(
        self,
        user: Tensor,
        pos_item: Tensor,
        neg_item: Tensor,
        neg_mask: Tensor | None = None,
        log_q_pos: Tensor | None = None,
        log_q_neg: Tensor | None = None,
    ) -> Tensor:
        """"""  # noqa: D419
        check_shape('pos_item', pos_item, *user.size())
        check_shape('neg_item', neg_item, len(neg_item), user.size(-1))
        if self.normalize:
            user = F.normalize(user, dim=-1)
            pos_item = F.normalize(pos_item, dim=-1)
            neg_item = F.normalize(neg_item, dim=-1)
        user = user / self.temperature
        pos_score = (user * pos_item).sum(dim=-1)
        neg_score = user @ neg_item.t()
        log_q = (log_q_pos, log_q_neg)
        return sampled_softmax_loss(pos_score, neg_score, neg_mask, *log_q)

    def __repr__(self) -> str:
        normalize = '' if self.normalize else ', normalize=False'
        return (
            f'{self.__class__.__name__}(temperature={self.temperature}'
            f'{normalize})'
        )


class InfoNCELoss(torch.nn.Module):
    r"""The contrastive loss between two views of the same nodes from the
    `"Representation Learning with Contrastive Predictive Coding"
    <https://arxiv.org/abs/1807.03748>`_ paper, taken in both directions.

    .. math::
        \mathcal{L} = - \frac{1}{2N} \sum_{n} \left( \log
        \frac{\exp(\cos(\mathbf{x}_n, \mathbf{y}_n) / \tau)}
        {\sum_m \exp(\cos(\mathbf{x}_n, \mathbf{y}_m) / \tau)} + \log
        \frac{\exp(\cos(\mathbf{x}_n, \mathbf{y}_n) / \tau)}
        {\sum_m \exp(\cos(\mathbf{x}_m, \mathbf{y}_n) / \tau)} \right)

    Args:
        temperature (float, optional): :math:`\tau`. (default: :obj:`0.2`)

    Shapes:
        - **input:** two views of the same nodes, each :math:`(N, d)`, node
          indices :math:`(N)`, where nodes may repeat *(optional)*
        - **output:** scalar

    Raises:
        ValueError: If :obj:`temperature` is not positive, or the views differ
            in shape, hold no node, or node indices do not fit them.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        super().__init__()
        check_positive(temperature, 'temperature')
        self.temperature = temperature

    def forward(
        self,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
    ) -> Tensor:
        """"""  # noqa: D419
        return info_nce_loss(x, y, self.temperature, index)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(temperature={self.temperature})'
