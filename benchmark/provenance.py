r"""Where a result comes from."""

import platform
import subprocess
import time
from pathlib import Path

import numpy
import torch
import torch_geometric

import crane_pyg

FOLDER = Path(__file__).parent


def provenance(device: str = 'cpu') -> dict[str, object]:
    """The revision that runs, the date, the versions of what it uses, and what
    it computes on.
    """
    return {
        'revision': revision(),
        'date': time.strftime('%Y-%m-%d'),
        'versions': {
            'crane_pyg': crane_pyg.__version__,
            'torch': torch.__version__,
            'torch_geometric': torch_geometric.__version__,
            'numpy': numpy.__version__,
            'python': platform.python_version(),
        },
        'device': name_of(device),
    }


def describe(runs: list[dict]) -> str:
    """What a table says about where its results come from."""
    facts = {
        'revision': {run['revision'] for run in runs},
        'date': {run['date'] for run in runs},
        'device': {run.get('device', 'cpu') for run in runs},
        **{
            name: {run['versions'][name] for run in runs}
            for name in ('torch', 'torch_geometric', 'numpy')
        },
    }
    parts = [f'{key} {brief(sorted(v))}' for key, v in facts.items()]
    return f'<sub>{"; ".join(parts)}</sub>'


def brief(values: list[str]) -> str:
    """Some values, or the first and the last of many."""
    if len(values) > 4:
        return f'{values[0]} ... {values[-1]} ({len(values)})'
    return ', '.join(values)


def name_of(device: str) -> str:
    """The name of a GPU, or the device itself."""
    if torch.device(device).type == 'cuda':
        return torch.cuda.get_device_name(device)
    return device


def revision() -> str:
    """The commit; dirty if files have changed since, other than results."""
    commit = git('rev-parse', '--short', 'HEAD')
    results = f':!{FOLDER.name}/results'
    changes = git('status', '--porcelain', '-uno', '--', ':/', results)
    return f'{commit}-dirty' if changes else commit


def git(*args: str) -> str:
    """What git prints, run at the top of the repository."""
    return subprocess.check_output(
        ['git', *args], text=True, cwd=FOLDER.parent
    ).strip()
