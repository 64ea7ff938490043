from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toys import HEADER, ROWS


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    r"""Writes a valid folder of three users and four items, or what is asked
    for instead.
    """

    def make(
        rows=ROWS, header=HEADER, name='toy', folder='toy', end='\n', **features
    ) -> Path:
        path = tmp_path / folder
        path.mkdir()
        lines = ['\t'.join(map(str, row)) for row in rows]
        text = ''.join(line + end for line in [header, *lines])
        (path / f'{name}.inter').write_bytes(text.encode())
        if not features:
            x = np.arange(12, dtype=np.float16).reshape(4, 3)
            features = {'image': x, 'text': -x[:, :2]}
        for modality, x in features.items():
            np.save(path / f'{modality}_feat.npy', x)
        return path

    return make
