"""Is a 7B model usable on a small machine without a GPU? Peak memory, load time and tokens/s.

Writes a random checkpoint of Eagle-7B's exact shapes (RWKV-5.2, 32 layers x 4096, 15 GB in bfloat16), then loads and
runs it in a fresh process per precision. The weights are noise; sizes, memory and speed are those of the real file.

    python -m benchmarks.seven_billion --folder /tmp            # needs 15 GB of disk, removes the file afterwards
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkv_embed.checkpoint import NewTensor, write_safetensors
from rwkv_embed.models import load_model

LAYERS, WIDTH, HEADS, FFN, VOCABULARY = 32, 4096, 64, 14336, 65536


def eagle_7b() -> Iterator[NewTensor]:
    """The tensors of RWKV-v5-Eagle-World-7B, with random values."""
    # One block of noise serves all: drawing 7.5 billion values would take longer than everything else.
    noise = (torch.rand(FFN * WIDTH, generator=torch.Generator().manual_seed(0)) - 0.5).bfloat16()

    def tensor(name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> NewTensor:
        def values() -> Tensor:
            count = torch.Size(shape).numel()
            source = noise if count <= len(noise) else noise.repeat(-(-count // len(noise)))
            return (source[:count].view(shape) * scale + offset).bfloat16()

        return NewTensor(name, "BF16", shape, values)

    def norm(name: str) -> Iterator[NewTensor]:
        yield tensor(f"{name}.weight", WIDTH, scale=0.1, offset=1.0)
        yield tensor(f"{name}.bias", WIDTH, scale=0.1)

    yield tensor("emb.weight", VOCABULARY, WIDTH)
    yield from norm("blocks.0.ln0")
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        for name in ("ln1", "ln2", "att.ln_x"):
            yield from norm(block + name)
        for name in ("att.time_mix_k", "att.time_mix_v", "att.time_mix_r", "att.time_mix_g", "ffn.time_mix_k", "ffn.time_mix_r"):
            yield tensor(block + name, 1, 1, WIDTH, offset=0.5)
        yield tensor(f"{block}att.time_decay", HEADS, WIDTH // HEADS, scale=4.0, offset=-4.0)
        yield tensor(f"{block}att.time_faaaa", HEADS, WIDTH // HEADS)
        for name in ("att.receptance", "att.key", "att.value", "att.gate", "att.output", "ffn.receptance"):
            yield tensor(f"{block}{name}.weight", WIDTH, WIDTH, scale=0.03)
        yield tensor(f"{block}ffn.key.weight", FFN, WIDTH, scale=0.03)
        yield tensor(f"{block}ffn.value.weight", WIDTH, FFN, scale=0.03)
    yield from norm("ln_out")
    yield tensor("head.weight", VOCABULARY, WIDTH, scale=0.03)


class MemoryWatch:
    """Highest resident memory of this process, of its own and of mapped (reclaimable) pages, sampled 20 times a second."""

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
    text = torch.randint(1, VOCABULARY - 6, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where 15 GB fit")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "int8"])
    parser.add_argument("--tokens", type=int, default=128, help="length of the embedded text")
    parser.add_argument("--generated", type=int, default=4, help="tokens generated after it")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.dtypes[0], options.tokens, options.generated)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "eagle-7b-shapes.safetensors"
        start = time.perf_counter()
        write_safetensors(path, eagle_7b())
        print(f"wrote {path.stat().st_size / 1e9:.1f} GB in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        for dtype in options.dtypes:
            command = [sys.executable, "-m", "benchmarks.seven_billion", "--measure", str(path), "--dtypes", dtype]
            command += ["--tokens", str(options.tokens), "--generated", str(options.generated)]
            subprocess.run(command, check=True, env=os.environ)


if __name__ == "__main__":
    main()
