"""Is a 7B model usable on a small machine without a GPU? Peak memory, load time and tokens/s.

Writes a random checkpoint of Eagle-7B's exact shapes (RWKV-5.2, 32 layers x 4096, 15 GB in bfloat16), then
loads and runs it in a fresh process per precision. The weights are noise; sizes, memory and speed are those
of the real file.

    python -m benchmarks.seven_billion --folder /tmp    # needs 15 GB of disk, removes the file afterwards
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_embed.models import load_model
from rwkv_embed.tensor_files import NewTensor, write_safetensors


@dataclass(frozen=True)
class Shape:
    """Sizes of an RWKV-5.2."""

    layers: int
    width: int
    heads: int
    ffn: int
    vocabulary: int


EAGLE_7B = Shape(layers=32, width=4096, heads=64, ffn=14336, vocabulary=65536)
MIXES = [f"att.time_mix_{letter}" for letter in "kvrg"] + [f"ffn.time_mix_{letter}" for letter in "kr"]


def random_eagle(shape: Shape) -> Iterator[NewTensor]:
    """The tensors of an RWKV-5.2 in bfloat16, with random values."""
    width, ffn = shape.width, shape.ffn
    # One block of noise serves all: drawing 7.5 billion values would take longer than everything else.
    noise = (torch.rand(ffn * width, generator=torch.Generator().manual_seed(0)) - 0.5).bfloat16()

    def tensor(name: str, *size: int, scale: float = 1.0, offset: float = 0.0) -> NewTensor:
        def values() -> Tensor:
            count = torch.Size(size).numel()
            source = noise if count <= len(noise) else noise.repeat(-(-count // len(noise)))
            scaled = source[:count].view(size) * scale
            return scaled + offset if offset else scaled

        return NewTensor(name, "BF16", size, values)

    def norm(name: str) -> Iterator[NewTensor]:
        yield tensor(f"{name}.weight", width, scale=0.1, offset=1.0)
        yield tensor(f"{name}.bias", width, scale=0.1)

    yield tensor("emb.weight", shape.vocabulary, width)
    yield from norm("blocks.0.ln0")
    for layer in range(shape.layers):
        block = f"blocks.{layer}."
        for name in ("ln1", "ln2", "att.ln_x"):
            yield from norm(block + name)
        for name in MIXES:
            yield tensor(block + name, 1, 1, width, offset=0.5)
        yield tensor(f"{block}att.time_decay", shape.heads, width // shape.heads, scale=4.0, offset=-4.0)
        yield tensor(f"{block}att.time_faaaa", shape.heads, width // shape.heads)
        for name in ("att.receptance", "att.key", "att.value", "att.gate", "att.output", "ffn.receptance"):
            yield tensor(f"{block}{name}.weight", width, width, scale=0.03)
        yield tensor(f"{block}ffn.key.weight", ffn, width, scale=0.03)
        yield tensor(f"{block}ffn.value.weight", width, ffn, scale=0.03)
    yield from norm("ln_out")
    yield tensor("head.weight", shape.vocabulary, width, scale=0.03)


class MemoryWatch:
    """Highest resident memory of this process: all, its own, and mapped (reclaimable) pages of the file.

    Sampled 20 times a second, on Linux.
    """

    def __init__(self) -> None:
        self.peak = {"VmRSS": 0, "RssAnon": 0, "RssFile": 0}
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self.peak:
                    self.peak[name] = max(self.peak[name], int(value.split()[0]))
            time.sleep(0.05)

    def gib(self) -> dict[str, float]:
        names = {"VmRSS": "peak_rss_gib", "RssAnon": "own_gib", "RssFile": "mapped_gib"}
        return {names[name]: round(kib / 2**20, 2) for name, kib in self.peak.items()}


def measure(path: Path, dtype: Any, tokens: int, generated: int) -> dict[str, Any]:
    """Load, embed a text of so many tokens, then generate: in this process."""
    watch = MemoryWatch()
    start = time.perf_counter()
    model = load_model(path, dtype=dtype)
    loaded = time.perf_counter()
    text = torch.randint(
        1, model.vocab_size - 6, (tokens,), generator=torch.Generator().manual_seed(0)
    ).tolist()
    hidden, states = model.hidden([text])
    read = time.perf_counter()
    logits, state = model.logits(hidden[0]), states[0]
    for _ in range(generated):
        logits, state = model.forward([int(logits.argmax())], state)
    done = time.perf_counter()
    if not torch.isfinite(logits).all():
        raise RuntimeError("the random model produced NaN")
    return {
        "dtype": dtype,
        "load_s": round(loaded - start, 1),
        "embed_tokens_per_s": round(tokens / (read - loaded), 2),
        "generate_tokens_per_s": round(generated / (done - read), 2),
        **watch.gib(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where 15 GB fit")
    parser.add_argument("--checkpoint", type=Path, help="use this file (made if absent) and keep it")
    parser.add_argument("--dtypes", nargs="*", default=["bfloat16", "int8"])
    parser.add_argument("--tokens", type=int, default=128, help="length of the embedded text")
    parser.add_argument("--generated", type=int, default=4, help="tokens generated after it")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.dtypes[0], options.tokens, options.generated)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = options.checkpoint or Path(folder) / "eagle-7b-shapes.safetensors"
        if not path.exists():
            start = time.perf_counter()
            write_safetensors(path, random_eagle(EAGLE_7B))
            seconds = time.perf_counter() - start
            print(f"wrote {path.stat().st_size / 1e9:.1f} GB in {seconds:.0f} s", file=sys.stderr)
        for dtype in options.dtypes:
            command = [sys.executable, "-m", "benchmarks.seven_billion", "--measure", str(path)]
            command += ["--dtypes", dtype, "--tokens", str(options.tokens)]
            subprocess.run([*command, "--generated", str(options.generated)], check=True)


if __name__ == "__main__":
    main()
