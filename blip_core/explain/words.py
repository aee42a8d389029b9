"""Words of texts in any script, for counting: Arrow's Unicode expressions, a whole table at a time.

A word is a run of letters, digits and the marks on them, with apostrophes inside; separators within a number stay ("1,000", "3.5").
Scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have no such runs: there each character, with its marks,
counts as a word, as BERT's tokenizer does with Chinese. Underscores and all other signs part words.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from blip_core.texts import scripts

_END = "\x02"  # stands for the end of a sentence until the words are parted
_LETTER = r"\p{L}\p{N}\p{M}"
_STEPS = (
    (r"[’ʼ＇]", "'"),
    (r"[.!?…:;。！？：；\n]+([\s\"'”’)\]]|$)|[。！？：；]", rf" {_END} "),
    (r"[.,]+([^\p{N}]|$)", r" \1"),  # a separator stays between digits alone
    (r"(^|[^\p{N}])[.,]", r"\1 "),
    (rf"'+([^{_LETTER}]|$)", r" \1"),
    (rf"(^|[^{_LETTER}])'+", r"\1 "),
    (rf"[^{_LETTER}'.,{_END}]+", " "),
    (rf"([{scripts.RE2}]\p{{M}}*)", r" \1 "),
)


def words_of(texts: pa.ChunkedArray | pa.Array) -> pa.Table:
    """The words of all texts one below the other: `row` of the text, `word` in lower case, `number` (it has a digit), and by how they
    are written `name` and `plain` (`_by_case`, `_by_script`)."""
    combined = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    for pattern, by in _STEPS:
        combined = pc.replace_substring_regex(combined, pattern, by)
    parted = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(combined))
    row, piece = pc.list_parent_indices(parted), pc.list_flatten(parted)
    real = pc.greater(pc.utf8_length(piece), 0)
    row, piece = row.filter(real), piece.filter(real)
    first = _begins_sentence(row, piece)
    real = pc.not_equal(piece, _END)
    row, piece, first = row.filter(real), piece.filter(real), first.filter(real)
    name, plain = _by_script(row, piece, *_by_case(row, piece, first))
    number = pc.match_substring_regex(piece, r"\p{N}")
    return pa.table({"row": row, "word": pc.utf8_lower(piece), "number": number, "name": name, "plain": plain})


def _begins_sentence(row: pa.Array, piece: pa.Array) -> pa.Array:
    """Whether a piece is the first of its text or stands behind the end of a sentence."""
    if not len(row):
        return pa.array([], pa.bool_())
    after = pa.concat_arrays([pa.array([True]), pc.equal(piece[:-1], _END)])
    return pc.or_(after, pa.concat_arrays([pa.array([True]), pc.not_equal(row[1:], row[:-1])]))


def _by_case(row: pa.Array, piece: pa.Array, first: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Which words begin with a capital inside a sentence, as names do, and which are written small.

    Only in texts whose case says something: in one without a small word of four letters or more ("Red Shoes for Sale", "SALE") every
    word is a capital one, and in one that is all small no name can be told."""
    capital, small = pc.match_substring_regex(piece, r"^[\p{Lu}\p{Lt}]"), pc.match_substring_regex(piece, r"^\p{Ll}")
    telling = pc.unique(row.filter(pc.and_(small, pc.greater_equal(pc.utf8_length(piece), 4))))
    telling = pc.is_in(row, value_set=telling)
    return pc.and_(pc.and_(capital, pc.invert(first)), telling), pc.and_(small, telling)


def _by_script(row: pa.Array, piece: pa.Array, name: pa.Array, plain: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The same, but in texts mostly of letters without case (Chinese, Japanese, Korean, Thai, Arabic, Hebrew, Hindi …) a word of other
    letters is a name, as a brand in a Chinese text; those of two letters are units and the like.

    Names in the text's own script can't be told there: among its rare words they count."""
    if not len(row):
        return name, plain
    rows, caseless = row.to_numpy(), pc.match_substring_regex(piece, r"\p{Lo}").to_numpy(zero_copy_only=False)
    cased = pc.match_substring_regex(piece, r"[\p{Lu}\p{Ll}\p{Lt}]").to_numpy(zero_copy_only=False) & ~caseless
    here = (np.bincount(rows, caseless) >= np.bincount(rows, cased))[rows] & (np.bincount(rows, caseless) > 0)[rows]
    foreign = here & cased & pc.match_substring_regex(piece, r"\p{L}{3}").to_numpy(zero_copy_only=False)
    elsewhere = pa.array(~here)
    return pc.or_(pc.and_(name, elsewhere), pa.array(foreign)), pc.and_(plain, elsewhere)
