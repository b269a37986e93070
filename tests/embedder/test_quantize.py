"""Fewer bytes: error bounds, fixed codes, files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkv_embed.errors import CheckpointError
from rwkv_embed.quantize import Int8Ranges, dequantize, quantize, truncate

VECTORS = truncate(np.random.default_rng(0).standard_normal((400, 24)).astype(np.float32), None)
RANGES = Int8Ranges.fit(VECTORS, dims=[8])


@pytest.mark.parametrize(
    ("precision", "dtype", "width"),
    [
        ("float16", np.float16, 24),
        ("int8", np.int8, 24),
        ("uint8", np.uint8, 24),
        ("binary", np.int8, 3),
        ("ubinary", np.uint8, 3),
    ],
)
def test_dtype_and_shape(precision: Any, dtype: Any, width: int) -> None:
    codes = quantize(VECTORS, precision, RANGES)
    assert codes.dtype == dtype
    assert codes.shape == (400, width)
    assert quantize(VECTORS[:0], precision, RANGES).shape == (0, width)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_eight_bits_are_within_half_a_step(precision: Any) -> None:
    low, high = RANGES.of(24)
    restored = dequantize(quantize(VECTORS, precision, RANGES), precision, RANGES)
    inside = (low <= VECTORS) & (high >= VECTORS)
    assert inside.mean() > 0.99
    half_a_step = np.broadcast_to((high - low) / 255 / 2, VECTORS.shape)
    assert (np.abs(restored - VECTORS)[inside] <= half_a_step[inside] + 1e-6).all()
    cosines = (truncate(restored, None) * VECTORS).sum(axis=1)
    assert cosines.min() > 0.999


def test_int8_is_uint8_minus_128_and_clips() -> None:
    far = np.array([[10.0] * 24, [-10.0] * 24], np.float32)
    np.testing.assert_array_equal(quantize(far, "uint8", RANGES), [[255] * 24, [0] * 24])
    np.testing.assert_array_equal(quantize(far, "int8", RANGES), [[127] * 24, [-128] * 24])


def test_binary_keeps_signs() -> None:
    for precision in ("binary", "ubinary"):
        signs = dequantize(quantize(VECTORS, precision), precision)
        np.testing.assert_array_equal(signs, np.where(VECTORS > 0, 1, -1))
    np.testing.assert_array_equal(quantize(VECTORS, "float32"), VECTORS)


def test_ranges_are_fitted_for_each_dimension(tmp_path: Path) -> None:
    """Truncated vectors are normalised again and so need wider ranges."""
    assert (RANGES.of(8)[1] > RANGES.of(24)[1][:8]).all()
    codes = quantize(truncate(VECTORS, 8), "int8", RANGES)
    assert codes.min() == -128
    assert codes.max() == 127
    with pytest.raises(ValueError, match=r"fitted for \[8, 24\] dimensions, not for 12"):
        quantize(truncate(VECTORS, 12), "int8", RANGES)
    RANGES.save(tmp_path / "r.safetensors")
    loaded = Int8Ranges.load(tmp_path / "r.safetensors")
    np.testing.assert_array_equal(quantize(VECTORS, "int8", loaded), quantize(VECTORS, "int8", RANGES))
    np.testing.assert_array_equal(loaded.of(8)[0], RANGES.of(8)[0])


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs fitted ranges"):
        quantize(VECTORS, "uint8")
    with pytest.raises(ValueError, match="needs the ranges they were made with"):
        dequantize(quantize(VECTORS, "uint8", RANGES), "uint8")
    with pytest.raises(ValueError, match=r"at least two vectors, got an array of shape \(24,\)"):
        Int8Ranges.fit(VECTORS[0])
    (tmp_path / "r.safetensors").write_text("no")
    with pytest.raises(CheckpointError, match="holds no int8 ranges"):
        Int8Ranges.load(tmp_path / "r.safetensors")


def test_a_constant_component_has_a_code() -> None:
    vectors = np.array([[1.0, 0.5], [1.0, -0.5], [1.0, 0.1]], np.float32)
    ranges = Int8Ranges.fit(truncate(vectors, None))
    assert np.isfinite(dequantize(quantize(vectors, "int8", ranges), "int8", ranges)).all()


def test_the_zero_vector_is_left_alone() -> None:
    np.testing.assert_array_equal(truncate(np.zeros((2, 4), np.float32), 2), np.zeros((2, 2)))
