"""The RWKV-7 recurrence as a differentiable torch function over packed sequences.

`wkv7` runs the C kernel of `wkv7.c`, compiled once with the system's compiler and kept in the user's cache;
without a compiler it runs `wkv7_reference`, which is also what the kernel is tested against.
"""

import ctypes
import hashlib
import os
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
    """The compiled kernel, or None where there is no C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    command = [compiler, *FLAGS]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(command).encode()).hexdigest()[:16]
    target = user_cache_path("rwkv-embed") / f"wkv7-{key}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}")
        if subprocess.run([*command, "-o", partial, SOURCE], capture_output=True).returncode:
            return None
        partial.rename(target)
    return ctypes.CDLL(str(target))


def set_threads(threads: int) -> None:
    """How many processors torch and the kernel use."""
    torch.set_num_threads(threads)
    library = kernel()
    if library is not None:
        library.omp_set_num_threads(threads)  # the kernel's OpenMP may be another than torch's


class _WKV7(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        *tensors, starts = (x.contiguous() for x in inputs)
        ctx.save_for_backward(*tensors, starts)
        y = torch.empty_like(tensors[0])
        _call("wkv7_forward", starts, [*tensors, y])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        *tensors, starts = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in tensors]
        _call("wkv7_backward", starts, [*tensors, grad_outputs[0].contiguous(), *grads])
        return (*grads, None)


def _call(name: str, starts: Tensor, tensors: list[Tensor]) -> None:
    library, pointers = kernel(), [ctypes.c_void_p(x.data_ptr()) for x in tensors]
    assert (
        library is not None and all(x.dtype == torch.float32 for x in tensors) and starts.dtype == torch.int64
    )
    getattr(library, name)(
        len(starts) - 1, tensors[0].shape[1] // N, ctypes.c_void_p(starts.data_ptr()), *pointers
    )


def wkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, starts: Tensor) -> Tensor:
    """(T, C) each -> (T, C): S = S diag(w) + (S a) b^T + v k^T per text and head, y = S r."""
    run = wkv7_reference if kernel() is None else _WKV7.apply
    y: Tensor = run(r, w, k, v, a, b, starts)
    return y
