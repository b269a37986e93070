"""Text and metadata that every later stage can store: no NUL, no lone surrogates, no NaN, `\\n` line ends."""

import math
import re
from typing import Any

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # SQLite ends a string at NUL, UTF-8 has no surrogates


def clean_text(text: str) -> str:
    """`text` with line ends as `\\n` and each character that cannot be stored as U+FFFD."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSTORABLE.sub("\ufffd", text)


def clean_metadata(value: Any) -> Any:
    """A JSON value with clean strings; NaN and infinity, which JSON does not have, become null."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_metadata(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_metadata(item) for item in value]
    return value
