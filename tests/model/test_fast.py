"""The CPU engine against the reference of engine.py."""

import subprocess
import sys
from dataclasses import replace
from functools import cache

import checkpoints as ck
import numpy as np
import pytest
from engine import DTYPES, TENSORS, TEXTS, build, random_checkpoint, reference, sigmoid
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkv_embed.coding import BLOCK, CodedMatrix
from rwkv_embed.errors import CheckpointError, StateError, TokenizerError
from rwkv_embed.hub import resolve
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.ops.fast.kernels import Gates, Norm, Products
from rwkv_embed.ops.fast.model import _pack
from rwkv_embed.ops.fast.plain import NumpyKernels
from rwkv_embed.ops.fast.weights import read_safetensors
from rwkv_embed.sums import Sums

TOLERANCE = 1e-4


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
        expected = v + (first - v) * sigmoid(v0 + (0 if some_gate is None else gate))
        np.testing.assert_allclose(mixed, expected, atol=1e-6)


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


def bundled_vectors(stored, vocab_size, tokens):
    """The vectors of some tokens of the bundled model, by way of the NumPy decoder."""
    parts = {name.rpartition(".")[2]: stored[name] for name in stored if name.startswith("rwkv.emb.weight.")}
    matrix = CodedMatrix.from_tensors("emb.weight", parts)
    named = {name.removeprefix("rwkv."): tensor for name, tensor in stored.items()}
    sums = Sums.from_tensors(named, matrix.shape[0])
    assert sums.rows + len(sums) == vocab_size

    def rows_of(rows):
        symbols = matrix.decode_blocks(rows // BLOCK)[np.arange(len(rows)), rows % BLOCK]
        return matrix.rows(rows, symbols)

    return sums.vectors(tokens, rows_of)


def test_the_bundled_model_is_the_reference():
    """All that it switches off is skipped; hidden states of texts from one token to several pieces."""
    stored = read_safetensors(resolve(None).weights)
    model = FastRWKV7(stored)
    tokens = np.random.default_rng(8).integers(0, model.config.vocab_size, 600)
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith("rwkv.emb.")}
    tensors["rwkv.emb.weight"] = bundled_vectors(stored, model.config.vocab_size, tokens)
    numbers = np.arange(600)
    texts = [numbers[:1], numbers[:2], numbers[3:60], numbers]
    hidden, _ = model.hidden([tokens[text] for text in texts], return_states=False)
    for text, row in zip(texts, hidden, strict=True):
        expected = reference(tensors, text)[0][-1]
        np.testing.assert_allclose(row, expected, atol=2e-5)
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


def test_weights_that_are_not_numbers_are_refused():
    def damaged(name, value):
        tensors = dict(TENSORS)
        tensors[name] = tensors[name].copy()
        tensors[name].reshape(-1)[5] = value
        return tensors

    names = ["rwkv.blocks.1.att.key.weight", "rwkv.blocks.0.ln1.bias", "rwkv.emb.weight"]
    for name, value in zip(names, (np.nan, np.inf, -np.inf), strict=True):
        with pytest.raises(CheckpointError) as caught:
            FastRWKV7(damaged(name, value))
        assert f"{name.removeprefix('rwkv.')} has NaN or infinite weights; the file is" in str(caught.value)
    tensors = damaged("rwkv.emb.weight", 0.0)
    table = tensors.pop("rwkv.emb.weight")
    scale = np.full((len(table), 1), np.nan)
    packed = {"rwkv.emb.weight.int8": table.astype(np.int8), "rwkv.emb.weight.scale": scale}
    with pytest.raises(CheckpointError, match=r"emb\.weight\.scale has NaN or infinite weights"):
        FastRWKV7(tensors | packed)


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
