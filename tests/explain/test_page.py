r"""The page that `examples/explain.py` writes."""

import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset

EXAMPLES = Path(__file__).parents[2] / 'examples'
HOSTILE = (
    '<script>document.title="owned"</script></style></title></svg>'
    '<img src=x onerror=\'document.title="owned"\'>" onload="x" \u202e&amp; '
    "' --><b>bold</b>"
)
PNG = base64.b64decode(
    'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA'
    '60e6kgAAAABJRU5ErkJggg=='
)
TAGS = (
    *('html', 'head', 'meta', 'title', 'style', 'body', 'header', 'main'),
    *('h1', 'h2', 'h3', 'h4', 'p', 'nav', 'a', 'aside', 'section', 'div'),
    *('ul', 'ol', 'li', 'i', 'b', 'bdi', 'span', 'small', 'img'),
    *('svg', 'rect', 'line'),
)
BROWSER = next(
    filter(
        None,
        map(shutil.which, ['chromium', 'chromium-browser', 'google-chrome']),
    ),
    None,
)
browser = pytest.mark.skipif(
    BROWSER is None,
    reason='no chromium, chromium-browser or google-chrome is installed',
)


class Parsed(HTMLParser):
    r"""What a browser makes of a page, as far as it matters here."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attrs, self.texts = [], [], []
        self.titles = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attrs += attrs
        if ('class', 'item') in attrs:
            self.titles.append(dict(attrs)['title'])

    def handle_data(self, data):
        self.texts.append(data)

    def check_harmless(self):
        assert set(self.tags) <= set(TAGS)
        assert self.tags.count('title') > 0
        for key, value in self.attrs:
            assert not key.startswith('on')
            if key == 'href':
                assert re.fullmatch(r'#u\d+', value)
            if key == 'src':
                assert value.startswith('data:image/')


@pytest.fixture(scope='module')
def page():
    path = EXAMPLES / 'page.py'
    spec = importlib.util.spec_from_file_location('page', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(folder, *args):
    return subprocess.run(
        [sys.executable, str(EXAMPLES / 'explain.py'), *map(str, args)],
        cwd=folder,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture(scope='module')
def example(tmp_path_factory):
    r"""The folder and the output of a run, in which all titles are hostile."""
    folder = tmp_path_factory.mktemp('example')
    rows = [{'item': n, 'title': f'{HOSTILE} {n}'} for n in range(400)]
    rows[5]['image'] = 'dot.png'
    (folder / 'dot.png').write_bytes(PNG)
    (folder / 'items.json').write_text(json.dumps(rows))
    args = ['--items', 'items.json', '--epochs', 1, '--users', 3, 599]
    out = run(folder, 'why.html', *args)
    assert out.returncode == 0, out.stderr
    return folder, out.stdout


def test_example(example):
    folder, stdout = example
    assert stdout.startswith('These are fake data, made up on the spot.\n')
    assert stdout.endswith('Written to why.html\n')
    lines = re.findall(r'^User (\d+): .* (\S+) = (.*)$', stdout, re.MULTILINE)
    assert [line[0] for line in lines] == ['3', '599']
    for _, score, terms in lines:
        names = re.findall(r'(?:^| \+ )([a-z ]+) -?\d', terms)
        assert names[:5] == [
            'behavior',
            'image',
            'text',
            'similar items',
            'chosen together',
        ]
        parts = [float(x) for x in re.findall(r'-?\d+\.\d+', terms)]
        assert len(parts) == len(names)
        assert sum(parts) == pytest.approx(float(score), abs=0.05)
        assert float(score) > 0.1

    html = (folder / 'why.html').read_text(encoding='utf-8')
    parsed = Parsed(html)
    parsed.check_harmless()
    style = html[html.index('<style>') : html.index('</style>')]
    assert 'url(' not in style
    assert '@import' not in style
    assert 'http:' not in html
    assert 'https:' not in html
    assert parsed.tags.count('section') == 2
    assert parsed.tags.count('svg') == 20
    assert sum(HOSTILE in text for text in parsed.texts) > 20
    # Of every recommended item, the numbers add up to its score:
    picks = html.split('<li class="pick">')[1:]
    assert len(picks) == 20
    for pick in picks:
        score = float(re.search(r'"score">(-?[\d.]+)<', pick)[1])
        numbers = pick[pick.index('"numbers"') : pick.index('"why"')]
        parts = re.findall(r'<b>([+-][\d.]+)</b>', numbers)
        assert sum(map(float, parts)) == pytest.approx(score, abs=0.05)


def test_example_own_data_and_model(tmp_path):
    pytest.importorskip('safetensors')
    from crane_pyg.nn import CRANE

    dataset = FakeMultimodalDataset(30, 40, {'image': 8, 'text': 6})
    folder, data = tmp_path / 'shop', dataset[0]
    folder.mkdir()
    lines, store = ['userID\titemID\tx_label'], data['user', 'rates', 'item']
    pairs = store.edge_index.t().tolist()
    for label, key in enumerate(
        ['edge_index', 'val_edge_label_index', 'test_edge_label_index']
    ):
        lines += [f'{u}\t{i}\t{label}' for u, i in store[key].t().tolist()]
    (folder / 'shop.inter').write_text('\n'.join(lines))
    for name in dataset.modalities:
        x = data['item'][f'x_{name}'].numpy()
        np.save(folder / f'{name}_feat.npy', x)
    weights = {'co_rated': 2.0}
    model = CRANE(
        30, 40, {'image': 8, 'text': 6}, channels=8, neighbor_weights=weights
    )
    model.save_pretrained(tmp_path / 'model')
    titles = 'item,title,image\n1,"One, two",\n7,Seven,\n'
    (tmp_path / 'items.csv').write_text(titles)

    files = sorted(os.listdir(folder))
    args = [
        '--data',
        'shop',
        '--root',
        'cache',
        '--model',
        'model',
        '--items',
        'items.csv',
    ]
    out = run(tmp_path, 'why.html', *args, '--k', 38, '--users', 29)
    assert out.returncode == 0, out.stderr
    assert sorted(os.listdir(folder)) == files
    assert (tmp_path / 'cache' / 'processed' / 'shop' / 'data.pt').exists()
    assert out.stdout.startswith('Data: shop.\nUser 29: ')
    html = (tmp_path / 'why.html').read_text(encoding='utf-8')
    parsed = Parsed(html)
    parsed.check_harmless()
    assert {'One, two', 'Seven', 'Item 8'} <= set(parsed.texts)
    assert 'Item 7' not in parsed.texts
    # What is left of the catalogue without the history, fewer than 38:
    count = sum(user == 29 for user, _ in pairs)
    assert parsed.tags.count('svg') == 40 - count < 38
    check_neighbors(html, T.BuildDualGraph()(data))

    out = run(tmp_path, 'no.html', *args, '--users', 30)
    assert out.returncode == 1
    assert '(got 30)' in out.stderr.strip().splitlines()[-1]
    assert not (tmp_path / 'no.html').exists()


def check_neighbors(html, data):
    r"""Every item stands next to its four heaviest edges, in their order."""
    adj, store = np.zeros((40, 40)), data['item', 'similar_to', 'item']
    src, dst = store.edge_index.numpy()
    adj[dst, src] = store.edge_weight
    titles = [f'Item {n}' for n in range(40)]
    titles[1], titles[7] = 'One, two', 'Seven'
    for pick in html.split('<li class="pick">')[1:]:
        head, near = pick.split('<div class="near">')
        (item,) = Parsed(head).titles
        found = [
            titles.index(title)
            for title in Parsed(near[: near.index('</div>')]).titles
        ]
        row = adj[titles.index(item)]
        assert row[found].tolist() == sorted(row, reverse=True)[:4]
        assert len(set(found)) == 4


@pytest.mark.parametrize('suffix', ['csv', 'json'])
def test_read_items(page, tmp_path, suffix):
    path = tmp_path / f'items.{suffix}'
    path.write_text(
        'item,title,image\n1,,a.png\n'
        if suffix == 'csv'
        else '[{"item": 1, "image": "a.png"}]'
    )
    first, second = page.read_items(path, [10, 20])
    assert first == ('Item 0', None, 10)
    assert second == ('Item 1', tmp_path / 'a.png', 20)
    with pytest.raises(ValueError, match=rf'row 1 of {path} .* and 0 \(got {{'):
        page.read_items(path, [10])


@pytest.mark.parametrize(
    ('suffix', 'content'),
    [
        ('csv', 'item,title\n0,Zero\nabc,One\n'),
        ('csv', 'item,title\n0,Zero\n-1,One\n'),
        ('csv', 'item,title\n0,Zero\n1.9,One\n'),
        ('json', '[{"item": 0}, {"item": 1.9}]'),
        ('json', '[{"item": 0}, {"title": "One"}]'),
        ('json', '[{"item": 0}, 1]'),
    ],
)
def test_read_items_of_no_item(page, tmp_path, suffix, content):
    path = tmp_path / f'items.{suffix}'
    path.write_text(content)
    with pytest.raises(ValueError, match=rf'row 2 of {path} .* and 1 \(got '):
        page.read_items(path, [10, 20])


def test_read_items_of_other_programs(page, tmp_path):
    path = tmp_path / 'items.csv'
    path.write_bytes(b'\xef\xbb\xbfitem,title\r\n1,One\r\n')
    assert page.read_items(path, [10, 20])[1] == ('One', None, 20)
    path = tmp_path / 'items.json'
    path.write_text(
        '[{"item": 0, "title": 5}, {"item": 1, "title": "a\\ud83d"}]'
    )
    titles = [item.title for item in page.read_items(path, [10, 20])]
    assert titles == ['5', 'a?']


def test_embed(page, tmp_path):
    (tmp_path / 'a.png').write_bytes(PNG)
    address = page.embed(tmp_path / 'a.png')
    assert address.startswith('data:image/png;base64,')
    assert base64.b64decode(address.split(',')[1]) == PNG
    for name in ['a.svg', 'a.html', 'passwd']:
        with pytest.raises(ValueError, match=rf'image/png.*{name}'):
            page.embed(tmp_path / name)


def get_reader(page, image=None):
    item = page.Item(HOSTILE, image)
    carrier = page.Carrier(page.Item('Item 4'), 1.5, -0.25)
    picks = [
        page.Pick(item, 3.0, [1.0, 4.0, -2.0], [carrier], [item]),
        page.Pick(page.Item(''), -2.0, [-1.0, 0.0, -1.0], [], []),
    ]
    return page.Reader(HOSTILE, [item], 7, picks)


def render(page, *readers):
    kinds = [page.Kind(name, HOSTILE) for name in ['one', HOSTILE, 'three']]
    return page.render(HOSTILE, HOSTILE, kinds, list(readers))


def test_render(page, tmp_path):
    (tmp_path / 'a.png').write_bytes(PNG)
    html = render(page, get_reader(page, tmp_path / 'a.png'))
    parsed = Parsed(html)
    parsed.check_harmless()
    assert parsed.tags.count('img') == 3
    assert parsed.texts.count('resembles') == 1
    assert HOSTILE in parsed.texts
    assert 'and 7 more' in parsed.texts
    assert 'edges +1.50, paths -0.25' in parsed.texts
    assert 'no item of the history' in parsed.texts

    # From -2 to 5, so a part of one is a seventh of the width:
    bars = re.findall(r'x="(-?[\d.]+)" width="([\d.]+)"', html)
    expected = [(2, 1), (3, 4), (0, 2), (1, 1), (2, 0), (0, 1)]
    for bar, pair in zip(bars, expected, strict=True):
        sizes = [value * 1000 / 7 for value in pair]
        assert [float(x) for x in bar] == pytest.approx(sizes, abs=0.01)


def test_render_nothing(page):
    parsed = Parsed(render(page, page.Reader('Nobody', [], 0, [])))
    assert 'nothing yet' in parsed.texts
    assert parsed.tags.count('svg') == 0


def test_colors_are_distinct(page):
    r"""Also without their hue: neighbors in a bar differ in brightness."""
    rgb = [
        [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        for color in page.COLORS
    ]
    light = np.array(rgb) ** 2.2 @ [0.2126, 0.7152, 0.0722]
    assert np.abs(np.diff(light)).min() > 0.05


def chromium(folder, *args):
    out = subprocess.run(
        [BROWSER, '--headless', '--no-sandbox', '--disable-gpu']
        + ['--disable-dev-shm-usage', '--hide-scrollbars', '--no-first-run']
        + [f'--user-data-dir={folder / "profile"}', *args],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


@browser
def test_browser_runs_nothing(example, tmp_path):
    path = example[0] / 'why.html'
    dom = chromium(tmp_path, '--dump-dom', path.as_uri())
    parsed = Parsed(dom)
    parsed.check_harmless()
    assert '<title>Why these items?</title>' in dom
    assert parsed.tags.count('svg') == 20
    assert sum(HOSTILE in text for text in parsed.texts) > 20
    # Even a script that got in would not run:
    script = '<script>document.title = "owned"</script></body>'
    path = tmp_path / 'page.html'
    html = (example[0] / 'why.html').read_text(encoding='utf-8')
    path.write_text(html.replace('</body>', script), encoding='utf-8')
    dom = chromium(tmp_path, '--dump-dom', path.as_uri())
    assert '<title>Why these items?</title>' in dom
    assert 'document.title = "owned"' in dom
    # Which is due to the policy:
    policy = re.compile('<meta http-equiv="Content-Security-Policy"[^>]*>')
    html = policy.sub('', path.read_text(encoding='utf-8'), count=1)
    path.write_text(html, encoding='utf-8')
    dom = chromium(tmp_path, '--dump-dom', path.as_uri())
    assert '<title>owned</title>' in dom


@browser
@pytest.mark.parametrize('width', [320, 390, 900])
def test_browser_width(example, tmp_path, width):
    r"""Nothing sticks out of the page to the right, on a phone either."""
    html = (example[0] / 'why.html').read_text(encoding='utf-8')
    html = re.sub('<meta http-equiv=[^>]*>', '', html)
    inner = json.dumps(html).replace('</', '<\\/')
    frame = (
        f'<title></title><iframe width="{width}" height="800"></iframe><script>'
        "const frame = document.querySelector('iframe');"
        'frame.onload = () => {'
        '  const root = frame.contentDocument.documentElement;'
        '  const svg = root.querySelector("svg").getBoundingClientRect();'
        '  document.title = [root.clientWidth, root.scrollWidth, svg.width,'
        '    svg.height].join(" ");'
        f'}};frame.srcdoc = {inner};</script>'
    )
    path = tmp_path / 'frame.html'
    path.write_text(frame, encoding='utf-8')
    dom = chromium(
        tmp_path, '--window-size=1000,900', '--dump-dom', path.as_uri()
    )
    sizes = re.search('<title>(.*?)</title>', dom)[1].split()
    client, scroll, bar, height = map(float, sizes)
    assert client == pytest.approx(width, abs=20)
    assert scroll == client
    assert 0.5 * client < bar < client
    assert height == 24


@browser
@pytest.mark.parametrize('dark', [False, True])
def test_browser_screenshot(example, page, tmp_path, dark):
    image = pytest.importorskip('matplotlib.image')
    path = tmp_path / 'page.png'
    args = [f'--screenshot={path}', '--window-size=1000,1200']
    if dark:
        args.append('--blink-settings=preferredColorScheme=0')
    chromium(tmp_path, *args, (example[0] / 'why.html').as_uri())
    pixels = (image.imread(path)[..., :3] * 255).round().astype(int)
    assert pixels.shape == (1200, 1000, 3)
    background = (0x14, 0x17, 0x1C) if dark else (0xF6, 0xF5, 0xF1)
    assert tuple(pixels[2, 2]) == background
    for color in page.COLORS[:5]:
        rgb = [int(color[n : n + 2], 16) for n in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(axis=-1) <= 2).sum() > 100, color
