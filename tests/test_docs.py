"""The docs say what the source says."""

import argparse
import re
from pathlib import Path
from typing import Final

from scripts import api_docs, metrics_docs, parts_docs
from vdpa_agent import errors
from vdpa_agent.cli.parser import build_parser

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "vdpa_agent"
SOURCES: Final = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent.name != "pb" or path.stem == "__init__"]


def test_the_architecture_page_is_the_modules_own_sentences() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().partition(parts_docs.HEAD)[2]
    rows = [line for line in table.splitlines(keepends=True) if line.startswith("| `vdpa_agent/")]
    assert rows == list(parts_docs.rows())
    assert not any(row.endswith("|  |\n") for row in rows)


def test_every_log_event_is_documented_and_no_other() -> None:
    logged: set[str] = set()
    for path in SOURCES:
        logged |= set(
            re.findall(r'\b(?:_?log\.\w+|tell|report)\(\s*(?:_LEVELS\[level\], )?"([a-z_]+)"', path.read_text())
        )
    logged |= set(re.findall(r'event\["event"\] = "([a-z_]+)"', (PACKAGE / "logs.py").read_text()))
    logged |= {
        "device_list_refused",
        "mapping_refused",
        "device_failed",
        "device_not_removed",
    }  # passed on as arguments
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## Events")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert logged == documented


def test_every_reason_for_a_refusal_is_documented_and_no_other() -> None:
    source = (ROOT / "native" / "vdpad" / "vhost_user.c").read_text()
    names = re.findall(r'\[REFUSAL_\w+\] = "([a-z_]+)"', source.partition("const texts[")[0])
    section = (ROOT / "docs" / "troubleshooting.md").read_text().partition("## A front end is refused")[2]
    rows = re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| [^|]+ \|$", section.partition("\n## ")[0], re.MULTILINE)
    assert len(names) > 5
    assert rows == names


def test_every_error_is_documented_with_its_exit_code_and_no_other() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = page.partition("## Errors")[2].partition("\n## ")[0]
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", table, re.MULTILINE))
    classes = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.AgentError)]
    assert documented == {kind.__name__: str(kind.exit_code) for kind in classes}


def test_the_table_of_metrics_is_what_the_source_says() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert page.partition(metrics_docs.MARK)[1:] == (
        metrics_docs.MARK,
        metrics_docs.reference().removeprefix(metrics_docs.MARK),
    )


def test_every_option_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    commands = next(action for action in build_parser({})._actions if isinstance(action, argparse._SubParsersAction))
    for command, parser in commands.choices.items():
        section = page.partition(f"## `vdpa-agent {command}")[2].partition("\n## ")[0]
        for action in parser._actions:
            names = ", ".join(action.option_strings)
            assert not names or "--help" in names or f"| `{names}`" in section, (command, names)


def test_the_api_reference_is_what_the_protos_say() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert page.partition(api_docs.MARK)[1:] == (api_docs.MARK, reference_tail())


def reference_tail() -> str:
    return api_docs.reference().removeprefix(api_docs.MARK).rstrip() + "\n"
