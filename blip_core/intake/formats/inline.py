"""Pictures that stand in a cell as text: base64, with or without `data:image/…;base64,` before it, or hexadecimal; as databases and
Python write them too (0x…, \\x…, b'…')."""

import base64
import binascii
import re

from blip_core.files.rejected import Rejected

# how JPEG, PNG, GIF, WebP begin
_BASE64 = ("/9j/", "_9j_", "iVBORw0KGgo", "R0lGOD", "UklGR")
_HEX = ("ffd8ff", "89504e470d0a", "474946383", "52494646")
_BEFORE = re.compile(r"data:image/[\w.+-]+;base64,|0x|\\x|b['\x22]", re.IGNORECASE)
IN_JSON = rb'"(?:data:image/|%s)' % "|".join(_BASE64).encode()  # how such a value begins in JSON
_URL_SAFE = str.maketrans("-_", "+/")
_SHORTEST = 40  # characters; no picture has fewer, a file's name may


def is_inline(value: object) -> bool:
    if not isinstance(value, str) or len(value) < _SHORTEST:
        return False
    head = value[:64].strip()
    text = _BEFORE.sub("", head, count=1) if _BEFORE.match(head) else head
    return head.lower().startswith("data:image/") or text.startswith(_BASE64) or text.lower().startswith(_HEX)


def picture_of(value: str) -> bytes:
    """The bytes of a picture for which `is_inline` holds."""
    text = value.strip()
    text = (text[before.end() :] if (before := _BEFORE.match(text)) else text).rstrip("'\"=")
    try:
        if text[:16].lower().startswith(_HEX):
            return bytes.fromhex(text)
        text = re.sub(r"\s+", "", text).translate(_URL_SAFE)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (ValueError, binascii.Error) as e:
        raise Rejected("corrupt", f"a picture as text of {len(text)} characters that can't be decoded: {e}") from None
