r"""One HTML page that shows why a model recommends what it recommends. The
page needs no network, runs no script, and shows every text as it is.
"""

import base64
import csv
import json
import mimetypes
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

# Okabe and Ito chose them to be told apart by the colour-blind; in this order,
# neighbors differ in brightness as well:
COLORS: Final = (
    '#0072B2',
    '#E69F00',
    '#009E73',
    '#56B4E9',
    '#D55E00',
    '#CC79A7',
    '#F0E442',
    '#8C8C8C',
)
IMAGES: Final = ('image/png', 'image/jpeg', 'image/gif', 'image/webp')


class Item(NamedTuple):
    """How an item is shown: its title, its image, or else a tile."""

    title: str
    image: Path | None = None
    hue: int = 0


class Kind(NamedTuple):
    """A kind of parts: its name, and what it means."""

    name: str
    meaning: str


KINDS: Final = {
    'behavior': Kind('behavior', 'people who chose alike chose it'),
    'item_graph': Kind('similar items', 'it resembles what the user likes'),
    'neighbors_co_rated': Kind(
        'chosen together', 'others had it and items of the user'
    ),
    'neighbors_refined': Kind(
        'learned neighbors', 'the model puts it next to items of the user'
    ),
}


class Carrier(NamedTuple):
    """An item of the user, and what it carries of a score."""

    item: Item
    edges: float
    paths: float


class Pick(NamedTuple):
    """A recommended item, the parts of its score, what carries it, and the
    items that are most like it.
    """

    item: Item
    score: float
    parts: list[float]
    carriers: list[Carrier]
    neighbors: list[Item]


class Reader(NamedTuple):
    """A user, what it had (the last number of items is not shown), its list."""

    name: str
    history: list[Item]
    hidden: int
    picks: list[Pick]


def read_items(path: Path | None, hues: list[int]) -> list[Item]:
    """Reads titles and images; an item that is not in the file has its ID."""
    items = [Item(f'Item {n}', None, hue) for n, hue in enumerate(hues)]
    if path is None:
        return items
    with path.open(encoding='utf-8-sig', newline='') as file:
        rows = (
            json.load(file) if path.suffix == '.json' else csv.DictReader(file)
        )
        for number, row in enumerate(rows, start=1):
            index = _item_index(row)
            if not 0 <= index < len(items):
                raise ValueError(
                    f"'item' in row {number} of {path} needs to be between 0 "
                    f'and {len(items) - 1} (got {row})'
                )
            image = path.parent / row['image'] if row.get('image') else None
            title = str(row.get('title') or items[index].title)
            # Cut off in a pair of code units, it could not be written:
            title = title.encode('utf-8', 'replace').decode('utf-8')
            items[index] = Item(title, image, hues[index])
    return items


def _item_index(row: object) -> int:
    value = row.get('item') if isinstance(row, dict) else None
    return int(value) if str(value).isdecimal() else -1


def get_kind(part: str) -> Kind:
    """Returns how the page calls a part."""
    name = part.removeprefix('semantic_').removeprefix('neighbors_')
    return KINDS.get(part, Kind(name, f'its {name} suits the user'))


def render(
    title: str, note: str, kinds: list[Kind], users: list[Reader]
) -> str:
    """Returns the page, the kinds being those of all parts in their order."""
    legend = ''.join(
        f'<li>{_dot(n)}<div><b>{escape(kind.name)}</b> '
        f'<span>{escape(kind.meaning)}</span></div></li>'
        for n, kind in enumerate(kinds)
    )
    links = ''.join(
        f'<a href="#u{n}">{_text(user.name)}</a>'
        for n, user in enumerate(users)
    )
    body = ''.join(_user(n, user, kinds) for n, user in enumerate(users))
    colors = ''.join(
        f'.c{n}{{background:{color};fill:{color}}}'
        for n, color in enumerate(COLORS)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src '
        "'none'; style-src 'unsafe-inline'; img-src data:\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(title)}</title><style>{STYLE}{colors}</style></head>'
        f'<body><header><h1>{_text(title)}</h1><p>{_text(note)}</p>'
        f'<nav>{links}</nav></header><aside><h2>What a score is made of</h2>'
        f'<ul class="legend">{legend}</ul><p class="small">{HELP}</p></aside>'
        f'<main>{body}</main></body></html>\n'
    )


