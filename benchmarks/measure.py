"""The measurements: throughput in turns, latency of one query, cost against length, memory."""

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar, get_args

import numpy as np
import psutil

from benchmarks.contenders import CONTENDERS, Contender, load_pypi_rwkv, random_rwkv7
from rwkv_embed.config import Dtype
from rwkv_embed.ops.fast import FastRWKV7

Result = TypeVar("Result")
QUERY = "how long may a person be kept in detention without a trial"  # 12 words
LENGTHS = (128, 512, 1024, 2048, 4096, 8192, 16_384, 131_072)


def matrix_peak() -> float:
    """Float32 operations a second of this machine's BLAS on 1024 x 1024 matrices, best of 8."""
    a = np.random.default_rng(0).standard_normal((1024, 1024), np.float32)
    out = np.empty_like(a)
    return 2 * 1024**3 / min(_seconds(lambda: np.matmul(a, a, out=out)) for _ in range(8))


def bfloat16_peak(threads: int) -> float:
    """The same of torch in bfloat16."""
    import torch

    torch.set_num_threads(threads)
    a = torch.rand(1024, 1024).bfloat16()
    return 2 * 1024**3 / min(_seconds(lambda: a @ a) for _ in range(8))


class Field:
    """The contenders still running. One that fails is out, with its reason; the others go on."""

    def __init__(self) -> None:
        self.running: dict[str, Contender] = {}
        self.failed: dict[str, str] = {}

    def attempt(self, name: str, step: Callable[[], Result]) -> Result | None:
        """The step's result; None, and the contender out, if it raises."""
        try:
            return step()
        except Exception as error:  # other people's code: whatever it raises is the reason
            self.running.pop(name, None)
            self.failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            return None

    def each(self, measurement: Callable[[str, Contender], Result]) -> dict[str, Result]:
        """A measurement of everyone, one after the other; without those it fails for."""
        results: dict[str, Result] = {}
        for name, contender in list(self.running.items()):
            result = self.attempt(name, partial(measurement, name, contender))
            if result is not None:
                results[name] = result
        return results


def throughput(field: Field, texts: Sequence[str], turns: int, seconds: float) -> dict[str, float]:
    """Texts a second: in each turn every contender gets about `seconds`; the median turn counts."""
    sizes = field.each(lambda _, contender: _batch_size(contender, texts, seconds))

    def take_turn(turn: int) -> dict[str, float]:
        return field.each(lambda name, contender: _rate(contender, texts, sizes[name], turn, seconds))

    rates = [take_turn(turn) for turn in range(turns)]
    return {name: float(np.median([rate[name] for rate in rates])) for name in field.running}


def _batch_size(contender: Contender, texts: Sequence[str], seconds: float) -> int:
    """As many texts a call as take about half of `seconds`; also warms up."""
    contender.encode(texts[:4])
    taken = _seconds(lambda: contender.encode(texts[4:8]))
    return int(np.clip(4 * seconds / 2 / taken, 4, len(texts)))


def _rate(contender: Contender, texts: Sequence[str], size: int, turn: int, seconds: float) -> float:
    """The slow see a part of the texts: each turn another, the same mixture of languages."""
    done, start, at = 0, time.perf_counter(), turn * size
    while time.perf_counter() - start < seconds:
        batch = [texts[(at + i) % len(texts)] for i in range(size)]
        contender.encode(batch)
        done, at = done + size, at + size
    return done / (time.perf_counter() - start)


def latency(contender: Contender, seconds: float = 1.0) -> dict[str, float]:
    """Milliseconds of one query, the model warm."""
    contender.encode([QUERY])
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        times.append(1000 * _seconds(lambda: contender.encode([QUERY])))
    return {"p50": float(np.quantile(times, 0.5)), "p99": float(np.quantile(times, 0.99)), "runs": len(times)}


