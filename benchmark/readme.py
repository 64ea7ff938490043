r"""Tables in a text, between two comments."""

from pathlib import Path

from crane_pyg._files import replacing


def replace_between(path: Path, begin: str, end: str, text: str) -> None:
    """Writes a text between two comments of a file, in place of the old."""
    content = path.read_text()
    head, tail = content.split(begin)[0], content.split(end)[1]
    with replacing(path) as temp:
        temp.write_text(f'{head}{begin}\n{text}\n{end}{tail}')
