"""Time to the first token of an answer by an RWKV model: passages read for the first time, and read before.

    python -m benchmarks.state_reuse --shape 0.1B          random weights of that RWKV-7 shape
    python -m benchmarks.state_reuse --model model.pth     a checkpoint

The question is new each time; the passages, 5 of 400 tokens, are the same. Random weights cost what trained
ones do. The first token is timed to its logits and its choice, whatever it says.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from indexer.answers import Passage, Request, make_generator
from indexer.types import SearchHit

SHAPES = {"0.1B": (12, 768), "0.4B": (24, 1024)}  # layers, width of RWKV-7 World
WORDS = ["river", "song", "stone", "winter", "paper", "garden", "letter", "window", "market", "bridge"]


def random_checkpoint(shape: str, folder: Path) -> Path:
    from tests.model.checkpoints import Shape, save, weights

    layers, width = SHAPES[shape]
    sizes = Shape(layers, width // 64, 64, vocab_size=65536, n_ffn=4 * width, rank=64)
    return save(folder / "random.pth", weights("7", sizes))


def passages(model_tokens: int, count: int) -> list[Passage]:
    """Texts of about `model_tokens` World tokens (a word and its space are one token), all different."""
    texts = [" ".join(WORDS[(i * 7 + j * (i + 3)) % 10] for j in range(model_tokens)) for i in range(count)]
    return [
        Passage(i + 1, SearchHit(1.0, f"d{i}", i, None, None, "en", text, 0, len(text), {}), text)
        for i, text in enumerate(texts)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="0.1B")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--passages", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.model or random_checkpoint(options.shape, Path(folder))
        generator = make_generator(f"rwkv:{path}", max_tokens=1)
        texts = passages(options.tokens, options.passages)
        seconds = []
        for question in ("Where is the bridge?", "Who wrote the letter?", "When did winter come?"):
            start = time.perf_counter()
            for _ in generator.generate(Request(question, question, texts, (), None)):  # type: ignore[arg-type]
                pass
            seconds.append(time.perf_counter() - start)
    cold, *warm = seconds
    cached = min(warm)
    print(
        f"{options.model or options.shape}: {options.passages} passages of {options.tokens} tokens, "
        f"{torch.get_num_threads()} threads: first reading {cold:.2f} s, read before {cached:.2f} s, "
        f"ratio {cold / cached:.1f}"
    )


if __name__ == "__main__":
    main()
