r"""The page of explanations, and `examples/explain.py`, which writes it."""

import base64
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
import torch
from toys import ITEMS, SIMILAR, get_data, get_model, get_ranker

import crane_pyg.transforms as T
from crane_pyg.datasets import FakeMultimodalDataset
from crane_pyg.explain import explain_scores, save_page
from crane_pyg.explain.page import (
    COLORS,
    Item,
    Pick,
    Reader,
    read_items,
    render,
)
from crane_pyg.nn import CRANE

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
        names = re.findall(r'(?:^| \+ )([a-z_]+) -?\d', terms)
        modalities = ['semantic_image', 'semantic_text']
        assert names[:4] == ['behavior', *modalities, 'item_graph']
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
    model = CRANE(30, 40, {'image': 8, 'text': 6}, channels=8)
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


def test_save_page(tmp_path):
    r"""It shows what `explain_scores` returns for the list of each user."""
    data, model = get_data(lonely=6), get_model()
    items = [{'item': 1, 'title': 'One'}, {'item': np.int64(2), 'title': 2}]
    path = tmp_path / 'page.html'
    state = torch.get_rng_state()
    for ranker in [None, get_ranker(model, data)]:
        users = torch.tensor([3, 6])
        options = {'title': 'T & t', 'note': '<n>'}
        save_page(path, model, data, users, 5, ranker, items, **options)
        parsed = Parsed(path.read_text(encoding='utf-8'))
        assert parsed.texts.count('T & t') == 2
        assert '<n>' in parsed.texts
        assert parsed.texts.count('nothing yet') == 1
        top = (ranker or model).recommend(*top_arguments(ranker, data, users))
        for user, row in zip([3, 6], top, strict=True):
            out = explain_scores(model, data, user, row, ranker)
            for score in out.score.tolist():
                assert f'{score:.2f}' in parsed.texts
            for part in out.parts.values():
                for value in part.tolist():
                    assert f'{value:+.2f}' in parsed.texts
        names = [get_title(item) for item in top.flatten().tolist()]
        assert set(names) <= set(parsed.titles)
        assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert os.listdir(tmp_path) == ['page.html']


def top_arguments(ranker, data, users):
    return (users, 5) if ranker is not None else (data, users, 5)


def get_title(item):
    return {1: 'One', 2: '2'}.get(item, f'Item {item}')


def test_carriers(tmp_path):
    r"""They are the items that carry most, and nothing below zero."""
    data, model = get_data(), get_model()
    ranker, path = get_ranker(model, data), tmp_path / 'page.html'
    save_page(path, model, data, [3], 38, ranker)
    out = explain_scores(model, data, 3, ranker.recommend(3, 5)[0], ranker)
    carried = sum(out.carriers.values())
    picks = path.read_text(encoding='utf-8').split('<li class="pick">')[1:]
    assert len(picks) == ITEMS - out.history.numel() < 38
    for pick, row in zip(picks, carried, strict=False):
        why = pick[pick.index('"why"') :]
        expected = row.topk(3)
        titles = [f'Item {n}' for n in out.history[expected.indices].tolist()]
        assert Parsed(why).titles == titles
        values = re.findall(r'<b>(.*?)</b>', why)
        assert values == [f'{value:+.2f}' for value in expected.values]
        pairs = re.findall(r'edges ([+-][.\d]+), paths ([+-][.\d]+)<', why)
        totals = [float(x) + float(y) for x, y in pairs]
        assert totals == pytest.approx(expected.values.tolist(), abs=0.011)


def test_save_page_without_item_graph(tmp_path):
    data, model = get_data(), get_model(num_item_layers=0)
    del data[SIMILAR]
    save_page(tmp_path / 'page.html', model, data, [3], 5)
    html = (tmp_path / 'page.html').read_text(encoding='utf-8')
    assert '<h4>carried by' in html
    assert '<h4>resembles' not in html


def test_save_page_refuses(tmp_path):
    data, model = get_data(lonely=6), get_model()
    path = tmp_path / 'page.html'
    path.write_text('before')
    ranker = get_ranker(model, data, 'empty')
    for users, more, match in [
        ([30], {}, r"'user_index' .* \(got 30\)"),
        ([3], {'k': 41}, r"'k' .* \(got 41\)"),
        ([3], {'items': [{'item': 40}]}, r"row 1 of 'items' .* 39 \(got {"),
        ([3, 6], {'ranker': ranker}, r'history.*\(got user 6\)'),
    ]:
        with pytest.raises(ValueError, match=match):
            save_page(path, model, data, users, **more)
    assert os.listdir(tmp_path) == ['page.html']
    assert path.read_text() == 'before'
    with pytest.raises(FileNotFoundError, match='nowhere'):
        save_page(tmp_path / 'nowhere' / 'a.html', model, data, [3])


