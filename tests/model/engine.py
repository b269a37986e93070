"""RWKV-7 written out token by token in float64, small checkpoints, and the CPU engine on them."""

import numpy as np
import pytest

from rwkv_embed.ops.fast import FastRWKV7
from rwkv_embed.ops.fast.choice import load_kernels
from rwkv_embed.ops.fast.plain import NumpyKernels

DTYPES = ["float32", "bfloat16", "int8"]


# --- the reference: one token at a time, the formulas of the paper and of PyPI `rwkv`


def _norm(x, weight, bias, eps=1e-5):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * weight + bias


def sigmoid(x):
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
        w = np.exp(-np.exp(-0.5) * sigmoid(w))
        a = sigmoid(p["att.a0"].reshape(-1) + xa @ p["att.a1"] @ p["att.a2"])
        g = sigmoid(xg @ p["att.g1"]) @ p["att.g2"]
        kk = (k * p["att.k_k"].reshape(-1)).reshape(H, N)
        kk = kk / np.maximum(np.linalg.norm(kk, axis=-1, keepdims=True), 1e-12)
        k = k * (1 + (a - 1) * p["att.k_a"].reshape(-1))
        if i == 0:
            v_first = v
        else:
            v = v + (v_first - v) * sigmoid(p["att.v0"].reshape(-1) + xv @ p["att.v1"] @ p["att.v2"])
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


def build(kernels="c", tensors=TENSORS, token_budget=32, dtype="float32"):
    chosen = load_kernels(CONFIG) if kernels == "c" else NumpyKernels(64)
    if chosen.name != kernels:
        pytest.skip("the compiled kernels are not built: python setup.py build_ext --inplace")
    return FastRWKV7(tensors, dtype=dtype, threads=2, token_budget=token_budget, kernels=chosen)
