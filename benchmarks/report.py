"""Results as Markdown and the cost per token against length as a picture."""

from pathlib import Path


def markdown(results: dict) -> str:
    """Ratios first, then what they are ratios of, then the machine."""
    ours, *others = results["contenders"]
    lines = ["# Speed of the encoder", "", results["machine"], ""]
    lines += [
        "| texts per second | ratio to ours | rate | query p50 | query p99 | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in (ours, *others):
        ratio = "" if row is ours else f"ours is {ours['texts_per_second'] / row['texts_per_second']:.2g} x"
        query = f"{row['query']['p50']:.1f} ms | {row['query']['p99']:.1f} ms"
        memory = f"{row['peak_memory_mb']:.0f} MB"
        lines.append(f"| {row['name']} | {ratio} | {row['texts_per_second']:.0f} | {query} | {memory} |")
    lines += [
        "",
        f"Ours: {results['tokens_per_second']:.0f} tokens/s, {results['flops_per_token'] / 1e6:.1f} MFLOP a token, ",
    ]
    lines[-1] += (
        f"{results['fraction_of_peak']:.0%} of the {results['peak_gflops']:.0f} GFLOP/s that BLAS reaches here."
    )
    lines += ["", *_length_lines(results), "", *_large_lines(results["large_shape"])]
    skipped = [f"- {name}: {reason}" for name, reason in results["skipped"].items()]
    return "\n".join(lines + (["", "Not measured:", *skipped] if skipped else [])) + "\n"


def _length_lines(results: dict) -> list[str]:
    ours = results["cost_by_length"]["rwkv-embed"]
    longest = max(ours)
    return [
        f"Cost per token at {longest:,} tokens / at 1,024 tokens: {ours[longest] / ours[1024]:.3f}; "
        f"memory grows by {results['memory_growth_mb']:.1f} MB between them (docs/linear-cost.svg).",
    ]


def _large_lines(rates: dict) -> list[str]:
    if not rates:
        return []
    long, short = (rates[f"ours, {kind}"] / rates[f"rwkv, {kind}"] for kind in ("long text", "short texts"))
    return [
        f"RWKV-7 0.1B shape (12 x 768, random weights) against PyPI rwkv: {long:.1f} x on one text of 256 tokens, "
        f"{short:.1f} x on 32 texts of 16 tokens."
    ]


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Cost per token, 1 = ours at 1,024 tokens, against length, both logarithmic, as SVG."""
    unit = curves["rwkv-embed"][1024]
    width, height, left, top, right, bottom = 720, 400, 60, 50, 190, 50
    lengths = sorted({n for curve in curves.values() for n in curve})
    highest = max(max(curve.values()) for curve in curves.values()) / unit * 1.5

    def x(length: int) -> float:
        return left + (width - left - right) * _log(length / lengths[0]) / _log(lengths[-1] / lengths[0])

    def y(cost: float) -> float:
        return height - bottom - (height - top - bottom) * _log(cost / 0.5) / _log(highest / 0.5)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="24" font-size="15">Cost of one token against the length of the text (1 = ours at 1,024)</text>',
    ]
    for length in lengths:
        parts.append(
            f'<line x1="{x(length):.1f}" y1="{top}" x2="{x(length):.1f}" y2="{height - bottom}" stroke="#eee"/>'
        )
        label = f"{length:,}" if length < 1024 else f"{length // 1024}k"
        parts.append(
            f'<text x="{x(length):.1f}" y="{height - bottom + 18}" text-anchor="middle">{label}</text>'
        )
    tick = 1
    while tick <= highest:
        parts.append(
            f'<line x1="{left}" y1="{y(tick):.1f}" x2="{width - right}" y2="{y(tick):.1f}" stroke="#eee"/>'
        )
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
        tick *= 2
    for (name, curve), colour in zip(curves.items(), ("#c2410c", "#1d4ed8", "#047857"), strict=False):
        points = " ".join(f"{x(n):.1f},{y(cost / unit):.1f}" for n, cost in curve.items())
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        last = max(curve)
        at = f'x="{x(last) + 8:.1f}" y="{y(curve[last] / unit) + 4:.1f}"'
        parts.append(f'<text {at} fill="{colour}">{name}</text>')
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 10}" text-anchor="middle">tokens</text></svg>'
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def _log(value: float) -> float:
    from math import log

    return log(value)
