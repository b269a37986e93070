"""Products of the CPU engine, float32, bfloat16 and int8: compiled, portable and NumPy's against each other."""

import numpy as np
import pytest
from engine import DTYPES, TENSORS, TEXTS, build, random_checkpoint

from benchmarks.contenders import random_rwkv7
from rwkv_embed.hub import resolve
from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.ops.fast.choice import choose_dtype


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