def test_hues_are_those_of_alike_items(tmp_path):
    data, model = get_data(), get_model(use_id=False, mode=None)
    for name in ['image', 'text']:
        x = data['item'][f'x_{name}']
        x[:20], x[20:] = x[0].nan_to_num(), x[39].nan_to_num()
    save_page(tmp_path / 'page.html', model, data, [3], 30)
    html = (tmp_path / 'page.html').read_text(encoding='utf-8')
    tile = re.compile(r'title="Item (\d+)"><i class="tile" style="--h:(\d+)"')
    hues = [
        {h for n, h in tile.findall(html) if (int(n) < 20) is b}
        for b in (True, False)
    ]
    assert len(hues[0]) == len(hues[1]) == 1
    assert hues[0] != hues[1]


@pytest.mark.parametrize('suffix', ['csv', 'json'])
def test_read_items(tmp_path, suffix):
    path = tmp_path / f'items.{suffix}'
    path.write_text(
        'item,title,image\n1,,a.png\n'
        if suffix == 'csv'
        else '[{"item": 1, "image": "a.png"}]'
    )
    first, second = read_items(path, [10, 20])
    assert first == ('Item 0', None, 10)
    assert second == ('Item 1', tmp_path / 'a.png', 20)
    rows = [{'item': 1, 'title': float('nan'), 'image': 'a.png'}]
    assert read_items(rows, [10, 20])[1] == ('Item 1', Path('a.png'), 20)
    with pytest.raises(ValueError, match=rf'row 1 of {path} .* and 0 \(got {{'):
        read_items(path, [10])


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
def test_read_items_of_no_item(tmp_path, suffix, content):
    path = tmp_path / f'items.{suffix}'
    path.write_text(content)
    with pytest.raises(ValueError, match=rf'row 2 of {path} .* and 1 \(got '):
        read_items(path, [10, 20])


def test_read_items_of_other_programs(tmp_path):
    path = tmp_path / 'items.csv'
    row = '\ufeffitem,title\r\n1,"One\u2028\n""two"""\r\n'
    path.write_bytes(row.encode())
    assert read_items(path, [1, 2])[1] == ('One\u2028\n"two"', None, 2)
    path = tmp_path / 'items.json'
    path.write_text(
        '[{"item": 0, "title": 5}, {"item": 1, "title": "a\\ud83d"}]'
    )
    titles = [item.title for item in read_items(path, [10, 20])]
    assert titles == ['5', 'a?']


def test_embed(tmp_path):
    (tmp_path / 'a.png').write_bytes(PNG)
    address = Item('', tmp_path / 'a.png').source
    assert address.startswith('data:image/png;base64,')
    assert base64.b64decode(address.split(',')[1]) == PNG
    for name in ['a.svg', 'a.html', 'passwd']:
        with pytest.raises(ValueError, match=rf'image/png.*{name}'):
            _ = Item('', tmp_path / name).source


def get_reader(image=None):
    item = Item(HOSTILE, image)
    carriers = [(Item('Item 4'), 1.5, -0.25)]
    picks = [
        Pick(item, 3.0, [1.0, 4.0, -2.0], carriers, [item]),
        Pick(Item(''), -2.0, [-1.0, 0.0, -1.0], [], []),
    ]
    return Reader(HOSTILE, [item] + 46 * [Item('Item 4')], picks)


NAMES = ['one', f'neighbors_{HOSTILE}', 'three']


def test_render(tmp_path):
    (tmp_path / 'a.png').write_bytes(PNG)
    reader = get_reader(tmp_path / 'a.png')
    html = render(HOSTILE, HOSTILE, NAMES, [reader])
    parsed = Parsed(html)
    parsed.check_harmless()
    assert parsed.tags.count('img') == 3
    assert parsed.texts.count('resembles') == 1
    assert HOSTILE in parsed.texts
    assert 'and 7 more' in parsed.texts
    assert 'edges +1.50, paths -0.25' in parsed.texts
    assert 'no item of the history' in parsed.texts
    (label,) = [v for k, v in parsed.attrs if k == 'aria-label' and '+4' in v]
    assert label == f'one +1.00, {HOSTILE} +4.00, three -2.00'

    # Negative parts are to the left of zero, others to the right:
    assert re.findall(r'viewBox="(.*?)"', html) == 2 * ['-2 0 7 24']
    bars = re.findall(r'x="(-?[\d.]+)" width="([\d.]+)"', html)
    expected = [(0, 1), (1, 4), (-2, 2), (-1, 1), (0, 0), (-2, 1)]
    assert [tuple(map(float, bar)) for bar in bars] == expected


def test_render_nothing():
    parsed = Parsed(render('', '', NAMES, [Reader('Nobody', [], [])]))
    assert 'nothing yet' in parsed.texts
    assert parsed.tags.count('svg') == 0


def test_colors_are_distinct():
    r"""Also without their hue: neighbors in a bar differ in brightness."""
    rgb = [
        [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)] for color in COLORS
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
def test_browser_screenshot(example, tmp_path, dark):
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
    for color in COLORS[:5]:
        rgb = [int(color[n : n + 2], 16) for n in (1, 3, 5)]
        assert (np.abs(pixels - rgb).max(axis=-1) <= 2).sum() > 100, color
