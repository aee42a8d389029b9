"""Pictures that stand in a cell as text: base64, with or without `data:image/…;base64,` before it, or hexadecimal."""

import base64
import binascii
import re

from blip_core.files.rejected import Rejected

# how JPEG, PNG, GIF, WebP begin
_BASE64 = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR")
_HEX = ("ffd8ff", "89504e470d0a", "474946383", "52494646")
_DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
_SHORTEST = 40  # characters; no picture has fewer, a file's name may


def is_inline(value: object) -> bool:
    if not isinstance(value, str) or len(value) < _SHORTEST:
        return False
    head = value[:64].strip()
    return bool(_DATA.match(head)) or head.startswith(_BASE64) or head.lower().startswith(_HEX)


def picture_of(value: str) -> bytes:
    """The bytes of a picture for which `is_inline` holds."""
    text = _DATA.sub("", value.strip(), count=1)
    try:
        if text[:16].lower().startswith(_HEX):
            return bytes.fromhex(text)
        return base64.b64decode(re.sub(r"\s+", "", text), validate=True)
    except (ValueError, binascii.Error) as e:
        raise Rejected("corrupt", f"a picture as text of {len(text)} characters that can't be decoded: {e}") from None
