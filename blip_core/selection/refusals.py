"""Answers of a captioner that are no captions, for it says that it can't or won't write one."""

import pyarrow as pa
import pyarrow.compute as pc

_SORRY = (
    r"(?:(?:i['’]?m|i am|we['’]?re|we are) (?:so |very |really )?sorry|sorry|i apologi[sz]e|my apologies|unfortunately)\b[^.!?]*?[\s,.!;:]+"
)
_CANNOT = r"(?:i|we) ?(?:can(?:['’]?t|not| not)|could(?:n['’]?t| not)|won['’]?t|will not|(?:['’]?m|am|['’]?re|are) (?:unable|not able))\b"
_REFUSAL = (
    rf"(?i)^\W*(?:(?:{_SORRY})?(?:but |that )?{_CANNOT}"
    r"|as an? (?:ai|artificial|large language|language model)\b"
    r"|i (?:don['’]?t|do not) have (?:the (?:ability|capability)|access)"
    # in other languages by the regret that it begins with
    r"|lo siento|no puedo|(?:je suis )?désolé|je ne peux|(?:es )?tut mir leid|ich kann leider|desculpe|não posso|mi dispiace|non posso"
    r"|很?抱歉|对不起|對不起|申し訳|죄송)"
)


def refuses(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Whether each text begins as a refusal does."""
    return pc.match_substring_regex(texts, _REFUSAL)
