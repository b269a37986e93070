"""The CPU engine against RWKV-7 written out token by token in float64."""

import subprocess
import sys
from dataclasses import replace
from functools import cache

import checkpoints as ck
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.contenders import random_rwkv7
from rwkv_embed.coding import BLOCK, CodedMatrix
from rwkv_embed.errors import CheckpointError, StateError, TokenizerError
from rwkv_embed.hub import resolve
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.ops.fast.choice import choose_dtype, load_kernels
from rwkv_embed.ops.fast.kernels import Gates, Norm, Products
from rwkv_embed.ops.fast.model import _pack
from rwkv_embed.ops.fast.plain import NumpyKernels
from rwkv_embed.ops.fast.weights import read_safetensors

TOLERANCE = 1e-4
DTYPES = ["float32", "bfloat16", "int8"]


# --- the reference: one token at a time, the formulas of the paper and of PyPI `rwkv`


def _norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_token(z, n_layer, token, state):
    """Hidden state (C,) after ln_out; `state` is changed in place."""
    H, N = z["blocks.0.att.r_k"].shape
    x = _norm(z["emb.weight"][token], z["blocks.0.ln0.weight"], z["blocks.0.ln0.bias"])
    v_first = None
    for i in range(n_layer):
        p = {name.split(".", 2)[2]: value for name, value in z.items() if name.startswith(f"blocks.{i}.")}
        y = _norm(x, p["ln1.weight"], p["ln1.bias"])
        xr, xw, xk, xv, xa, xg = (
            y + (state[3 * i] - y) * p["att.x_" + name].reshape(-1) for name in "rwkvag"
        )
        state[3 * i] = y
        r, k, v = p["att.receptance.weight"] @ xr, p["att.key.weight"] @ xk, p["att.value.weight"] @ xv
        w = np.tanh(xw @ p["att.w1"]) @ p["att.w2"] + p["att.w0"].reshape(-1)
        w = np.exp(-np.exp(-0.5) * _sigmoid(w))
        a = _sigmoid(p["att.a0"].reshape(-1) + xa @ p["att.a1"] @ p["att.a2"])
        g = _sigmoid(xg @ p["att.g1"]) @ p["att.g2"]
        kk = (k * p["att.k_k"].reshape(-1)).reshape(H, N)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
        k = k * (1 + (a - 1) * p["att.k_a"].reshape(-1))
        if i == 0:
            v_first = v
        else:
            v = v + (v_first - v) * _sigmoid(p["att.v0"].reshape(-1) + xv @ p["att.v1"] @ p["att.v2"])
        r, k, v, w, a = (t.reshape(H, N) for t in (r, k, v, w, a))
        S = state[3 * i + 1]
        S = S * w[:, None] - (S @ kk[..., None]) * (kk * a)[:, None] + v[..., None] * k[:, None]
        state[3 * i + 1] = S
        out = (S @ r[..., None])[..., 0]
        out = _norm(out, p["att.ln_x.weight"].reshape(H, N), p["att.ln_x.bias"].reshape(H, N), 64e-5)
        out = out + (r * k * p["att.r_k"]).sum(-1, keepdims=True) * v
        x = x + p["att.output.weight"] @ (out.reshape(-1) * g)
        y = _norm(x, p["ln2.weight"], p["ln2.bias"])
        xk = y + (state[3 * i + 2] - y) * p["ffn.x_k"].reshape(-1)
        state[3 * i + 2] = y
        x = x + p["ffn.value.weight"] @ np.maximum(p["ffn.key.weight"] @ xk, 0) ** 2
    return _norm(x, z["ln_out.weight"], z["ln_out.bias"])


def reference(tensors, tokens, state=None):
    """All hidden states (T, C) and the final state, in float64."""
    z = {name.removeprefix("rwkv."): np.asarray(tensor, np.float64) for name, tensor in tensors.items()}
    n_layer = 1 + max(int(name.split(".")[1]) for name in z if name.startswith("blocks."))
    (H, N), C = z["blocks.0.att.r_k"].shape, z["emb.weight"].shape[1]
    if state is None:
        state = [np.zeros(shape) for _ in range(n_layer) for shape in ((C,), (H, N, N), (C,))]
    state = [np.array(array, np.float64) for array in state]
    return np.stack([reference_token(z, n_layer, token, state) for token in tokens]), state