def _user(index: int, user: Reader, kinds: list[Kind]) -> str:
    chips = ''.join(f'<li>{_item(item)}</li>' for item in user.history)
    if user.hidden > 0:
        chips += f'<li class="small">and {user.hidden} more</li>'
    if not chips:
        chips = '<li class="small">nothing yet</li>'
    low = min((_ends(pick.parts)[0] for pick in user.picks), default=0.0)
    high = max((_ends(pick.parts)[1] for pick in user.picks), default=0.0)
    span = (low, max(high - low, 1e-12))
    picks = ''.join(_pick(pick, kinds, span) for pick in user.picks)
    return (
        f'<section id="u{index}"><h2>{_text(user.name)}</h2>'
        f'<h3>had</h3><ul class="chips">{chips}</ul>'
        f'<h3>is recommended</h3><ol class="picks">{picks}</ol></section>'
    )


def _pick(pick: Pick, kinds: list[Kind], span: tuple[float, float]) -> str:
    numbers = ''.join(
        f'<li>{_dot(n)}{escape(kind.name)} <b>{part:+.2f}</b></li>'
        for n, (kind, part) in enumerate(zip(kinds, pick.parts, strict=True))
    )
    carriers = ''.join(
        f'<li>{_item(item)}<span class="num"><b>{edges + paths:+.2f}</b> '
        f'<small>edges {edges:+.2f}, paths {paths:+.2f}</small></span></li>'
        for item, edges, paths in pick.carriers
    )
    if not carriers:
        carriers = '<li class="small">no item of the history</li>'
    near = ''.join(f'<li>{_item(item)}</li>' for item in pick.neighbors)
    if near:
        near = f'<div class="near"><h4>resembles</h4><ul>{near}</ul></div>'
    return (
        f'<li class="pick"><div class="head">{_item(pick.item)}'
        f'<span class="score">{pick.score:.2f}</span></div>'
        f'{_bar(pick, kinds, span)}<ul class="numbers">{numbers}</ul>{near}'
        f'<div class="why"><h4>carried by</h4><ul>{carriers}</ul></div></li>'
    )


def _bar(pick: Pick, kinds: list[Kind], span: tuple[float, float]) -> str:
    r"""Stacks positive parts to the right of zero, negative to the left."""
    low, width = span
    scale, out = 1000 / width, ''
    left = right = 0.0
    for n, part in enumerate(pick.parts):
        start = right if part >= 0 else left + part
        left, right = left + min(part, 0.0), right + max(part, 0.0)
        out += (
            f'<rect class="c{n % len(COLORS)}" y="2" height="20" '
            f'x="{(start - low) * scale:.2f}" '
            f'width="{abs(part) * scale:.2f}">'
            f'<title>{escape(kinds[n].name)} {part:+.4f}</title></rect>'
        )
    zero = -low * scale
    label = ', '.join(
        f'{kind.name} {part:+.2f}'
        for kind, part in zip(kinds, pick.parts, strict=True)
    )
    return (
        f'<svg viewBox="0 0 1000 24" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{out}<line class="zero" '
        f'x1="{zero:.2f}" x2="{zero:.2f}" y1="0" y2="24"/></svg>'
    )


def _item(item: Item) -> str:
    title = _text(item.title)
    if item.image is not None:
        tile = f'<img alt="" src="{embed(item.image)}">'
    else:
        letter = escape(item.title.strip()[:1] or '?')
        if item.title.startswith('Item '):
            letter = ''  # The number stands next to it.
        tile = (
            f'<i class="tile" style="--h:{item.hue}" aria-hidden="true">'
            f'{letter}</i>'
        )
    return (
        f'<span class="item" title="{escape(item.title)}">{tile}'
        f'<span class="name">{title}</span></span>'
    )


def embed(path: Path) -> str:
    """Returns an image file as an address that needs no network."""
    kind = mimetypes.guess_type(path.name)[0]
    if kind not in IMAGES:
        raise ValueError(
            f"An image needs to be one of {list(IMAGES)} (got '{path}')"
        )
    return f'data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}'


def _dot(n: int) -> str:
    return f'<i class="dot c{n % len(COLORS)}"></i>'


def _text(text: str) -> str:
    # Isolated, as a title may change the direction of what follows:
    return f'<bdi>{escape(text)}</bdi>'


def _ends(parts: list[float]) -> tuple[float, float]:
    return sum(min(p, 0.0) for p in parts), sum(max(p, 0.0) for p in parts)


