"""The scores of a whole table by one filter."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from blip_core.capfilt.med import Filter
from blip_core.capfilt.pace import paced
from blip_core.capfilt.pair_scores import PairScores
from blip_core.compute.pixels import read_picture
from blip_core.tables.shards import ShardImages

Group = tuple[tuple[str, str], list[int]]  # shard and key of a picture; the rows of its texts


def score_table(judge: Filter, table: pa.Table, images: ShardImages, *, batch_size: int, name: str = "") -> PairScores:
    """Scores of all rows of a table with the columns shard, key and text; each image is encoded once. `name` is the table's."""
    groups: dict[tuple[str, str], list[int]] = {}
    for row, image in enumerate(zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)):
        groups.setdefault(image, []).append(row)
    texts = judge.encode(table["text"].to_pylist())
    itm_logit, itc = np.empty(table.num_rows), np.empty(table.num_rows)

    def scored(batch: list[Group], pictures: list[Any]) -> list[tuple[list[int], PairScores]]:
        return [([r for _, rows in batch for r in rows], judge.score(pictures, [[texts[r] for r in rows] for _, rows in batch]))]

    # images with equally many texts and texts of one length go together, which keeps the padding small
    ordered = sorted(groups.items(), key=lambda item: (len(item[1]), max(len(texts[r]) for r in item[1])))
    read = partial(_prepared, judge, images)
    for _, found in paced(judge, read, scored, ordered, batch_size=batch_size, table=name):
        for rows, scores in found:
            itm_logit[rows], itc[rows] = scores.itm_logit, scores.itc
    return PairScores(itm_logit, itc)


def _prepared(judge: Filter, images: ShardImages, group: Group) -> Any:
    return judge.prepare(read_picture(images, *group[0]))
