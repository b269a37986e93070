"""A text half read: what the RNN has in its hands between two tokens.

A `Reading` is a value. Going on from it gives a new one and leaves it as it was, so one reading may be
continued in many ways: that is what makes chunk vectors, streams and reranking from stored states cheap.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.backends import Backend, State
from rwkv_embed.errors import StateError

Floats = NDArray[np.float32]

WINDOW = 16_384  # tokens whose hidden states are asked for at once; sums of longer texts are made in windows
FORMAT = "rwkv-embed reading 1"


@dataclass(frozen=True)
class Reading:
    """`tokens` read so far, the last hidden state (C,), the sum of all hidden states (C,) float64, the
    model's state.

    The sum is kept only for `mean` pooling and is None otherwise. A reading of nothing has state None.
    """

    tokens: int = 0
    hidden: Floats | None = None
    total: NDArray[np.float64] | None = None
    state: State | None = None


def go_on(
    backend: Backend,
    readings: Sequence[Reading],
    batch: Sequence[Sequence[int]],
    *,
    sums: bool = False,
    keep: bool = True,
) -> list[Reading]:
    """Read `batch[i]` on from `readings[i]`. Token lists may have any lengths, also 0.

    `sums`: keep the totals, for `mean`. Without `keep` the last states are not needed: the readings end here.
    """
    results = list(readings)
    longest = max(map(len, batch), default=0)
    window = WINDOW if sums else max(1, longest)  # a model reads to the end of a text in constant memory
    for start in range(0, longest, window):
        parts = [tokens[start : start + window] for tokens in batch]
        rows = [row for row, part in enumerate(parts) if part]
        # A model takes states for all rows of a batch or for none.
        for group in (
            [r for r in rows if results[r].state is None],
            [r for r in rows if results[r].state is not None],
        ):
            if group:
                wanted = keep or start + window < longest
                continued = _step(
                    backend, [results[r] for r in group], [parts[r] for r in group], sums, wanted
                )
                for row, reading in zip(group, continued, strict=True):
                    results[row] = reading
    return results


def _step(
    backend: Backend, readings: list[Reading], batch: list[Sequence[int]], sums: bool, keep: bool
) -> list[Reading]:
    given = None if readings[0].state is None else [reading.state for reading in readings]
    if not sums:
        hidden, states = backend.hidden(batch, given, keep=keep)
        return [
            Reading(reading.tokens + len(part), row, None, state)
            for reading, part, row, state in zip(readings, batch, hidden, states, strict=True)
        ]
    sequences, states = backend.hidden_sequence(batch, given)
    return [
        Reading(
            reading.tokens + len(part),
            rows[-1],
            rows.sum(axis=0, dtype=np.float64) + (0 if reading.total is None else reading.total),
            state,
        )
        for reading, part, rows, state in zip(readings, batch, sequences, states, strict=True)
    ]


def to_bytes(backend: Backend, reading: Reading, owner: str, **facts: Any) -> bytes:
    """A reading as a safetensors file. `owner`: fingerprint of who may resume it; `facts`: JSON values."""
    from safetensors.numpy import save

    tensors: dict[str, NDArray[Any]] = {}
    if reading.state is not None:
        tensors = {f"state.{i}": np.ascontiguousarray(a) for i, a in enumerate(backend.arrays(reading.state))}
    if reading.hidden is not None:
        tensors["hidden"] = np.ascontiguousarray(reading.hidden)
    if reading.total is not None:
        tensors["total"] = reading.total
    about = {"format": FORMAT, "owner": owner, "tokens": reading.tokens, **facts}
    return save(
        tensors, metadata={"reading": json.dumps(about)}
    )  # one entry: of several the order would vary


def from_bytes(backend: Backend, data: bytes, owner: str) -> tuple[Reading, dict[str, Any]]:
    """The inverse of `to_bytes`: the reading and its facts. Raises StateError for what is not ours."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        (length,) = struct.unpack_from("<Q", data)
        about = json.loads(json.loads(data[8 : 8 + length]).get("__metadata__", {}).get("reading", "{}"))
        if not isinstance(about, dict):
            raise TypeError(f"its facts are a {type(about).__name__}")
    except (SafetensorError, ValueError, AttributeError, TypeError, struct.error) as error:
        raise _damaged(error) from error
    if about.get("format") != FORMAT:
        raise StateError(f"the saved state has format {about.get('format')!r}, expected {FORMAT!r}")
    if about.get("owner") != owner:
        raise StateError(
            f"the saved state belongs to another model or pooling ({str(about.get('owner'))[:12]}…, this is "
            f"{owner[:12]}…); open it with the one it was made with, or read the text again"
        )
    width = (backend.info.config.n_embd,)
    hidden, total = (_vector(tensors, name, width, dtype) for name, dtype in (("hidden", "f4"), ("total", "f8")))
    arrays = [array for name, array in sorted(tensors.items()) if name.startswith("state.")]
    if not all(array.dtype == np.float32 and np.isfinite(array).all() for array in arrays):
        raise _damaged("it has NaN or infinite values, or is not float32")
    if sorted(tensors.keys() - {"hidden", "total"}) != sorted(f"state.{i}" for i in range(len(arrays))):
        raise _damaged("an array of it is missing")
    tokens = about.get("tokens")
    if type(tokens) is not int or not (tokens > 0) == (hidden is not None) == bool(arrays) or tokens < 0:
        raise _damaged(f"it is of {tokens!r} tokens, with {len(tensors)} arrays")
    try:
        state = backend.state([tensors[f"state.{i}"] for i in range(len(arrays))]) if arrays else None
    except ValueError as error:
        raise StateError(f"the saved state does not fit this model: {error}") from error
    return Reading(tokens, hidden, total, state), about


def _vector(
    tensors: dict[str, NDArray[Any]], name: str, shape: tuple[int, ...], dtype: str
) -> NDArray[Any] | None:
    array = tensors.get(name)
    if array is not None and (array.dtype != dtype or array.shape != shape or not np.isfinite(array).all()):
        raise _damaged(f"{name} is {array.dtype} {array.shape}, expected finite {np.dtype(dtype)} {shape}")
    return array


def _damaged(what: object) -> StateError:
    return StateError(f"the saved state is damaged ({what}); read the text again from its beginning")
