"""What pydantic found wrong with a request, as one sentence about the field that the client sent."""

from collections.abc import Mapping, Sequence
from typing import Any

from api.shapes import dumps

SHOWN_CHARS = 60  # of a refused value
_PLAINER = {  # pydantic's words for what JSON calls otherwise
    "a valid dictionary or object to extract fields from": "an object",
    "a valid dictionary": "an object",
    "a valid list": "a list",
    "a valid string": "a string",
    "a valid integer": "an integer",
}
_OUGHT = "Input should be "


def problem(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """(message, name of the field) of the first error; of a union, of the alternative that came nearest."""
    places = [_place(error) for error in errors]
    place = max(places, key=len)
    here = [error for error, own in zip(errors, places, strict=True) if own == place]
    name = ".".join(map(str, place))
    return _sentence(name or "the body", here), name or None


def _place(error: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Where in the request, without the names that pydantic gives to the alternatives of a union."""
    parts = tuple(error["loc"][1:])
    if error["type"] == "extra_forbidden":
        return parts  # the client's own name for it, whatever that is
    return tuple(part for part in parts if isinstance(part, int) or not set("[(") & set(part))


def _sentence(name: str, errors: Sequence[Mapping[str, Any]]) -> str:
    kind, message, value = (errors[0][key] for key in ("type", "msg", "input"))
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name} is not a field of this request; /docs lists those"
    if kind == "value_error":  # one of our own validators, whose sentence goes on after the name
        return f"{name} {message.removeprefix('Value error, ')}"
    if isinstance(value, bytes) and name == "the body":  # FastAPI parses no other type
        return "the body is not declared as JSON; send it with `content-type: application/json`"
    if message.startswith(_OUGHT):
        wanted = dict.fromkeys(_plain(error["msg"].removeprefix(_OUGHT)) for error in errors)
        return f"{name} must be {' or '.join(wanted)}, not {_shown(value)}"
    return f"{name}: {message}"


def _plain(wanted: str) -> str:
    for theirs, plain in _PLAINER.items():
        wanted = wanted.replace(theirs, plain)
    return wanted


def _shown(value: Any) -> str:
    try:
        text = dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"


def unreadable(cause: BaseException | None) -> str:
    """Why a body that may be JSON could not be parsed."""
    if isinstance(cause, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(cause, UnicodeDecodeError):
        reason = f"byte {cause.start} is not UTF-8"
    else:
        reason = "it has a number with too many digits"
    return f"the body cannot be read as JSON: {reason}"
