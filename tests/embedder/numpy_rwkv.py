"""A small RWKV-7 in NumPy, token by token and text by text: the fake back end of the embedder's tests.

It is a real RNN of the real shapes with seeded random weights, so what depends on order, state or length
is really tested; and it is slow and obvious, so it may be trusted.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkv_embed.backends import ModelInfo, check_shapes
from rwkv_embed.config import ModelConfig
from rwkv_embed.pooling import Head

Floats = NDArray[np.float32]


class ByteTokenizer:
    """Id = byte + 1, so that 0 and the last id are free for "start" and EOS. Never joins characters."""

    vocab_size = 258

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode("utf-8")]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(token - 1 for token in ids).decode("utf-8", "replace")


def random_tensors(
    seed: int, n_layer: int, n_head: int, head_size: int, vocab_size: int, rank: int = 4
) -> dict[str, Floats]:
    """Official names and shapes of an RWKV-7 without vocabulary head."""
    rng = np.random.default_rng(seed)
    C = n_head * head_size

    def normal(*shape: int) -> Floats:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    tensors = {"emb.weight": rng.standard_normal((vocab_size, C)).astype(np.float32)}
    norms = ["ln_out", "blocks.0.ln0"]
    for layer in range(n_layer):
        block = f"blocks.{layer}."
        norms += [block + "ln1", block + "ln2", block + "att.ln_x"]
        for letter in "rwkvag":
            tensors[f"{block}att.x_{letter}"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        for letter in "wav":
            tensors[f"{block}att.{letter}0"] = normal(1, 1, C)
        for letter in "wavg":
            tensors[f"{block}att.{letter}1"] = normal(C, rank)
            tensors[f"{block}att.{letter}2"] = normal(rank, C)
        tensors[block + "att.k_k"] = rng.uniform(0.5, 1, (1, 1, C)).astype(np.float32)
        tensors[block + "att.k_a"] = rng.uniform(0.5, 1, (1, 1, C)).astype(np.float32)
        tensors[block + "att.r_k"] = normal(n_head, head_size)
        for name in ("receptance", "key", "value", "output"):
            tensors[f"{block}att.{name}.weight"] = normal(C, C)
        tensors[block + "ffn.x_k"] = rng.uniform(0, 1, (1, 1, C)).astype(np.float32)
        tensors[block + "ffn.key.weight"] = normal(4 * C, C)
        tensors[block + "ffn.value.weight"] = normal(C, 4 * C)
    for name in norms:
        tensors[name + ".weight"] = rng.uniform(0.5, 1.5, C).astype(np.float32)
        tensors[name + ".bias"] = normal(C)
    return tensors


def layer_norm(x: Floats, weight: Floats, bias: Floats, eps: float = 1e-5) -> Floats:
    return (x - x.mean()) / np.sqrt(x.var() + eps) * weight + bias


def sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-x))


def step(z: dict[str, Floats], state: list[Floats], token: int) -> tuple[Floats, list[Floats]]:
    """One token: hidden state after ln_out (C,), and the new state; `state` is left as it was."""
    n_layer = len(state) // 3
    H, N, _ = state[1].shape
    new: list[Floats] = []
    x = layer_norm(z["emb.weight"][token], z["blocks.0.ln0.weight"], z["blocks.0.ln0.bias"])
    v_first = x
    for i in range(n_layer):
        p = {
            name.removeprefix(f"blocks.{i}."): t.squeeze() for name, t in z.items() if f"blocks.{i}." in name
        }
        att_shift, wkv, ffn_shift = state[3 * i : 3 * i + 3]
        xn = layer_norm(x, p["ln1.weight"], p["ln1.bias"])
        xr, xw, xk, xv, xa, xg = (xn + (att_shift - xn) * p[f"att.x_{letter}"] for letter in "rwkvag")
        r = p["att.receptance.weight"] @ xr
        k = p["att.key.weight"] @ xk
        v = p["att.value.weight"] @ xv
        w = np.exp(-0.606531 * sigmoid(p["att.w0"] + np.tanh(xw @ p["att.w1"]) @ p["att.w2"]))
        a = sigmoid(p["att.a0"] + xa @ p["att.a1"] @ p["att.a2"])
        g = sigmoid(xg @ p["att.g1"]) @ p["att.g2"]
        if i == 0:
            v_first = v
        else:
            v = v + (v_first - v) * sigmoid(p["att.v0"] + xv @ p["att.v1"] @ p["att.v2"])
        kk = (k * p["att.k_k"]).reshape(H, N)
        kk = kk / np.linalg.norm(kk, axis=-1, keepdims=True)
        k = k * (1 + (a - 1) * p["att.k_a"])
        r, w, k, v, a = (each.reshape(H, N) for each in (r, w, k, v, a))
        S = np.empty_like(wkv)
        out = np.empty((H, N), np.float32)
        for h in range(H):
            S[h] = wkv[h] * w[h] + np.outer(wkv[h] @ -kk[h], kk[h] * a[h]) + np.outer(v[h], k[h])
            out[h] = S[h] @ r[h]
            weight, bias = (p[f"att.ln_x.{name}"].reshape(H, N)[h] for name in ("weight", "bias"))
            out[h] = layer_norm(out[h], weight, bias, 64e-5) + (r[h] * k[h] * p["att.r_k"][h]).sum() * v[h]
        v_first = v_first.reshape(-1)
        x = x + p["att.output.weight"] @ (out.reshape(-1) * g)
        fn = layer_norm(x, p["ln2.weight"], p["ln2.bias"])
        k = np.maximum(p["ffn.key.weight"] @ (fn + (ffn_shift - fn) * p["ffn.x_k"]), 0) ** 2
        x = x + p["ffn.value.weight"] @ k
        new += [xn.astype(np.float32), S.astype(np.float32), fn.astype(np.float32)]
    return layer_norm(x, z["ln_out.weight"], z["ln_out.bias"]).astype(np.float32), new


class NumpyBackend:
    """Implements `rwkv_embed.backends.Backend`. `calls` counts tokens read, `held` states given out."""

    def __init__(
        self,
        *,
        seed: int = 0,
        n_layer: int = 2,
        n_head: int = 2,
        head_size: int = 4,
        eos: int | None = 257,
        prompts: dict[str, str] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.tokenizer: Any = tokenizer or ByteTokenizer()
        vocab_size = self.tokenizer.vocab_size
        C = n_head * head_size
        self.tensors = random_tensors(seed, n_layer, n_head, head_size, vocab_size)
        rng = np.random.default_rng(seed + 1)
        fc1, fc2 = rng.standard_normal((2, C, C)).astype(np.float32) / np.sqrt(C).astype(np.float32)
        weight, bias = rng.standard_normal((2, C)).astype(np.float32)
        self.info = ModelInfo(
            model_id="tiny",
            identity=f"seed {seed}",
            config=ModelConfig("7", n_layer, C, n_head, head_size, 4 * C, vocab_size),
            eos=eos,
            head=Head(fc1, fc2, weight, bias) if eos is not None else None,
            prompts=prompts or {},
        )
        self.tokens_read = 0
        self.longest_call = 0

    @property
    def zero(self) -> list[Floats]:
        c = self.info.config
        shapes = [(c.n_embd,), (c.n_head, c.head_size, c.head_size), (c.n_embd,)] * c.n_layer
        return [np.zeros(shape, np.float32) for shape in shapes]

    def hidden_sequence(
        self, batch: Sequence[Sequence[int]], states: Sequence[Any] | None = None
    ) -> tuple[list[Floats], list[Any]]:
        outputs, after = [], []
        for row, tokens in enumerate(batch):
            assert len(tokens) > 0, "back ends are never given an empty text"
            state = self.zero if states is None else states[row]
            hidden = []
            for token in tokens:
                one, state = step(self.tensors, state, token)
                hidden.append(one)
            outputs.append(np.stack(hidden))
            after.append(state)
        self.tokens_read += sum(map(len, batch))
        self.longest_call = max(self.longest_call, *map(len, batch))
        return outputs, after

    def hidden(
        self, batch: Sequence[Sequence[int]], states: Sequence[Any] | None = None, *, keep: bool = True
    ) -> tuple[Floats, list[Any]]:
        outputs, after = self.hidden_sequence(batch, states)
        return np.stack([rows[-1] for rows in outputs]), after if keep else [None] * len(batch)

    def arrays(self, state: Any) -> list[Floats]:
        return list(state)

    def state(self, arrays: Sequence[Floats]) -> Any:
        check_shapes(arrays, [array.shape for array in self.zero])
        return list(arrays)