def random_checkpoint(seed=0, n_layer=3, n_head=2, head_size=64, vocab=50, lora=8, n_ffn=96, prefix="rwkv."):
    """A whole checkpoint in the official layout, lively enough that every term matters."""
    rng = np.random.default_rng(seed)
    C = n_head * head_size

    def normal(*shape, scale=1.0):
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    z = {"emb.weight": normal(vocab, C)}
    z["ln_out.weight"], z["ln_out.bias"] = 1 + normal(C, scale=0.1), normal(C, scale=0.1)
    for i in range(n_layer):
        b = f"blocks.{i}."
        for name in ["ln1", "ln2", "att.ln_x"] + ["ln0"] * (i == 0):
            z[f"{b}{name}.weight"], z[f"{b}{name}.bias"] = 1 + normal(C, scale=0.1), normal(C, scale=0.1)
        for name in "rwkvag":
            z[f"{b}att.x_{name}"] = rng.random((1, 1, C)).astype(np.float32)
        for name in "wavg":
            if name == "v" and i == 0:
                continue
            z[f"{b}att.{name}1"] = normal(C, lora, scale=C**-0.5)
            z[f"{b}att.{name}2"] = normal(lora, C, scale=lora**-0.5)
            if name != "g":
                z[f"{b}att.{name}0"] = normal(1, 1, C)
        z[f"{b}att.k_k"], z[f"{b}att.k_a"] = 1 + normal(1, 1, C, scale=0.3), normal(1, 1, C)
        z[f"{b}att.r_k"] = normal(n_head, head_size, scale=0.2)
        for name in ("receptance", "key", "value", "output"):
            z[f"{b}att.{name}.weight"] = normal(C, C, scale=C**-0.5)
        z[f"{b}ffn.x_k"] = rng.random((1, 1, C)).astype(np.float32)
        z[f"{b}ffn.key.weight"] = normal(n_ffn, C, scale=C**-0.5)
        z[f"{b}ffn.value.weight"] = normal(C, n_ffn, scale=n_ffn**-0.5)
    return {prefix + name: tensor for name, tensor in z.items()}


TENSORS = random_checkpoint()
CONFIG = FastRWKV7(TENSORS).config
TEXTS = [list(np.random.default_rng(n).integers(0, 50, n)) for n in (1, 2, 3, 31, 32, 33, 70, 5)]


def simple_checkpoint(**sizes):
    """One layer in which much is switched off, as in the bundled model: shifts, networks, keys, channel mixing."""
    tensors = random_checkpoint(5, n_layer=1, prefix="", **sizes)
    for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w2", "a2", "r_k"):
        tensors[f"blocks.0.att.{name}"] = np.zeros_like(tensors[f"blocks.0.att.{name}"])
    tensors["blocks.0.att.key.weight"][:, :-2] = 0
    tensors["blocks.0.ffn.value.weight"] = np.zeros_like(tensors["blocks.0.ffn.value.weight"])
    return tensors


def variants():
    """Checkpoints that take every way to the end of a text."""
    deep = dict(TENSORS)
    deep["rwkv.blocks.2.att.v2"] = np.zeros_like(deep["rwkv.blocks.2.att.v2"])
    deep["rwkv.blocks.1.ffn.key.weight"] = np.zeros_like(deep["rwkv.blocks.1.ffn.key.weight"])
    shifting = simple_checkpoint() | {
        name: tensor
        for name, tensor in random_checkpoint(6, n_layer=1, prefix="").items()
        if name.endswith(("att.x_k", "att.x_v", "att.r_k"))
    }
    one_layer = random_checkpoint(7, n_layer=1)
    unshifted = one_layer | {"rwkv.blocks.0.ffn.x_k": np.zeros_like(one_layer["rwkv.blocks.0.ffn.x_k"])}
    return {
        "three layers": TENSORS,
        "three layers, zeros": deep,
        "one layer": one_layer,
        "one layer, channel mixing without shift": unshifted,
        "simple": simple_checkpoint(),
        "simple, shifting": shifting,
        "simple, heads of 40": simple_checkpoint(head_size=40),
    }


VARIANTS = variants()


@pytest.fixture(params=["c", "numpy"])
def model(request):
    return build(request.param)


