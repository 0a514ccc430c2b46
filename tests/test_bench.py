"""The benchmark measures every row of every server; what it finds is looked at by people."""

import json
import subprocess
import sys
from pathlib import Path

from bench import report
from bench.compare import Table
from bench.peers import AGENT, AIO, ECHO, GO
from tests.processes import ROOT


def test_a_quick_run(tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    ran = subprocess.run(
        [sys.executable, "-m", "bench.compare", "--quick", f"--json={figures}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    measured = json.loads(figures.read_text())
    rows = {row["row"]: row["medians"] for row in measured["rows"]}
    assert {frozenset(medians) for medians in rows.values()} == {
        frozenset({AGENT, GO}),
        frozenset({AGENT, GO, AIO}),
        frozenset({AGENT, GO, AIO, ECHO}),
    }
    for what in ("connect, call, close: p50", "call: p50", "memory idle", "start to first answer"):
        assert all(figure > 0 for figure in rows[what].values()), what
        assert rows[what][ECHO] == min(rows[what].values()), what
    assert set(rows["100 clients at once: failed"].values()) == {0}
    assert all(alone.get("n", 1) >= 1 for alone in measured["agent"].values())
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\n{report.MARK}\nold\n")
    report.write_page(measured, page)
    text = page.read_text()
    assert text.startswith(f"# Mine\n\n{report.MARK}\n\n| | unit |")
    assert "old" not in text
    assert all(f"| {row} |" in text for row in rows)


def test_a_quick_run_of_the_rates() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "bench.rates", "--rounds=1", "--seconds=1", "--sizes=1518", "--pairs=2"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in ran.stdout.splitlines()[2:]]
    assert [row[:3] for row in rows] == [["1518 B", "2", "apart"], ["1518 B", "2", "on the worker's CPU"]]
    assert all(float(figure) > 0 for row in rows for figure in row[3:6])


def test_ratios_are_those_within_a_round() -> None:
    table = Table()
    for go, agent in ((1.0, 2.0), (10.0, 10.0), (3.0, 9.0)):
        table.add("call", "µs", GO, go)
        table.add("call", "µs", AGENT, agent)
        table.add("CPU", "%", GO, 0.0)
        table.add("CPU", "%", AGENT, 1.0)
    assert table.rows() == [
        {"row": "call", "unit": "µs", "medians": {GO: 3.0, AGENT: 9.0}, "to_go": {AGENT: 2.0}},
        {"row": "CPU", "unit": "%", "medians": {GO: 0.0, AGENT: 1.0}, "to_go": {}},
    ]


def test_the_page_has_the_rows_of_now() -> None:
    page = (ROOT / "docs" / "benchmark.md").read_text()
    assert page.count(report.MARK) == 1
    tables = page.partition(report.MARK)[2]
    for names in report.SHOWN:
        for name in names:
            assert f"| {name} |" in tables
