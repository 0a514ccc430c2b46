"""Turns the figures of `make bench` into tables, and into the page and the picture of the docs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.peers import AGENT, AIO, ALL, ECHO, GO

MARK: Final = "<!-- below this line: written by make bench -->"

SHOWN: Final = (
    ("connect, call, close: p50", "connect, call, close: p99", "connect, call, close: CPU"),
    ("call: p50", "16 streams: CPU a call", "memory idle"),
)
"""The rows that the picture shows."""

_COLOURS: Final = {AGENT: "#2a6fbb", GO: "#8a8f98", AIO: "#c8ccd2", ECHO: "#e6e8eb"}


def tables(measured: dict[str, Any]) -> list[str]:
    """The figures as two tables of Markdown, with what they depend on."""
    lines = [
        f"| | unit | {' | '.join(ALL)} | {AGENT} to {GO} |",
        f"|---|---|{'---:|' * (len(ALL) + 1)}",
    ]
    for row in measured["rows"]:
        figures = [_figure(row["medians"].get(name)) for name in ALL]
        ratio = row["to_go"].get(AGENT)
        lines.append(
            f"| {row['row']} | {row['unit']} | {' | '.join(figures)} | {'' if ratio is None else f'{ratio:.2f}'} |"
        )
    lines += ["", f"| {AGENT} alone | |", "|---|---|"]
    for name, figures in measured["agent"].items():
        lines.append(f"| {name} | {', '.join(f'{key} {value}' for key, value in figures.items())} |")
    machine = ", ".join(f"{name} {value}" for name, value in measured["machine"].items())
    return [*lines, "", f"Measured in {measured['seconds']} s on: {machine}."]


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def write_page(measured: dict[str, Any], page: Path) -> None:
    """Puts the tables below the mark of a page."""
    text = page.read_text().partition(MARK)[0]
    page.write_text("\n".join([text + MARK, "", *tables(measured)]) + "\n")


def draw(measured: dict[str, Any], picture: Path) -> None:
    """Draws the rows that matter most, one panel each: shorter is better in all of them."""
    import matplotlib as mpl  # noqa: PLC0415 - a dependency of the benchmark alone

    mpl.use("svg" if picture.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    rows = {row["row"]: row for row in measured["rows"]}
    figure, panels = plt.subplots(len(SHOWN), len(SHOWN[0]), figsize=(10, 4.6), layout="constrained")
    for panel, name in zip(panels.flat, (name for names in SHOWN for name in names), strict=True):
        row = rows[name]
        servers = [server for server in reversed(ALL) if server in row["medians"]]
        values = [row["medians"][server] for server in servers]
        bars = panel.barh(servers, values, color=[_COLOURS[server] for server in servers])
        panel.bar_label(bars, labels=[_figure(value) for value in values], padding=3, fontsize=8)
        panel.set_title(f"{name}, {row['unit']}", fontsize=9, loc="left")
        panel.set_xlim(0, max(values) * 1.2)
        panel.tick_params(labelsize=8, length=0)
        panel.xaxis.set_visible(False)
        panel.spines[:].set_visible(False)
    figure.savefig(picture, dpi=120, metadata={"Software": None})


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page and the picture."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("json", type=Path, help="what bench.compare wrote")
    parser.add_argument("page", type=Path, help="the page, whose tables are replaced; its picture lies beside it")
    options = parser.parse_args(argv)
    measured = json.loads(options.json.read_text())
    draw(measured, options.page.with_suffix(".png"))
    write_page(measured, options.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