def build(kernels="c", tensors=TENSORS, token_budget=32, dtype="float32"):
    chosen = load_kernels(CONFIG) if kernels == "c" else NumpyKernels(64)
    if chosen.name != kernels:
        pytest.skip("the compiled kernels are not built: python setup.py build_ext --inplace")
    return FastRWKV7(tensors, dtype=dtype, threads=2, token_budget=token_budget, kernels=chosen)


def test_hidden_is_the_reference_at_every_length(model):
    hidden, states = model.hidden(TEXTS)
    assert hidden.dtype == np.float32
    assert hidden.shape == (len(TEXTS), 128)
    for text, row, state in zip(TEXTS, hidden, states, strict=True):
        expected, expected_state = reference(TENSORS, text)
        np.testing.assert_allclose(row, expected[-1], atol=TOLERANCE)
        for array, wanted in zip(state, expected_state, strict=True):
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, wanted, atol=TOLERANCE)


def test_full_output_is_the_reference_at_every_position(model):
    rows, _ = model.hidden(TEXTS, full_output=True)
    for text, row in zip(TEXTS, rows, strict=True):
        np.testing.assert_allclose(row, reference(TENSORS, text)[0], atol=TOLERANCE)


def test_head_sizes_and_layer_counts():
    head_sizes = {"head_size": 16, "n_head": 3}, {"head_size": 40, "n_head": 2}
    for sizes in ({"n_layer": 1}, *head_sizes, {"lora": 20}):
        tensors = random_checkpoint(1, **sizes, prefix="")
        model = FastRWKV7(tensors, token_budget=8)
        hidden, _ = model.hidden(TEXTS[:5])
        for text, row in zip(TEXTS, hidden, strict=False):
            np.testing.assert_allclose(row, reference(tensors, text)[0][-1], atol=TOLERANCE)


def test_strong_inputs_stay_exact():
    """Gates saturate, decays reach both ends: the exponentials of the kernel must not run over."""
    tensors = dict(random_checkpoint(2))
    for name, tensor in tensors.items():
        if name.endswith(("att.w0", "att.a0", "att.v0")):
            tensors[name] = tensor * 60
    hidden, _ = build(tensors=tensors).hidden(TEXTS)
    for text, row in zip(TEXTS, hidden, strict=True):
        np.testing.assert_allclose(row, reference(tensors, text)[0][-1], atol=TOLERANCE)


@pytest.fixture(scope="module")
def operands():
    """Two texts of 5 and 3 tokens, 2 heads of 64, read at the last 2 positions and at all 3."""
    rng = np.random.default_rng(3)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    C = 128
    gates = Gates(*(normal(C) for _ in range(5)), Norm(normal(C), normal(C)))
    T, M = 8, 5
    r, g = normal(M, C), normal(M, C)
    products = Products(*(normal(T, C) for _ in range(4)))
    return gates, products, r, g, normal(2, 2, 64, 64)


STARTS, ROWS = np.array([0, 5, 8]), np.array([0, 2, 5])


@pytest.mark.parametrize("constant", ["", "w", "a", "wa"])
@pytest.mark.parametrize("with_state", [True, False])
def test_compiled_recurrence_is_numpys(operands, with_state, constant):
    gates, products, r, g, state = operands
    products = replace(products, **dict.fromkeys(constant))
    results = []
    for kernels in (build("c").kernels, build("numpy").kernels):
        out, own = np.empty((5, 128), np.float32), state.copy() if with_state else None
        kernels.wkv(STARTS, ROWS, kernels.pack_gates(gates), products, r, g, own, out)
        results.append((out, own))
    np.testing.assert_allclose(results[0][0], results[1][0], atol=TOLERANCE)
    if with_state:
        np.testing.assert_allclose(results[0][1], results[1][1], atol=TOLERANCE)
        assert not np.allclose(results[0][1], state)


