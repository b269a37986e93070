"""Results as Markdown and the cost per token against length as a picture."""

from math import log
from pathlib import Path
from statistics import median


def markdown(results: dict) -> str:
    """Ratios first, then what they are ratios of, then the machine and who was not measured."""
    ours, *others = results["contenders"]
    lines = [
        "# Speed of the encoder",
        "",
        "| encoder | texts/s, ours against it | texts/s | query p50 | query p99 | peak memory |",
        "|---|---|---|---|---|---|",
        *(_row(row, ours["texts_per_second"]) for row in (ours, *others)),
        "",
        f"Ours, with the kernels in {results['kernels']}: {results['tokens_per_second']:.0f} tokens/s, "
        f"{results['flops_per_token'] / 1e6:.3f} MFLOP of matrix products each and "
        f"{results['flops_per_text'] / 1e6:.2f} at a text's end: {results['fraction_of_peak']:.0%} of BLAS's "
        f"{results['peak_gflops']:.0f} GFLOP/s here. The rest is the tokenizer and work that is no product.",
        "",
        *_length_lines(results),
        "",
        *large_lines(results["large_shapes"]),
        "",
        results["machine"],
    ]
    for name, reason in results["not_measured"].items():
        lines += ["", f"Not measured: {name} ({reason})."]
    return "\n".join(lines) + "\n"


def _row(row: dict, ours: float) -> str:
    rate, query = row["texts_per_second"], row["query"]
    return (
        f"| {row['name']} | {_ratio(ours / rate)} | {rate:.0f} | {query['p50']:.1f} ms | {query['p99']:.1f} ms "
        f"| {row['peak_memory_mb']:.0f} MB |"
    )


def medians(curve: dict[int, list[float]]) -> dict[int, float]:
    """One cost for each length."""
    return {length: median(costs) for length, costs in curve.items()}


def _length_lines(results: dict) -> list[str]:
    """The ratio is taken within each round of lengths, and then its median."""
    curve = next(iter(results["cost_by_length"].values()))
    longest = max(curve)
    ratios = [long / short for long, short in zip(curve[longest], curve[1024], strict=True)]
    return [
        f"Processor time per token at {longest:,} tokens / at 1,024 tokens: {median(ratios):.3f} "
        f"({min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} rounds); "
        f"memory grows by {results['memory_growth_mb']:.1f} MB between them (docs/linear-cost.svg).",
    ]


def large_lines(shapes: dict) -> list[str]:
    """A row for each shape and precision: ratios first, then what the products reach of the matrix peak."""
    if not shapes:
        return []
    lines = [
        "RWKV-7 shapes with random weights, against PyPI rwkv in float32:",
        "",
        "| shape | precision | 1 text of 256 tokens | 32 texts of 16 tokens | tokens/s | of the matrix peak |",
        "|---|---|---|---|---|---|",
    ]
    for shape, rates in shapes.items():
        slow = rates["rwkv"]
        for name, ours in rates.items():
            if name == "rwkv":
                continue
            long, short = (_ratio(ours[kind] / slow[kind]) for kind in ("long", "short"))
            peak = f"{ours['of_peak']:.0%}" if "of_peak" in ours else "not measured"
            speeds = f"{ours['long']:.0f}, {ours['short']:.0f}"
            lines.append(f"| {shape} | {name} | {long} | {short} | {speeds} | {peak} |")
    return lines


WIDTH, HEIGHT = 720, 400
LEFT, TOP, RIGHT, BOTTOM = 60, 50, 530, 350  # the frame of the curves; names of curves stand right of it
COLOURS = ("#c2410c", "#1d4ed8")


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Cost per token, 1 = ours at 1,024 tokens, against length, both logarithmic, as SVG."""
    unit = next(iter(curves.values()))[1024]
    lengths = sorted({n for curve in curves.values() for n in curve})
    highest = 1.5 * max(max(curve.values()) for curve in curves.values()) / unit

    def x(length: int) -> float:
        return LEFT + (RIGHT - LEFT) * log(length / lengths[0]) / log(lengths[-1] / lengths[0])

    def y(cost: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * log(cost / 0.5) / log(highest / 0.5)

    parts = [_text(LEFT, 24, "Cost of one token against the length of the text (1 = ours at 1,024)", "start")]
    for length in lengths:
        parts.append(_line((x(length), TOP), (x(length), BOTTOM)))
        parts.append(_text(x(length), BOTTOM + 18, f"{length // 1024}k" if length >= 1024 else str(length)))
    for power in range(int(log(highest, 2)) + 1):
        parts.append(_line((LEFT, y(2**power)), (RIGHT, y(2**power))))
        parts.append(_text(LEFT - 8, y(2**power) + 4, str(2**power), "end"))
    for (name, curve), colour in zip(curves.items(), COLOURS, strict=False):
        points = [(x(length), y(cost / unit)) for length, cost in curve.items()]
        parts.append(_line(*points, colour=colour, width=2.5))
        parts.append(_text(points[-1][0] + 8, points[-1][1] + 4, name, "start", colour))
    parts.append(_text((LEFT + RIGHT) / 2, HEIGHT - 10, "tokens"))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">'
    background = f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    path.write_text("\n".join([head, background, *parts, "</svg>"]) + "\n", encoding="utf-8")


def _line(*points: tuple[float, float], colour: str = "#ddd", width: float = 1) -> str:
    corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "#222") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" fill="{colour}">{text}</text>'
    )


def _ratio(value: float) -> str:
    """Two digits, never in powers of ten."""
    return f"{value:.0f} x" if value >= 10 else f"{value:.2g} x"
