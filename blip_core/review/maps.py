"""Where the filter looked when it judged the texts of a sheet."""

import base64
from pathlib import Path
from typing import Any

import numpy as np

from blip_core.capfilt.plugins import BLIP, identify, kind_of, open_blip
from blip_core.compute.pixels import read_picture
from blip_core.gradcam.picture import scaled
from blip_core.gradcam.words import How, Look, look_for_match
from blip_core.model.blip2 import require_blip
from blip_core.review.choose import Card
from blip_core.tables.shards import ShardImages


def filter_maps(cards: list[Card], images: ShardImages, folder: Path) -> dict[str, Any]:
    """`cards`: for each card and each of its texts, the whole and each word with its map: `side` x `side` bytes in base64, from the map's
    own weakest patch (0) to its strongest (255). `layer`: counted from 1. `folder`: the filter by which the texts were scored.

    ValueError when it is another model than that, or none whose cross-attention can tell."""
    if kind_of(folder) != BLIP:
        raise ValueError(f"{folder}: no BLIP, and only its ITM has a map; a CLIP or a vision-language model tells not where it looked")
    rows = [row for card in cards for row in card.rows]
    identity, scored = identify(folder), sorted({row.filter for row in rows})
    if not any(identity in name for name in scored):
        raise ValueError(f"{folder}: filter {identity}, but the texts were scored by {', '.join(scored)}; name that one's folder")
    _, judge = open_blip(folder, precision="auto")
    model = require_blip(judge.model, f"{folder}: a map")
    pictures = [judge.prepare(read_picture(images, row.pair.shard, row.pair.key)) for row in rows]
    how = How(judge.max_tokens, judge.precision)
    looks = iter(look_for_match(model, judge.tokenizer, pictures, [row.pair.text for row in rows], how))
    found = [[next(looks) for _ in card.rows] for card in cards]
    first = found[0][0]
    return {"layer": first.layer + 1, "side": len(first.whole), "cards": [[_words(look) for look in card] for card in found]}


def _words(look: Look) -> list[dict[str, str]]:
    pairs = [("all", look.whole), *zip(look.words, look.weights, strict=True)]
    return [{"word": word, "map": base64.b64encode(np.uint8(255 * scaled(weights)).tobytes()).decode()} for word, weights in pairs]
