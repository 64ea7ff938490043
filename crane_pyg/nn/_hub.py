from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, snapshot_download

from crane_pyg.nn.pretrained import CONFIG, WEIGHTS, PretrainedMixin

CARD = """\
---
{{ card_data }}
---

A model of the [paper]({{ paper_url }}), trained with `crane_pyg`. Users and
items are numbered as in the data that it was trained on.

```python
from {{ module }} import {{ class_name }}

model = {{ class_name }}.from_pretrained('{{ repo_id }}')
```
"""


class HubModel(
    ModelHubMixin,
    library_name='crane_pyg',
    tags=['recommender-system', 'pytorch-geometric'],
    paper_url='https://arxiv.org/abs/2601.11151',
    model_card_template=CARD,
):
    r"""Takes a model to the Hugging Face Hub, and gets it from there.

    It holds the model instead of being its base, so that :obj:`crane_pyg`
    neither imports :obj:`huggingface_hub` up front, nor depends on it.
    """

    def __init__(self, model: PretrainedMixin) -> None:
        self.model = model

    def _save_pretrained(self, save_directory: Path) -> None:
        self.model.save_pretrained(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,  # noqa: ANN401
    ) -> 'HubModel':
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[CONFIG, WEIGHTS],
        )
        model_class: type[PretrainedMixin] = model_kwargs['model_class']
        return cls(model_class.from_pretrained(Path(folder)))
