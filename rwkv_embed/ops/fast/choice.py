"""Which kernels run a model, and how narrow its products are."""

from importlib.util import find_spec

from rwkv_embed.config import Dtype, ModelConfig
from rwkv_embed.ops.fast.compiled import CompiledKernels
from rwkv_embed.ops.fast.kernels import PANEL, Kernels
from rwkv_embed.ops.fast.plain import NumpyKernels

_MAX_HEAD_SIZE = 256  # MAX_HEAD of kernels.c
_HEAD_SIZE_STEP = 8  # LANES of common.h
_MANY_FLOPS = 10e6  # a token, from which on products are most of the work: bfloat16 is 1.3 to 1.8 times as fast


def load_kernels(config: ModelConfig) -> Kernels:
    """The compiled kernels where they are built and fit the sizes, else NumPy."""
    head_size = config.head_size
    fits = head_size <= _MAX_HEAD_SIZE and head_size % _HEAD_SIZE_STEP == 0
    fits = fits and config.n_embd % PANEL == 0 and config.n_ffn % PANEL == 0
    spec = find_spec("rwkv_embed.ops.fast._kernels")
    if fits and spec is not None and spec.origin is not None:
        return CompiledKernels(spec.origin, head_size)
    return NumpyKernels(head_size)


def choose_dtype(kernels: Kernels, flops_per_token: int) -> Dtype:
    """bfloat16 where the processor multiplies it faster and products are most of the work, else float32."""
    return "bfloat16" if "bfloat16" in kernels.native and flops_per_token >= _MANY_FLOPS else "float32"