def cost_by_length(
    contender: Contender, longest_seconds: float, tokens_each: int = 1024, rounds: int = 3
) -> dict[int, list[float]]:
    """Microseconds of processor time a token, one for each round, at each length.

    Lengths take turns, so that what slows the machine down slows all of them. A length is read as often as
    `tokens_each` allows, and once if it is longer; lengths that would take `longest_seconds` are left out.
    """
    costs: dict[int, list[float]] = {}
    for length in LENGTHS:
        if costs and _expected_seconds(costs, length) > longest_seconds:
            break
        costs[length] = [_cost(contender, length, tokens_each)]
    for _ in range(rounds - 1):
        for length in costs:
            costs[length].append(_cost(contender, length, tokens_each))
    return costs


def _expected_seconds(costs: dict[int, list[float]], length: int) -> float:
    """At the cost a token of the length before, growing as it grew so far: at worst with the length."""
    before = max(costs)
    growth = length / before if len(costs) < 2 else costs[before][0] / min(cost for (cost,) in costs.values())
    return 1e-6 * costs[before][0] * length * min(max(growth, 1.0), length / before)


def _cost(contender: Contender, length: int, tokens_each: int) -> float:
    assert contender.hidden is not None
    hidden = contender.hidden
    tokens = [1 + i % 1000 for i in range(length)]
    hidden(tokens[:128])
    runs = max(1, tokens_each // length)
    start = time.process_time()
    for _ in range(runs):
        hidden(tokens)
    return 1e6 * (time.process_time() - start) / runs / length


def memory_growth(contender: Contender, short: int = 1024, long: int = 131_072) -> float:
    """Megabytes of resident memory that a long text adds after a short one."""
    assert contender.hidden is not None
    tokens = [1 + i % 1000 for i in range(long)]
    contender.hidden(tokens[:short])
    before = psutil.Process().memory_info().rss
    contender.hidden(tokens[:long])
    return (psutil.Process().memory_info().rss - before) / 1e6


def peak_memory(name: str, texts: Sequence[str], threads: int) -> float:
    """Peak resident megabytes of a process of its own that loads a contender and encodes 32 texts."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_load_and_encode, (name, list(texts[:32]), threads))


def _load_and_encode(name: str, texts: list[str], threads: int) -> float:
    CONTENDERS[name](threads).encode(texts)
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the parent's peak into ru_maxrss
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


LARGE_SHAPES = {"0.1B": (12, 768), "0.4B": (24, 1024)}  # RWKV-7's layers and width


def large_shape(threads: int, n_layer: int, n_embd: int, vocab: int = 65_536) -> dict[str, dict[str, float]]:
    """RWKV-7 with random weights in each precision and in PyPI `rwkv`, in turns.

    Tokens a second, the best of three: one text of 256 tokens, 32 of 16 tokens (of which PyPI `rwkv` reads four).
    `of_peak`: operations of products a second in the long text, as a part of what large matrices reach in that
    precision; the time is that of all work. The vocabulary head is there, as in the real model: whoever asks PyPI
    `rwkv` for a text pays for it once.
    """
    tensors = random_rwkv7(n_layer, n_embd, vocab, lora=64, head=True)
    models = {dtype: FastRWKV7(tensors, dtype=dtype, threads=threads) for dtype in get_args(Dtype)}
    slow = load_pypi_rwkv(tensors)
    long = [[i % vocab for i in range(256)]]
    short = [[(i + j) % min(vocab, 1000) for j in range(16)] for i in range(32)]
    runs: dict[tuple[str, str], tuple[Callable[[], object], int]] = {
        ("rwkv", "long"): (lambda: slow.forward(long[0], None), 256),
        ("rwkv", "short"): (lambda: [slow.forward(text, None) for text in short[:4]], 64),
    }
    for dtype, model in models.items():
        runs[dtype, "long"] = partial(model.hidden, long, return_states=False), 256
        runs[dtype, "short"] = partial(model.hidden, short, return_states=False), 512
    rates: dict[str, dict[str, float]] = {name: {"long": 0.0, "short": 0.0} for name, _ in runs}
    for run, _ in runs.values():
        run()
    for _ in range(3):
        for (name, kind), (run, tokens) in runs.items():
            rates[name][kind] = max(rates[name][kind], tokens / _seconds(run))
    peaks = {"float32": matrix_peak(), "bfloat16": bfloat16_peak(threads)}
    for dtype, peak in peaks.items():
        rates[dtype]["of_peak"] = rates[dtype]["long"] * models["float32"].flops_per_token / peak
    return rates


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
