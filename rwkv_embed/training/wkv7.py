"""The RWKV-7 recurrence as differentiable torch functions over packed sequences.

`wkv7` reads it at every position, `readout` gives what the texts' ends read from it. They run the C kernels of
`wkv7.c`, compiled once with the system's compiler and kept in the user's cache; without a compiler they run
`wkv7_reference` and `readout_reference`, which are also what the kernels are tested against.
"""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

N = 64
# Sums may be reordered, so that they are vectorised. Not -ffast-math: it would switch denormal numbers off for
# the whole process.
FLAGS = ["-O3", "-march=native", "-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math"]
FLAGS += ["-fno-math-errno", "-fopenmp", "-shared", "-fPIC"]
SOURCE = Path(__file__).with_name("wkv7.c")
NO_KERNEL = (
    "The C kernel could not be compiled: training works, many times slower. Install gcc or clang (or see CC), "
    "and let the user's cache folder be written to."
)

log = logging.getLogger(__name__)


def wkv7_reference(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, starts: Tensor
) -> Tensor:
    """Token by token. All (T, C); `starts` (B + 1,) first token of each text, and T. Returns (T, C)."""
    T, H = r.shape[0], r.shape[1] // N
    r, w, k, v, a, b = (x.view(T, H, N) for x in (r, w, k, v, a, b))
    outputs = []
    for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        S = torch.zeros(H, N, N, dtype=r.dtype)
        for t in range(begin, end):
            sa = S @ a[t][:, :, None]
            S = S * w[t][:, None, :] + sa * b[t][:, None, :] + v[t][:, :, None] * k[t][:, None, :]
            outputs.append((S @ r[t][:, :, None]).flatten())
    return torch.stack(outputs)


@cache
def kernel() -> ctypes.CDLL | None:
    """The compiled kernel, or None where no C compiler makes one, or the user's cache cannot be written."""
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("cc") or shutil.which("gcc") or "cc"]
        command = [*compiler, *FLAGS]
        key = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
        target = user_cache_path("rwkv-embed") / f"wkv7-{key}.so"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_suffix(f".{os.getpid()}")
            subprocess.run([*command, "-o", partial, SOURCE], capture_output=True, check=True, text=True)
            partial.rename(target)
        return ctypes.CDLL(str(target))
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        log.info("the kernel was not compiled: %s %s", error, getattr(error, "stderr", ""))
        return None


def set_threads(threads: int) -> None:
    """How many processors torch and the kernel use."""
    torch.set_num_threads(threads)
    library = kernel()
    if library is not None:
        library.omp_set_num_threads(threads)  # the kernel's OpenMP may be another than torch's


def readout_reference(
    r: Tensor, w: Tensor, k: Tensor, a: Tensor, b: Tensor, starts: Tensor, ends: Tensor
) -> Tensor:
    """Token by token, from the end of each text. Arguments and result are those of `readout`."""
    T, H = k.shape[0], k.shape[1] // N
    w, k, a, b = (x.view(T, H, N) for x in (w, k, a, b))
    weights = [k.new_zeros(H)] * T
    for text, (begin, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        u = r[text].view(H, N)
        for t in reversed(range(begin, end)):
            weights[t] = (k[t] * u).sum(1)
            u = u * w[t] + a[t] * (b[t] * u).sum(1, keepdim=True)
    return torch.stack(weights)


class _WKV7(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        *tensors, starts = (x.contiguous() for x in inputs)
        ctx.save_for_backward(*tensors, starts)
        y = torch.empty_like(tensors[0])
        _call("wkv7_forward", len(starts) - 1, [starts], [*tensors, y])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        *tensors, starts = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in tensors]
        _call("wkv7_backward", len(starts) - 1, [starts], [*tensors, grad_outputs[0].contiguous(), *grads])
        return (*grads, None)


class _Readout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        *tensors, starts, ends = (x.contiguous() for x in inputs)
        ctx.save_for_backward(*tensors, starts, ends)
        k = tensors[2]
        weights = torch.zeros(k.shape[0], k.shape[1] // N)
        _call("readout_forward", len(starts), [starts, ends], [*tensors, weights])
        return weights

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        *tensors, starts, ends = ctx.saved_tensors
        grads = [torch.zeros_like(x) for x in tensors]
        _call(
            "readout_backward", len(starts), [starts, ends], [*tensors, grad_outputs[0].contiguous(), *grads]
        )
        return (*grads, None, None)


def _call(name: str, texts: int, positions: list[Tensor], tensors: list[Tensor]) -> None:
    library = kernel()
    assert library is not None and all(x.dtype == torch.float32 for x in tensors)
    assert all(x.dtype == torch.int64 for x in positions)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in positions + tensors]
    getattr(library, name)(texts, tensors[0].shape[1] // N, *pointers)


def wkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, starts: Tensor) -> Tensor:
    """(T, C) each -> (T, C): S = S diag(w) + (S a) b^T + v k^T per text and head, y = S r."""
    run = wkv7_reference if kernel() is None else _WKV7.apply
    y: Tensor = run(r, w, k, v, a, b, starts)
    return y


def readout(r: Tensor, w: Tensor, k: Tensor, a: Tensor, b: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """What the texts' ends read, without the states between: (T, H) weights of the tokens' values for each head.

    r (B, C) is what reads, the others (T, C) are as in `wkv7`, whose y at the end of a text is the sum of v_t
    times the weight of t. Text i is the tokens from starts[i] to before ends[i]; tokens of no text have weight 0.
    """
    run = readout_reference if kernel() is None else _Readout.apply
    weights: Tensor = run(r, w, k, a, b, starts, ends)
    return weights
