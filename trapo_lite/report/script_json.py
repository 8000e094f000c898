"""Write values as JSON that may stand in a script element of a page, whatever text is in them."""

import json
import math
from typing import Any

LARGEST = 2**53  # above it, a browser's numbers are not exact


def in_script(data: Any) -> str:
    r"""Return JSON in which no text can end the element that it stands in. Numbers must be finite.

    >>> print(in_script("</script>"))
    "\u003c/script\u003e"
    """
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def plain(value: Any) -> Any:
    """Return a value of a file as JSON can hold it: what is no text, number, list or map of these becomes text.

    >>> plain({"a": [1, float("nan")], "b": {2}})
    {'a': [1, 'nan'], 'b': '{2}'}
    """
    if isinstance(value, dict):
        return {whole_text(str(key)): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if value is None or isinstance(value, bool) or is_number(value):
        return value
    return whole_text(str(value))


def is_number(value: Any) -> bool:
    """Return whether a value is a number that a page can show: finite, and not too large for a browser."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= LARGEST if isinstance(value, int) else math.isfinite(value)


def whole_text(text: str) -> str:
    r"""Return a text without halves of characters, which JSON can hold and no file can.

    >>> whole_text("a\ud800")
    'a?'
    """
    return text.encode("utf-8", "replace").decode()