@pytest.mark.parametrize("constant", ["", "w", "a", "wa"])
@pytest.mark.parametrize("kernels", ["c", "numpy"])
def test_reading_backwards_is_the_recurrence(operands, kernels, constant):
    """The sum over the text, from the weights of tokens, from a state, and in two pieces."""
    gates, products, r, g, state = operands
    products = replace(products, **dict.fromkeys(constant))
    kernels = build(kernels).kernels
    expected = np.empty_like(r)
    build("numpy").kernels.wkv(STARTS, ROWS, gates, products, r, g, state.copy(), expected)

    gates = kernels.pack_gates(gates)
    u, own, y = r.copy(), np.empty((5, 2), np.float32), np.zeros_like(r)
    kernels.backward(STARTS, ROWS, gates, products, 0, u, own, y)
    kernels.read_state(ROWS, state, u, y)
    v = products.v[np.array([3, 4, 5, 6, 7])]
    out = np.empty_like(r)
    kernels.close(gates, y, own, v, g, out)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)

    u, weights, sums = r.copy(), np.zeros((3, 2, 8), np.float32), np.zeros((2, 5, 128), np.float32)
    kernels.backward(STARTS, ROWS, gates, replace(products, v=None), 0, u, own, weights)
    kernels.weighted_sums(STARTS, ROWS, weights, products.v, sums)
    y = np.concatenate([sums[0, :, :64], sums[1, :, 64:]], axis=1)
    kernels.read_state(ROWS, state, u, y)
    kernels.close(gates, y, own, v, g, out)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)

    u, y = r[:2].copy(), np.zeros_like(r[:2])
    for start, end in ((3, 5), (0, 3)):
        piece = {name: getattr(products, name) for name in "wkva"}
        cut = Products(**{name: None if x is None else x[start:end].copy() for name, x in piece.items()})
        kernels.backward(np.array([0, end - start]), np.array([0, 2]), gates, cut, 5 - end, u, own, y)
    kernels.read_state(np.array([0, 2]), state[:1], u, y)
    kernels.close(gates, y, own[:2], v[:2], g[:2], out[:2])
    np.testing.assert_allclose(out[:2], expected[:2], atol=TOLERANCE)


@pytest.mark.parametrize("kernels", ["c", "numpy"])
def test_first_layers_values_are_mixed_in(kernels):
    rng = np.random.default_rng(4)
    gate, first, v = (rng.standard_normal((3, 128)).astype(np.float32) for _ in range(3))
    v0 = rng.standard_normal(128).astype(np.float32)
    for some_gate in (gate, None):
        mixed = v.copy()
        build(kernels).kernels.mix_values(v0, some_gate, first, mixed)
        expected = v + (first - v) * _sigmoid(v0 + (0 if some_gate is None else gate))
        np.testing.assert_allclose(mixed, expected, atol=1e-6)


def products(dtype, x, w, kernels=None):
    """x @ w for matrices w side by side, in a memory that held something else."""
    kernels = kernels or build("c").kernels
    out = np.full((*x.shape[:-1], w.shape[1] // (len(x) if x.ndim == 3 else 1)), np.nan, np.float32)
    return kernels.matmul(x, kernels.pack(w, dtype), out)


def portable():
    """The compiled kernels as on a processor without instructions for narrow products."""
    kernels = build("c").kernels
    kernels.native = frozenset()
    return kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [*range(1, 14), 25])
@pytest.mark.parametrize("depth", [1, 2, 3, 16, 384, 385, 1600])
def test_compiled_product_is_numpys(rows, depth, dtype):
    rng = np.random.default_rng(rows * depth)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((rows, depth), (depth, 48)))
    product = products(dtype, x, w)
    expected = products(dtype, x, w, build("numpy").kernels)
    one_step = 2 * np.abs(x).max() / 254 * np.abs(w).max()  # a number just between two may be rounded to either
    np.testing.assert_allclose(product, expected, atol=2 * one_step if dtype == "int8" else 1e-3)
    error = {"float32": 1e-6, "bfloat16": 0.005, "int8": 0.02}[dtype]
    assert np.linalg.norm(product - x @ w) < error * np.linalg.norm(x) * np.linalg.norm(w) / depth**0.5


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 1e-3), ("int8", 0)])
@pytest.mark.parametrize("depth", [1, 16, 385, 3072])
def test_every_processor_gives_the_same_narrow_product(dtype, tolerance, depth):
    rng = np.random.default_rng(depth)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((15, depth), (depth, 48)))
    np.testing.assert_allclose(products(dtype, x, w), products(dtype, x, w, portable()), atol=tolerance, rtol=0)


