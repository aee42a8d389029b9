"""Scores of texts against pictures, as filters give them and as caption tables hold them. Nothing here needs torch."""

import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.tables.captions import OPINION, SCHEMA

_SURE = 1e-15  # a P(match) of the ITM head this near to 0 or 1 says no more


@dataclass(frozen=True)
class PairScores:
    """Scores of each text of each image, flat in the order given. NaN throughout where a filter has no such score."""

    itm_logit: np.ndarray  # match minus mismatch
    itc: np.ndarray  # cosine

    @property
    def itm(self) -> np.ndarray:
        """P(match) of the ITM head, raw."""
        return 1 / (1 + np.exp(-self.itm_logit))

    def where(self, rows: np.ndarray) -> "PairScores":
        """Of some rows, by mask."""
        return PairScores(self.itm_logit[rows], self.itc[rows])


def pair_scores(table: pa.Table) -> PairScores:
    """What the columns itm and itc hold; NaN for null."""
    itm, itc = (table[name].to_numpy() if table[name].null_count == 0 else _with_nan(table[name]) for name in ("itm", "itc"))
    itm = np.clip(itm, _SURE, 1 - _SURE)
    return PairScores(np.log(itm) - np.log1p(-itm), itc)


def _with_nan(column: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(column, math.nan).to_numpy()


def opinions(table: pa.Table) -> list[pa.Table]:
    """Of the further filters, in order, each as a table of OPINION's fields with a row for each row of `table`."""
    column = table["opinions"].combine_chunks()
    most = pc.max(pc.list_value_length(column)).as_py() or 0
    if not most:
        return []
    if column.null_count or pc.min(pc.list_value_length(column)).as_py() != most:
        raise ValueError(f"expected {most} opinions of further filters on every text, but some have fewer; run score again")
    parts = [pc.list_element(column, i) for i in range(most)]
    names = [field.name for field in OPINION]
    return [pa.table({name: pc.struct_field(part, name) for name in names}) for part in parts]


def set_opinions(table: pa.Table, judged: list[pa.Table]) -> pa.Table:
    """The table with these as its column `opinions`; none of them leaves it null."""
    if not judged:
        column = pa.nulls(table.num_rows, SCHEMA.field("opinions").type)
    else:
        order = np.arange(len(judged) * table.num_rows).reshape(len(judged), -1).T.ravel()  # those of a row together
        flat = pa.concat_tables(judged).take(pa.array(order)).to_struct_array()
        offsets = pa.array(np.arange(table.num_rows + 1, dtype=np.int32) * len(judged))
        column = pa.ListArray.from_arrays(offsets, flat.combine_chunks() if isinstance(flat, pa.ChunkedArray) else flat)
        column = column.cast(SCHEMA.field("opinions").type)
    return table.set_column(SCHEMA.get_field_index("opinions"), SCHEMA.field("opinions"), column)
