r"""Embeddings of a few users and items."""

import pytest
import torch
from toy_ranking import NUM_ITEMS, NUM_USERS


@pytest.fixture
def embs():
    generator = torch.Generator().manual_seed(12)
    return (
        torch.randn(NUM_USERS, 4, generator=generator),
        torch.randn(NUM_ITEMS, 4, generator=generator),
    )
