r"""Tables in Markdown, and their places in a text."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from crane_pyg._files import replacing


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing without rows."""
    rows = list(rows)
    if len(rows) == 0:
        return ''
    lines = [head, ['---'] * len(head), *rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def replace_between(path: Path, name: str, text: str) -> None:
    """Writes a text between two comments of a file, in place of the old."""
    begin, end = f'<!-- {name}:begin -->', f'<!-- {name}:end -->'
    content = path.read_text()
    head, rest = content.split(begin)
    tail = rest.split(end)[1]
    with replacing(path) as temp:
        temp.write_text(f'{head}{begin}\n{text}\n{end}{tail}')