@pytest.mark.parametrize("kernels", ["c", "numpy"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_whole_numbers_are_exact_in_narrow_products(dtype, kernels):
    """Rows of one sign, of both and of nothing, and a column of nothing."""
    x = np.array([[0, 254, 7, 1], [-254, -3, 0, -9], [-127, 127, 5, 0], [0, 0, 0, 0]], np.float32)
    w = np.tile(np.array([[127, 0, -127], [0, 0, 1], [5, 0, -6], [-100, 0, 64]], np.float32), 16)
    np.testing.assert_allclose(products(dtype, x, w, build(kernels).kernels), x @ w, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", ["c", "numpy"])
def test_matrices_side_by_side(kernels, dtype):
    """A product for each x of a batch, as values of a head have."""
    rng = np.random.default_rng(5)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((3, 7, 47), (47, 3 * 32)))
    product = products(dtype, x, w, build(kernels).kernels)
    for i in range(3):
        one = products(dtype, x[i], np.ascontiguousarray(w[:, 32 * i : 32 * i + 32]), build(kernels).kernels)
        np.testing.assert_allclose(product[i], one, atol=1e-4)
        np.testing.assert_allclose(one, x[i] @ w[:, 32 * i : 32 * i + 32], atol=0.5)


@pytest.mark.parametrize("kernels", ["c", "portable", "numpy"])
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_vectors_are_close(dtype, kernels):
    """As deep as the 0.1B shape. The first few tokens' states are of too low a rank to be read steadily."""
    tensors = random_rwkv7(12, 128, 50, lora=16)
    texts = [text for text in TEXTS if len(text) > 4]
    chosen = portable() if kernels == "portable" else build(kernels).kernels
    exact = FastRWKV7(tensors, dtype="float32").hidden(texts)[0]
    narrow = FastRWKV7(tensors, dtype=dtype, kernels=chosen)
    assert narrow.dtype == dtype
    hidden, _ = narrow.hidden(texts)
    lengths = np.linalg.norm(hidden, axis=1) * np.linalg.norm(exact, axis=1)
    cosines = (hidden * exact).sum(1) / lengths
    assert cosines.min() > {"bfloat16": 0.9999, "int8": 0.999}[dtype]
    assert not np.array_equal(hidden, exact)


def test_the_narrow_type_is_chosen_by_processor_and_size():
    kernels = portable()
    assert choose_dtype(kernels, 1_000_000_000) == "float32"
    kernels.native = frozenset({"int8"})
    assert choose_dtype(kernels, 1_000_000_000) == "float32"
    kernels.native = frozenset({"int8", "bfloat16"})
    assert choose_dtype(kernels, 1_000_000_000) == "bfloat16"
    assert choose_dtype(kernels, 1_000_000) == "float32"
    assert FastRWKV7(random_checkpoint()).dtype == "float32"
    assert FastRWKV7.from_file(resolve(None).weights).dtype == "float32"
    with pytest.raises(ValueError, match="dtype is 'float16', expected one of float32, bfloat16, int8"):
        FastRWKV7(TENSORS, dtype="float16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["three layers", "simple, shifting"])
def test_a_vector_does_not_depend_on_its_neighbours(variant, dtype):
    model = build("c", VARIANTS[variant], dtype=dtype)
    for options in ({}, {"return_states": False}):
        together, _ = model.hidden(TEXTS, **options)
        backwards, _ = model.hidden(TEXTS[::-1], **options)
        alone = np.concatenate([model.hidden([text], **options)[0] for text in TEXTS])
        np.testing.assert_array_equal(together, backwards[::-1])
        np.testing.assert_array_equal(together, alone)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 49), min_size=2, max_size=80), st.data())
def test_split_anywhere_and_resume(tokens, data):
    cut = data.draw(st.integers(1, len(tokens) - 1))
    model = build("c")
    whole, (end,) = model.hidden([tokens])
    _, first = model.hidden([tokens[:cut]])
    before = [array.copy() for array in first[0]]
    resumed, (resumed_end,) = model.hidden([tokens[cut:]], first)
    np.testing.assert_allclose(resumed, whole, atol=TOLERANCE)
    for array, wanted, given_array, kept in zip(resumed_end, end, first[0], before, strict=True):
        np.testing.assert_allclose(array, wanted, atol=TOLERANCE)
        np.testing.assert_array_equal(given_array, kept)  # a state is a value


@cache
def reference_ends(variant):
    """For each of TEXTS the last hidden state, and that of another text read on from there."""
    ends = []
    for text, other in zip(TEXTS, TEXTS[::-1], strict=True):
        rows, state = reference(VARIANTS[variant], text)
        ends.append((rows[-1], reference(VARIANTS[variant], other, state)[0][-1]))
    return ends


