"""Coded matrices: what is encoded is decoded, in NumPy and in C, whole and block by block."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rwkv_embed.coding import BLOCK, SYMBOLS, CodedMatrix, coded_shape, encode, frequencies
from rwkv_embed.config import ModelConfig
from rwkv_embed.errors import CheckpointError
from rwkv_embed.ops.fast.choice import load_kernels
from rwkv_embed.ops.fast.kernels import Kernels
from rwkv_embed.ops.fast.plain import NumpyKernels

CONFIG = ModelConfig(
    version="7", n_layer=1, n_embd=64, n_head=1, head_size=64, n_ffn=64, vocab_size=1, kind="embedder"
)
Parts = dict[str, NDArray[Any]]


@pytest.fixture(params=["c", "numpy"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return kernels_named(request.param)


def kernels_named(name: str) -> Kernels:
    chosen = load_kernels(CONFIG) if name == "c" else NumpyKernels(64)
    if chosen.name != name:
        pytest.skip("the compiled kernels are not built: python setup.py build_ext --inplace")
    return chosen


def parts_of(symbols: NDArray[np.uint8], classes: NDArray[np.uint8], groups: NDArray[np.uint8]) -> Parts:
    """A matrix with values of its own for every class, group and symbol."""
    counts = frequencies(symbols, classes, groups)
    coded, starts = encode(symbols, classes, groups, counts)
    values = np.arange(counts.size, dtype=np.float32).reshape(counts.shape)
    return {
        "coded": coded, "starts": starts, "classes": classes, "groups": groups, "counts": counts, "values": values
    }  # fmt: skip


def example(rows: int = 100, columns: int = 40, seed: int = 0, width: float = 2.0, panels: bool = False) -> Parts:
    rng = np.random.default_rng(seed)
    symbols = np.clip(np.rint(rng.normal(30, width, (rows, columns))), 0, SYMBOLS - 1).astype(np.uint8)
    groups = np.arange(columns) // 16 if panels else rng.integers(0, 3, columns)
    return parts_of(symbols, rng.integers(0, 2, rows).astype(np.uint8), groups.astype(np.uint8))


def slow_symbols(parts: Parts) -> NDArray[np.int64]:
    """The format's words, one symbol at a time."""
    (rows,), (columns,) = parts["classes"].shape, parts["groups"].shape
    symbols = np.zeros((rows, columns), np.int64)
    stream = parts["coded"].view("<u2").tolist()
    for block in range(len(parts["starts"]) - 1):
        words = iter(stream[parts["starts"][block] : parts["starts"][block + 1]])
        states = [next(words, 0) << 16 | next(words, 0) for _ in range(2)]
        within = symbols[block * BLOCK : (block + 1) * BLOCK]
        for i in range(within.size):
            row, column = divmod(i, columns)
            counts = parts["counts"][parts["classes"][block * BLOCK + row], parts["groups"][column]].tolist()
            x, s, first = states[i % 2], 0, 0
            while first + counts[s] <= x & 4095:
                first += counts[s]
                s += 1
            x = counts[s] * (x >> 12) + (x & 4095) - first
            states[i % 2] = x if x >= 1 << 16 else x << 16 | next(words, 0)
            within[row, column] = s
    return symbols


