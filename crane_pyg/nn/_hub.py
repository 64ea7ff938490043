from collections.abc import Callable
from pathlib import Path

from huggingface_hub import ModelHubMixin

CARD = """\
---
{{ card_data }}
---

A model of the [paper]({{ paper_url }}), trained with `crane_pyg`. Users and
items are numbered as in the data that it was trained on.

```python
from {{ model_class.__module__ }} import {{ model_class.__name__ }}

model = {{ model_class.__name__ }}.from_pretrained('{{ repo_id }}')
```
"""


class HubModel(
    ModelHubMixin,
    library_name='crane_pyg',
    tags=['recommender-system', 'pytorch-geometric'],
    paper_url='https://arxiv.org/abs/2601.11151',
    model_card_template=CARD,
):
    r"""What uploads a model: it stands beside the model instead of being its
    base, such that :obj:`crane_pyg.nn` does without :obj:`huggingface_hub`.
    """

    def __init__(self, save: Callable[[Path], None]) -> None:
        self.save = save

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)
