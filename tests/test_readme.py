import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'docs/results.md',
    'docs/speed.md',
]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.MULTILINE | re.DOTALL)
HEADING = re.compile(r'^#+ (.+)$', re.MULTILINE)
LINK = re.compile(r'\]\(\s*([^)\s]+)\s*\)')


def read(page):
    return (ROOT / page).read_text(encoding='utf-8')


def blocks(page, language):
    r"""Yields the heading, the line number and the code of every block."""
    text = read(page)
    for match in FENCE.finditer(text):
        if match[1] == language:
            before = text[: match.start(2)]
            prose = FENCE.sub('', text[: match.start()])
            yield HEADING.findall(prose)[-1], before.count('\n'), match[2]


def anchors(page):
    headings = HEADING.findall(FENCE.sub('', read(page)))
    return {
        re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
        for heading in headings
    }


SNIPPETS = [
    pytest.param(line, code, id=f'{heading} (line {line + 1})')
    for heading, line, code in blocks('README.md', 'python')
]


@pytest.mark.parametrize(('line', 'code'), SNIPPETS)
def test_snippet(line, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Blank lines in front make a traceback point to the line in the README:
    program = compile('\n' * line + code, str(ROOT / 'README.md'), 'exec')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        exec(program, {'__name__': 'readme'})


def test_snippets_are_found():
    assert len(SNIPPETS) == read('README.md').count('```python\n') > 5


def test_there_are_two_commands():
    commands = [code for _, _, code in blocks('README.md', 'bash')]
    assert len(commands) == 2
    demo, tests = commands
    assert demo.endswith('python examples/amazon_sports.py --demo\n')
    assert tests.endswith('pytest --cov\n')
    for code in commands:  # One command, however many lines it takes.
        lines = code.splitlines()
        assert all(line.endswith(' &&') for line in lines[:-1])
        assert not lines[-1].endswith('&&')


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for link in LINK.findall(FENCE.sub('', read(page))):
        if link.startswith('https://'):
            continue
        path, _, fragment = link.partition('#')
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.is_file(), link
        assert not fragment or fragment in anchors(target), link


def test_links_are_found():
    links = LINK.findall(read('README.md'))
    assert 'docs/architecture.svg' in links
    assert 'https://arxiv.org/abs/2601.11151' in links


def test_architecture_is_well_formed():
    root = ElementTree.parse(ROOT / 'docs' / 'architecture.svg').getroot()
    assert root.tag == '{http://www.w3.org/2000/svg}svg'
    assert root.find('{http://www.w3.org/2000/svg}title').text


def test_folder_trees_name_what_exists():
    (tree,) = [
        code
        for heading, _, code in blocks('README.md', 'text')
        if heading == 'What is where'
    ]
    folder = ROOT
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(' '):
            folder = ROOT
        assert (folder / name).exists(), name
        if not line.startswith(' '):
            folder = ROOT / name
