r"""Runs the examples as their users would."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / 'examples'
ENVIRONMENT = {
    'OMP_NUM_THREADS': '1',
    # PyG still scripts its layers on import, which PyTorch 2.14 deprecates:
    'PYTHONWARNINGS': 'ignore:`torch.jit.script` is deprecated:FutureWarning',
}


@pytest.fixture
def run():
    r"""Runs an example, after other code if given."""

    def main(name, *args, code=None):
        command = [str(EXAMPLES / name)]
        if code is not None:
            start = (
                "sys.argv.pop(0); runpy.run_path(sys.argv[0], {}, '__main__')"
            )
            command = ['-c', f'import runpy, sys\n{code}\n{start}', *command]
        return subprocess.run(
            [sys.executable, *command, *args],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=300,
        )

    return main
