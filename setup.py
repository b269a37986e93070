"""The optional part of the build (all else is in pyproject.toml): the CPU engine's kernels and the tokenizer in C.

Without a compiler the build goes on; rwkv_embed.ops.fast uses NumPy instead, and the package `tokenizers`.
"""

import sys

from setuptools import Extension, setup

# Not -ffast-math: it would switch denormal numbers off for the whole process.
flags = "-O3 -std=gnu11 -fno-math-errno -fno-trapping-math -ffinite-math-only -fno-signed-zeros -fopenmp-simd"
setup(
    ext_modules=[
        Extension(
            "rwkv_embed.ops.fast._kernels",
            [f"rwkv_embed/ops/fast/{name}.c" for name in ("kernels", "products", "coding")],
            depends=["rwkv_embed/ops/fast/common.h"],
            extra_compile_args=[] if sys.platform == "win32" else flags.split(),
            py_limited_api=True,
            optional=True,
        ),
        Extension("rwkv_embed._unigram", ["rwkv_embed/unigram.c"], py_limited_api=True, optional=True),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
