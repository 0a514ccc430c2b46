"""Whatever is done to the mapping file of a running agent, it says again what is served."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import eventually, running, write_atomically, write_list


def _says(path: Path, expected: dict[str, str]) -> bool:
    try:
        return {entry["pciAddress"]: entry["socketpath"] for entry in json.loads(path.read_text())} == expected
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _in_place(path: Path, content: str) -> None:
    path.write_text(content)  # the same inode


@pytest.mark.parametrize("isolation", ["shared", "device"])
def test_a_spoilt_mapping_is_written_again(run_dir: Path, options: tuple[str, ...], isolation: str) -> None:
    expected = {address: str(run_dir / "vhost" / f"vdpa-{number}") for number, address in enumerate(FOUR[:2])}
    write_list(run_dir / "pciList.dat", expected)
    with running(run_dir, *options, f"--isolation={isolation}") as agent:
        for address, path in expected.items():
            agent.wait_answer(address, path)
        eventually("the mapping", lambda: _says(agent.socket_list, expected))
        for count, content in enumerate(("", "{}", "[1]", '[{"pciAddress": "0000:', "[]", "\n\n"), start=1):
            write: Callable[[Path, str], None] = _in_place if count % 2 else write_atomically
            write(agent.socket_list, content)
            agent.wait_logged("mapping_repaired", count=count)
            eventually(f"the mapping after {content!r}", lambda: _says(agent.socket_list, expected))
            assert {address: agent.ask(address) for address in expected} == expected


def test_a_list_in_a_running_agents_mapping_is_taken_as_the_list(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[0], str(run_dir / "vhost" / "vdpa-0"))
        write_list(agent.socket_list, FOUR[:2])
        agent.wait_answer(FOUR[1], str(run_dir / "vhost" / "vdpa-1"))
        assert agent.pci_list.read_text().split() == list(FOUR[:2])
        eventually("the mapping", lambda: "vdpa-1" in agent.socket_list.read_text())
