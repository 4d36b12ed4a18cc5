"""Charts of what the comparisons measured, as PNG files."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

__all__ = ["model_chart", "op_chart", "roofline"]

OURS, OTHERS, LEVEL = "#1b6ca8", "#b9c4cc", "#8a1c1c"
Rows = list[dict[str, Any]]


def _figure(width: float, height: float) -> tuple[Any, Any, Any]:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return pyplot, figure, axes


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
    pyplot.close(figure)


def _ratio_bars(
    axes: Any, names: list[str], ratios: list[float], ends: list[float] | None = None
) -> None:
    """Bars with their numbers, to the right of `ends` if something is drawn up to there."""
    places = range(len(names))
    axes.barh(places, ratios, color=OURS, height=0.7)
    axes.axvline(1, color=LEVEL, linewidth=1)
    for place, ratio, end in zip(places, ratios, ends or ratios, strict=True):
        axes.text(end, place, f"  {ratio:.2f}", va="center", fontsize=8)
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)


def model_chart(rows: Rows, ratio: Any, path: Path) -> None:
    """Bars: PyTorch's fastest time of a training step over that of fastlayers, model by model."""
    rows = [row for row in rows if row["threads"] == max(r["threads"] for r in rows)]
    names = [f"{row['model']}, batch {row['batch']}" for row in rows]
    pyplot, figure, axes = _figure(7, 0.8 + 0.32 * len(rows))
    _ratio_bars(axes, names, [ratio(row) for row in rows])
    axes.set_xlabel("time of a training step, PyTorch's fastest mode over fastlayers")
    _save(pyplot, figure, path)


def op_chart(rows: Rows, path: Path) -> None:
    """Bars: PyTorch's faster memory format over fastlayers, op by op, geometric means."""
    rows = [row for row in rows if row["threads"] == max(r["threads"] for r in rows)]
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(f"{row['group']}, {row['pass']}", []).append(row["ratio"])
    pyplot, figure, axes = _figure(7, 0.8 + 0.25 * len(groups))
    means = [statistics.geometric_mean(ratios) for ratios in groups.values()]
    axes.set_xscale("log")  # dropout's are 100 times the others'
    _ratio_bars(axes, list(groups), means, [max(ratios) for ratios in groups.values()])
    for place, ratios in enumerate(groups.values()):
        axes.plot(ratios, [place] * len(ratios), "|", color="black", markersize=5, alpha=0.5)
    least = min(min(ratios) for ratios in groups.values())
    axes.set_xlim(min(0.5, least / 1.2), 2.5 * max(max(ratios) for ratios in groups.values()))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("PyTorch's time over fastlayers'; strokes are shapes")
    _save(pyplot, figure, path)


def roofline(rows: Rows, bandwidths: dict[str, float], path: Path) -> None:
    """Operations per second over operations per byte, below the measured peak and bandwidths."""
    rows = [r for r in rows if r.get("flops") and r["threads"] == max(s["threads"] for s in rows)]
    peak = statistics.median(row["peak"] for row in rows) / 1e9
    pyplot, figure, axes = _figure(7, 4.5)
    kinds = dict.fromkeys((row["group"], row["pass"]) for row in rows)
    for marker, kind in zip("osD^vP*Xdph", kinds, strict=False):
        chosen = [row for row in rows if (row["group"], row["pass"]) == kind]
        axes.plot(
            [row["flops"] / row["bytes"] for row in chosen],
            [row["flops"] / row["seconds"]["fastlayers"] / 1e9 for row in chosen],
            marker,
            label=", ".join(kind),
            markersize=5,
            alpha=0.8,
        )
    low, high = axes.get_xlim()
    low = max(low, min(row["flops"] / row["bytes"] for row in rows) / 2)
    axes.axhline(peak, color=LEVEL, linewidth=1, label=f"FMA peak, {peak:.0f} GFLOP/s")
    for (name, bandwidth), style in zip(bandwidths.items(), ("--", ":"), strict=False):
        edge = [low, peak * 1e9 / bandwidth]
        line = [intensity * bandwidth / 1e9 for intensity in edge]
        label = f"{name}, {bandwidth / 1e9:.0f} GB/s"
        axes.plot(edge, line, style, color=LEVEL, linewidth=1, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_xlim(low, high * 2)
    axes.set_xlabel("operations of direct arithmetic a byte of input, weight and output")
    axes.set_ylabel("GFLOP/s of direct arithmetic")
    axes.legend(fontsize=7, frameon=False)
    _save(pyplot, figure, path)