@pytest.mark.parametrize("kernels", ["c", "numpy"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ends_of_texts_are_the_references(variant, kernels):
    """Without states after them, from nothing and from a state; texts of one to three pieces."""
    tensors = VARIANTS[variant]
    model = FastRWKV7(tensors, token_budget=32)
    if kernels == "numpy":
        model = FastRWKV7(tensors, token_budget=32, kernels=NumpyKernels(model.config.head_size))
    hidden, none = model.hidden(TEXTS, return_states=False)
    assert none is None
    kept, states = model.hidden(TEXTS)
    resumed, _ = model.hidden(TEXTS[::-1], states, return_states=False)
    for i, (expected, after) in enumerate(reference_ends(variant)):
        np.testing.assert_allclose(hidden[i], expected, atol=2e-5)
        np.testing.assert_allclose(hidden[i], kept[i], atol=1e-5)
        np.testing.assert_allclose(resumed[i], after, atol=TOLERANCE)
    for state, array in zip(states[0], model.zero_state(), strict=True):
        assert state.shape == array.shape


def rows_of_coded(stored, tokens):
    """The vectors of some tokens of the bundled model, by way of the NumPy decoder."""
    parts = {name.rpartition(".")[2]: stored[name] for name in stored if name.startswith("rwkv.emb.weight.")}
    matrix = CodedMatrix.from_tensors("emb.weight", parts)
    symbols = matrix.decode_blocks(tokens // BLOCK)[np.arange(len(tokens)), tokens % BLOCK]
    return matrix.rows(tokens, symbols)


def test_the_bundled_model_is_the_reference():
    """All that it switches off is skipped; hidden states of texts from one token to several pieces."""
    stored = read_safetensors(resolve(None).weights)
    tokens = np.random.default_rng(8).integers(0, 250_000, 600)
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("rwkv.emb.")}
    tensors["rwkv.emb.weight"] = rows_of_coded(stored, tokens)
    numbers = np.arange(600)
    texts = [numbers[:1], numbers[:2], numbers[3:60], numbers]
    hidden, _ = FastRWKV7(stored).hidden([tokens[text] for text in texts], return_states=False)
    for text, row in zip(texts, hidden, strict=True):
        expected = reference(tensors, text)[0][-1]
        np.testing.assert_allclose(row, expected, atol=1e-5)
        assert row @ expected / np.linalg.norm(row) / np.linalg.norm(expected) > 0.999999


def test_skipped_parameters_leave_the_state_whole():
    """What a simple model's state holds is what the reference's does, channel mixing's shift too."""
    tensors = simple_checkpoint()
    _, (state,) = FastRWKV7(tensors, token_budget=16).hidden([TEXTS[6]])
    for array, expected in zip(state, reference(tensors, TEXTS[6])[1], strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-5)


def test_nothing_in_nothing_out(model):
    hidden, states = model.hidden([])
    assert hidden.shape == (0, 128)
    assert hidden.dtype == np.float32
    assert states == []
    assert model.hidden([], full_output=True, return_states=False) == ([], None)


def test_packed_tables_are_read_row_by_row():
    tensors = dict(TENSORS)
    table = tensors.pop("rwkv.emb.weight")
    scale = np.abs(table).max(1, keepdims=True) / 127
    packed = np.round(table / scale).astype(np.int8)
    tensors["rwkv.emb.weight.int8"], tensors["rwkv.emb.weight.scale"] = packed, scale.astype(np.float16)
    plain = {**TENSORS, "rwkv.emb.weight": packed * scale.astype(np.float16).astype(np.float32)}
    hidden, expected = (build(tensors=either).hidden(TEXTS)[0] for either in (tensors, plain))
    np.testing.assert_array_equal(hidden, expected)


def test_coded_tables_are_read_row_by_row(model):
    tensors = dict(TENSORS)
    parts, rounded = ck.coded(tensors.pop("rwkv.emb.weight"))
    tensors |= {f"rwkv.emb.weight.{ending}": part for ending, part in parts.items()}
    plain = {**TENSORS, "rwkv.emb.weight": rounded}
    hidden, expected = (build(model.kernels.name, either).hidden(TEXTS)[0] for either in (tensors, plain))
    np.testing.assert_array_equal(hidden, expected)


def test_float16_files_give_the_reference_of_float16(tmp_path):
    from safetensors.numpy import save_file

    half = {name: tensor.astype(np.float16) for name, tensor in TENSORS.items()}
    save_file(half, tmp_path / "model.safetensors")
    model = FastRWKV7.from_file(tmp_path / "model.safetensors")
    expected = reference(half, TEXTS[3])[0][-1]
    np.testing.assert_allclose(model.hidden([TEXTS[3]])[0][0], expected, atol=TOLERANCE)


def test_flops_count_what_every_token_passes():
    C, ffn, lora = 128, 96, 8
    block = 4 * C * C + 2 * C * ffn + 3 * 2 * C * lora  # and the v pair after the first layer
    last = 2 * C * C + 3 * 2 * C * lora
    assert build("numpy").flops_per_token == 2 * (block + (block + 2 * C * lora) + last)
    assert build("numpy").flops_per_text == 2 * (
        2 * (2 * C * C + 2 * C * lora) + 2 * C * ffn
    )  # two rows, one of ffn
    one_layer = FastRWKV7(random_checkpoint(n_layer=1))
    assert one_layer.flops_per_token == 2 * (C * C + 2 * 2 * C * lora)  # values are made of sums
    assert one_layer.flops_per_text == 2 * (2 * (4 * C * C + 2 * C * lora) + 2 * C * ffn)
    simple = FastRWKV7(simple_checkpoint())
    assert simple.flops_per_token == 2 * 2 * C  # keys look at two inputs
    assert simple.flops_per_text == 2 * (3 * C * C + 2 * C * lora)


def test_bad_input_is_named(model):
    with pytest.raises(
        TokenizerError, match="text 1 of the batch has the token 50, outside the vocabulary of 50"
    ):
        model.hidden([[1], [3, 50]])
    with pytest.raises(TokenizerError, match="token -1"):
        model.hidden([[-1]])
    with pytest.raises(ValueError, match="text 0 of the batch has no tokens"):
        model.hidden([[]])
    with pytest.raises(StateError, match="1 states for 2 texts"):
        model.hidden([[1], [2]], [model.zero_state()])
    with pytest.raises(StateError, match=r"state 0 has 3 arrays .* belongs to another model"):
        model.hidden([[1]], [model.zero_state()[:3]])
    with pytest.raises(ValueError, match=r"configuration says .*vocab_size=51"):
        FastRWKV7(TENSORS, replace(model.config, vocab_size=51))


def test_a_damaged_checkpoint_names_every_problem(tmp_path):
    tensors = dict(TENSORS)
    del tensors["rwkv.blocks.1.att.w1"]
    tensors["rwkv.ln_out.bias"] = np.zeros(7, np.float32)
    with pytest.raises(CheckpointError) as caught:
        FastRWKV7(tensors)
    assert "blocks.1.att.w1 is missing" in str(caught.value)
    assert "ln_out.bias has shape (7,), expected (128)" in str(caught.value)
    with pytest.raises(CheckpointError, match="no token table"):
        FastRWKV7({})
    with pytest.raises(CheckpointError, match="no weights file at"):
        FastRWKV7.from_file(tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors cannot be read"):
        FastRWKV7.from_file(tmp_path / "bad.safetensors")


@given(st.lists(st.integers(1, 200), max_size=60), st.integers(1, 20), st.integers(1, 4))
def test_batches_hold_every_text_once_within_the_budget(lengths, most, threads):
    batches = _pack(lengths, 64, most, threads)
    assert [i for batch in batches for i in batch] == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= 64
        assert len(batch) <= most


def test_importing_the_engine_does_not_import_torch():
    code = "import sys, rwkv_embed.ops.fast; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_memory_and_cost_do_not_depend_on_length():
    import time

    import psutil

    model = build("c", token_budget=512)
    seconds, resident = {}, {}
    for length in (4096, 131_072):
        tokens = np.arange(length) % 50
        model.hidden([tokens[:2048]])
        best = min(_timed(time, model, tokens) for _ in range(3))
        seconds[length], resident[length] = best / length, psutil.Process().memory_info().rss
    assert resident[131_072] - resident[4096] < 20e6
    assert seconds[131_072] < seconds[4096] * 1.2  # the benchmark says how flat; here: no growth with length


def _timed(time, model, tokens):
    start = time.thread_time()
    model.hidden([tokens])
    return time.thread_time() - start