HELP: Final = (
    'The parts add up to the score that the list is ranked by. Bars left of '
    'the line count against an item. “Carried by” names the items the user '
    'had: <b>edges</b> lead straight from them to the item, and count '
    'exactly; <b>paths</b> are the share of what was learned that rests on '
    'having had them, to first order. Learned tastes carry the rest. '
    '“Resembles” names its nearest neighbors in the item graph. Tiles of like '
    'colors are of items with like features.'
)
STYLE: Final = """
:root{--bg:#f6f5f1;--card:#fff;--ink:#1d2430;--soft:#626b78;--line:#e3e1da;
--accent:#0072B2}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--card:#1e232b;
--ink:#e9ebee;--soft:#9aa4b2;--line:#323945;--accent:#56B4E9}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1.5rem 1rem 4rem;color:var(--ink);
background:var(--bg);font:16px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
h1{font-size:clamp(1.5rem,5vw,2.3rem);line-height:1.15;margin:.4rem 0}
h2{font-size:1.3rem;margin:0 0 .6rem}
h3,h4{font-size:.78rem;letter-spacing:.08em;text-transform:uppercase;
color:var(--soft);margin:1.2rem 0 .5rem}
h4{margin:.2rem 0 .3rem}
p{margin:.3rem 0}header p,.small,small,.legend span{color:var(--soft)}
.small,small{font-size:.85rem}
ul,ol{list-style:none;margin:0;padding:0}
nav{display:flex;flex-wrap:wrap;gap:.5rem;margin:1rem 0}
nav a{padding:.3rem .9rem;border-radius:2rem;background:var(--card);
border:1px solid var(--line);color:var(--accent);text-decoration:none}
aside,section{background:var(--card);border:1px solid var(--line);
border-radius:1rem;padding:1.2rem;margin:0 0 1.5rem}
.legend{display:grid;gap:.35rem 1.5rem;margin-bottom:.7rem;
grid-template-columns:repeat(auto-fill,minmax(17rem,1fr))}
.legend li{display:grid;grid-template-columns:auto 1fr;align-items:baseline}
.dot{display:inline-block;width:.75em;height:.75em;border-radius:.2em;
margin-right:.4em}
.item{display:inline-flex;align-items:center;gap:.5rem;min-width:0}
.name{overflow-wrap:anywhere;display:-webkit-box;-webkit-line-clamp:3;
-webkit-box-orient:vertical;overflow:hidden}
.tile,.item img{flex:none;width:2.4rem;height:2.4rem;border-radius:.5rem;
object-fit:cover}
.tile{display:grid;place-items:center;font:600 .8rem/1 inherit;color:#1d2430;
font-style:normal;font-size:.8rem;background:hsl(var(--h) 55% 78%)}
.chips{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center}
.chips .item{padding:.2rem .7rem .2rem .2rem;border:1px solid var(--line);
border-radius:.7rem}
.picks{counter-reset:n;display:grid;gap:1rem}
.pick{counter-increment:n;display:grid;gap:.2rem 1.5rem;align-content:start;
border-top:1px solid var(--line);padding-top:1rem}
.head{display:flex;justify-content:space-between;gap:1rem;
align-items:center;font-weight:600;min-width:0}
.head .item:before{content:counter(n);color:var(--soft);min-width:1.3em;
text-align:right;font-variant-numeric:tabular-nums}
.score{font-size:1.25rem;font-variant-numeric:tabular-nums}
svg{display:block;width:100%;height:24px;margin:.3rem 0}
rect{stroke:var(--card);stroke-width:1;vector-effect:non-scaling-stroke}
.zero{stroke:var(--soft);stroke-width:1.5;vector-effect:non-scaling-stroke}
.numbers{display:flex;flex-wrap:wrap;gap:.1rem 1rem;font-size:.85rem;
align-content:start;color:var(--soft)}
.numbers b,.num b{color:var(--ink);font-variant-numeric:tabular-nums}
@media(max-width:51.99rem){.why{margin-top:.5rem}}
.why li{display:flex;justify-content:space-between;gap:.8rem;
align-items:center;padding:.12rem 0;font-size:.9rem}
.why .tile,.why img{width:1.8rem;height:1.8rem;font-size:.7rem}
.near{margin-top:.5rem;font-size:.85rem}
.near ul{display:flex;flex-wrap:wrap;gap:.3rem 1rem}
.near .tile,.near img{width:1.5rem;height:1.5rem;border-radius:.35rem;
font-size:.6rem}
.num{text-align:right;flex:none}.num small{display:block;line-height:1.1;
font-size:.72rem}
@media(min-width:52rem){.pick{grid-template:auto auto auto 1fr/1fr 22rem}
.why{grid-column:2;grid-row:1/span 4;border-left:1px solid var(--line);
padding-left:1.2rem}}
"""
