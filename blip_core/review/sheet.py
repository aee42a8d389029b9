"""The sheet that a person fills in: one HTML file that needs no server and no network.

Texts of the crawl are on it, written by anybody. They stand in the file as JSON without `<`, `>` and `&`, and the script puts them on the
page as text nodes alone; the page's own policy lets nothing run or load but that one script, told by its hash.
"""

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from blip_core.explain.sources import told
from blip_core.files.atomic import new_file
from blip_core.metadata.folder import NAME, metadata_of
from blip_core.pictures.containers import media_type
from blip_core.pictures.images import decode_rgb
from blip_core.review.choose import Card, Row, Rule, choose_cards, read_rule
from blip_core.selection.labels import VERSION, Pair
from blip_core.tables.manifest import content_hash, read_manifest
from blip_core.tables.shards import ShardImages

MOST_BYTES = 10_500  # of a picture; as base64 a third more
SIDES, QUALITIES = (384, 320, 256, 192, 128, 96, 48), (82, 70, 58)  # pixels of the longer side
MOST_OTHERS, MOST_OTHER_CHARS = 6, 300  # of a picture's other texts, which are shown for company alone
Maps = Callable[[list[Card], ShardImages], dict[str, Any]]  # where the filter looked (maps.py)
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def write_sheet(
    generation: Path, shards: Path, out: Path, *, count: int, seed: int, maps: Maps | None = None, **asked: Any
) -> dict[str, int]:
    """Draw `count` texts of a generation and write the sheet; returns how many texts and pictures stand on it, and its bytes. With
    `maps` or without it is the same sheet, so that labels of both join. `asked`: options of choose.read_rule."""
    rule = read_rule(generation)
    cards = choose_cards(generation, rule=read_rule(generation, **asked), count=count, seed=seed)
    drawn = {"generation": content_hash(generation)[:16], "asked": "kept" if asked.get("kept") else "all"}
    if scores := read_manifest(generation).get("parents", {}).get("scores"):
        drawn["candidates"] = scores[:16]
    fields = _fields(cards, shards.parent / NAME)
    page = as_page(cards, ShardImages(shards), rule=rule, name=generation.name, drawn=drawn, maps=maps, fields=fields)
    with new_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return {"texts": sum(len(card.rows) for card in cards), "pictures": len(cards), "bytes": out.stat().st_size}


def as_page(
    cards: list[Card],
    images: ShardImages,
    *,
    rule: Rule,
    name: str,
    drawn: dict[str, str],
    maps: Maps | None = None,
    fields: list[dict[str, str]] | None = None,
) -> str:
    """The whole file. `name`: what the generation is called; `drawn`: what each label says of what it was drawn of; `fields`: of each
    card what the source says of its picture."""
    about = {"version": VERSION, "name": name, "drawn": drawn, "score": rule.score, "threshold": rule.threshold}
    body = {**about, "cards": [{"rows": [*map(_row, card.rows)], "others": list(_others(card))} for card in cards]}
    sheet = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
    pictures = [_picture(images, card.rows[0].pair) for card in cards]
    found = maps and maps(cards, images)
    beside = {"pictures": pictures, "maps": found, "fields": fields}
    data = json.dumps({"sheet": sheet, **body, **beside}, ensure_ascii=False).translate(_ESCAPES)
    return _fill(_part("sheet.html"), title=escape(f"Do the texts fit? {name}"), data=data)


def _fill(page: str, *, title: str, data: str) -> str:
    style, script = _part("sheet.css"), _part("sheet.js")
    allowed = f"img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    parts = {"policy": policy, "title": title, "style": style, "data": data, "script": script}
    before, *rest = page.split("{{")
    found = [before]
    for piece in rest:  # each part once: what stands in a part is no place for another
        place, after = piece.split("}}", 1)
        found += [parts[place], after]
    return "".join(found)


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _row(row: Row) -> dict[str, Any]:
    return {**row.pair._asdict(), "reason": row.reason, "filter": row.filter, "scores": _rounded(row), "weight": row.weight}


def _others(card: Card) -> Iterator[dict[str, Any]]:
    for row in card.others[:MOST_OTHERS]:
        text = row.pair.text if len(row.pair.text) <= MOST_OTHER_CHARS else f"{row.pair.text[:MOST_OTHER_CHARS]}…"
        yield {"source": row.pair.source, "text": text, "reason": row.reason, "scores": _rounded(row)}


def _fields(cards: list[Card], metadata: Path) -> list[dict[str, str]] | None:
    """Of each card's picture; each shard's table is read once."""
    if not metadata.exists():
        return None
    found: dict[str, dict[str, str]] = {}
    pairs = [card.rows[0].pair for card in cards]
    for shard in {pair.shard for pair in pairs}:
        keys = [pair.key for pair in pairs if pair.shard == shard]
        found |= zip(keys, map(told, metadata_of(metadata, shard, keys).to_pylist()), strict=True)
    return [found[pair.key] for pair in pairs]


def _rounded(row: Row) -> dict[str, float]:
    return {name: round(value, 4) for name, value in row.scores.items()}


def _picture(images: ShardImages, pair: Pair) -> dict[str, Any]:
    """The stored file where it is small, else the largest JPEG of some sizes and qualities that is small enough."""
    stored = images.bytes(pair.shard, pair.key)
    image = Image.fromarray(decode_rgb(stored))
    files = _smaller(image) if len(stored) > MOST_BYTES or max(image.size) > SIDES[0] else iter([stored])
    data = next(file for file in files if len(file) <= MOST_BYTES)
    width, height = images.size(pair.shard, pair.key)
    return {"src": f"data:{media_type(data)};base64,{base64.b64encode(data).decode()}", "width": width, "height": height}


def _smaller(image: Image.Image) -> Iterator[bytes]:
    """Down to 48 pixels, of which not even noise takes too many bytes."""
    for side in SIDES:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in QUALITIES:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=quality, optimize=True)
            yield buffer.getvalue()