def values_of(parts: Parts, symbols: NDArray[Any]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = parts["values"][parts["classes"][:, None], parts["groups"], symbols]
    return values


def rows_of(kernels: Kernels, packed: Any, tokens: NDArray[np.int64], columns: int) -> NDArray[np.float32]:
    out = np.full((len(tokens), columns), np.nan, np.float32)
    kernels.coded_rows(tokens, packed, out)
    return out


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_is_encoded_is_decoded(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(0, 70)), data.draw(st.sampled_from([1, 2, 3, 16, 33, 64]))
    n_classes, n_groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    few = data.draw(st.integers(1, SYMBOLS))
    skew = data.draw(st.sampled_from([1, 3, 20]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    symbols = (rng.random((rows, columns)) ** skew * few).astype(np.uint8)
    classes = rng.integers(0, n_classes, rows).astype(np.uint8)
    groups = rng.integers(0, n_groups, columns).astype(np.uint8)
    parts = parts_of(symbols, classes, groups)
    assert (parts["counts"].sum(-1, dtype=int) == 4096).all()
    matrix = CodedMatrix.from_tensors("x", parts)
    assert (matrix.shape, matrix.blocks) == ((rows, columns), -(-rows // BLOCK))
    expected = values_of(parts, symbols)
    np.testing.assert_array_equal(matrix.decode(), expected)
    tokens = rng.permutation(np.arange(rows, dtype=np.int64))
    for name in ("c", "numpy"):
        kernels = kernels_named(name)
        found = rows_of(kernels, kernels.pack_coded(matrix), tokens, columns)
        np.testing.assert_array_equal(found, expected[tokens])


def test_the_stream_is_what_the_format_says() -> None:
    parts = example(rows=40, columns=7)
    np.testing.assert_array_equal(
        values_of(parts, slow_symbols(parts)), CodedMatrix.from_tensors("x", parts).decode()
    )


def test_a_stream_by_hand() -> None:
    """Two symbols as likely as each other: a state doubles for each; a one adds its first slot."""
    symbols, nothing = np.array([[0, 1, 0]], np.uint8), np.zeros(1, np.uint8)
    counts = np.zeros((1, 1, SYMBOLS), np.uint16)
    counts[0, 0, :2] = 2048
    coded, starts = encode(symbols, nothing, nothing.repeat(3), counts)
    assert coded.view("<u2").tolist() == [4, 0, 2, 2048]  # 2^18 after two zeros, 2^17 + 2^11 after a one
    assert starts.tolist() == [0, 4]


def test_a_symbol_that_always_comes_takes_no_room() -> None:
    parts = parts_of(np.full((32, 50), 9, np.uint8), np.zeros(32, np.uint8), np.zeros(50, np.uint8))
    assert len(parts["coded"]) == 32 // BLOCK * 8  # the states of the blocks


def test_the_size_is_about_the_entropy() -> None:
    parts = example(rows=2000, columns=96, width=1.5)
    symbols = slow_table(parts)
    bits = 0.0
    for class_ in range(2):
        for group in range(3):
            found = np.bincount(symbols[parts["classes"] == class_][:, parts["groups"] == group].ravel())
            found = found[found > 0]
            bits -= (found * np.log2(found / found.sum())).sum()
    assert len(parts["coded"]) < 1.01 * bits / 8 + 12 * len(parts["starts"])
    assert len(parts["coded"]) > bits / 8


def slow_table(parts: Parts) -> NDArray[np.uint8]:
    """The symbols of a matrix whose values say which symbol they are."""
    return (CodedMatrix.from_tensors("x", parts).decode().astype(np.int64) % SYMBOLS).astype(np.uint8)


def test_counts_keep_what_is_rare_and_fill_what_is_empty() -> None:
    symbols = np.zeros((3, 40_000), np.uint8)
    symbols[0, :SYMBOLS] = np.arange(SYMBOLS)
    classes, groups = np.array([0, 0, 2], np.uint8), np.zeros(40_000, np.uint8)
    counts = frequencies(symbols, classes, groups)[:, 0]
    assert counts[0].tolist() == [4096 - 63] + [1] * 63
    assert counts[1].tolist() == [64] * 64  # no row is of class 1
    assert counts[2].tolist() == [4096] + [0] * 63


def test_a_symbol_without_a_count_cannot_be_encoded() -> None:
    nothing = np.zeros(1, np.uint8)
    counts = frequencies(np.zeros((1, 1), np.uint8), nothing, nothing)
    with pytest.raises(ValueError, match="column 0 has a symbol whose count is zero"):
        encode(np.ones((1, 1), np.uint8), nothing, nothing, counts)


@pytest.mark.parametrize("panels", [False, True])
def test_rows_in_any_order_are_those_of_the_whole(kernels: Kernels, panels: bool) -> None:
    parts = example(rows=300, columns=64, panels=panels, width=12)
    matrix = CodedMatrix.from_tensors("x", parts)
    whole, packed = matrix.decode(), kernels.pack_coded(matrix)
    rng = np.random.default_rng(1)
    for n in (1, 0, 5, 40, 700):
        tokens = rng.integers(0, 300, n)
        np.testing.assert_array_equal(rows_of(kernels, packed, tokens, 64), whole[tokens])


def test_only_the_blocks_of_the_rows_are_decoded(kernels: Kernels) -> None:
    packed = kernels.pack_coded(CodedMatrix.from_tensors("x", example()))
    rows_of(kernels, packed, np.array([99, 40, 33, 99]), 40)
    decoded = getattr(packed, "blocks", packed).decoded
    assert np.flatnonzero(decoded).tolist() == [16, 20, 49]


def test_threads_may_ask_at_once(kernels: Kernels) -> None:
    parts = example(rows=800, columns=48)
    matrix = CodedMatrix.from_tensors("x", parts)
    whole = matrix.decode()
    for seed in range(3):
        packed = kernels.pack_coded(matrix)
        orders = [np.random.default_rng([seed, i]).permutation(800)[:200] for i in range(8)]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(partial(rows_of, kernels, packed, columns=48), orders))
        for tokens, rows in zip(orders, found, strict=True):
            np.testing.assert_array_equal(rows, whole[tokens])


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_a_damaged_stream_gives_some_values(data: st.DataObject) -> None:
    """Other words, or fewer of them: the same values in C as in NumPy, and as one symbol at a time."""
    parts = example(rows=40, columns=20)
    starts = parts["starts"].astype(np.int64)
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    if data.draw(st.booleans()):
        parts["coded"] = rng.integers(0, 256, len(parts["coded"]), np.uint8)
    kept = data.draw(st.integers(0, int(starts[-1])))
    parts["coded"] = parts["coded"][: 2 * kept].copy()
    parts["starts"] = np.minimum(starts, kept).astype(np.uint32)
    matrix = CodedMatrix.from_tensors("x", parts)
    decoded = matrix.decode()
    np.testing.assert_array_equal(decoded, values_of(parts, slow_symbols(parts)))
    compiled = kernels_named("c")
    np.testing.assert_array_equal(
        rows_of(compiled, compiled.pack_coded(matrix), np.arange(40, dtype=np.int64), 20), decoded
    )


WRONG_STARTS = r"x\.starts does not ascend from 0 to \d+, the words of x\.coded"


def changed(ending: str, **places: Any) -> Parts:
    """The example with some numbers of a tensor changed: `at` gets `to`."""
    parts = example()
    parts[ending] = parts[ending].copy()
    parts[ending][places["at"]] = places["to"]
    return parts


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (changed("starts", at=0, to=1), WRONG_STARTS),
        (changed("starts", at=-1, to=1 << 31), WRONG_STARTS),
        (changed("starts", at=3, to=0), WRONG_STARTS),
        (changed("classes", at=5, to=2), r"x\.classes has the class 2, but x\.counts has 2 of them"),
        (changed("groups", at=5, to=77), r"x\.groups has the group 77, but x\.counts has 3 of them"),
        (
            changed("counts", at=(1, 2), to=65535),
            r"x\.counts of class 1 and group 2 sum to 4194240, expected 4096",
        ),
        (changed("values", at=(0, 0, 63), to=np.inf), r"x\.values has NaN or infinite values"),
        (
            example() | {"counts": example()["counts"].astype(np.int32)},
            r"x\.counts is stored as int32, expected uint16",
        ),
        (example() | {"coded": example()["coded"][:-1]}, r"x\.coded has shape \((\d+),\), expected \(\d+,\)"),
        (
            example() | {"groups": np.zeros((4, 10), np.uint8)},
            r"x\.groups has shape \(4, 10\), expected one dimension",
        ),
        (
            example() | {"values": np.zeros(3, np.float32)},
            r"x\.values has shape \(3,\), expected three dimensions",
        ),
        (
            example() | {"values": np.zeros((2, 4, 64), np.float32)},
            r"x\.values has shape \(2, 4, 64\), expected \(2, 3, 64\)",
        ),
        (example() | {"starts": np.zeros(7, np.uint32)}, r"x\.starts has shape \(7,\), expected \(51,\)"),
    ],
)
def test_a_problem_is_refused(parts: Parts, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        CodedMatrix.from_tensors("x", parts)


def test_all_problems_are_in_one_message() -> None:
    parts = example()
    parts["classes"], parts["values"] = parts["classes"] + np.uint8(3), parts["values"] * np.float32(np.nan)
    with pytest.raises(CheckpointError, match=r"x\.classes has the class 4, .*; x\.values has NaN"):
        CodedMatrix.from_tensors("x", parts)
    with pytest.raises(CheckpointError, match=r"^x\.starts is missing; x\.groups is missing$"):
        coded_shape("x", {e: part.shape for e, part in example().items() if e not in ("starts", "groups")})


def test_the_shape_is_told_without_the_tensors() -> None:
    assert coded_shape("x", {ending: part.shape for ending, part in example(33, 20).items()}) == (33, 20)
