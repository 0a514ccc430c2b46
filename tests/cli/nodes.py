"""A node as files, and what doctor says of it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.processes import built
from tests.trees import PF, VF, Tree

OTHER: Final = "0000:82:00.3"
NOBODY: Final = ("setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all")


class Node:
    """A node as files below a directory: both lists, the sockets, sysfs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pci_list = directory / "pciList.dat"
        self.socket_list = directory / "socketList.dat"
        self.sockets = directory / "vhost"
        self.tree = Tree(directory / "sys")

    def doctor(self, *arguments: str, under: tuple[str, ...] = ()) -> "Findings":
        """What doctor says, as a process of its own."""
        command = [
            *(*under, sys.executable, "-m", "vdpa_agent", "doctor"),
            f"--address={self.directory / 'vdpa.sock'}",
            f"--pci-list={self.pci_list}",
            f"--socket-list={self.socket_list}",
            f"--socket-dir={self.sockets}",
            f"--sysfs={self.tree.root}",
            f"--vdpad={built('native/vdpad/vdpad', 'native')}",
            *arguments,
        ]
        return findings([*command, "--output=json"])

    def vf(self, address: str = VF, **changes: Any) -> Path:
        """Lists a VF of Intel's IFC that is as it should be, but for the changes."""
        with self.pci_list.open("a") as listed:
            listed.write(f"{address}\n")
        wanted: dict[str, Any] = {"driver": "vfio-pci", "group": 41, "pf": PF, "node": 0, **changes}
        return self.tree.device(address, "1af4:1041", **wanted)  # type: ignore[arg-type]


class Findings:
    """What doctor told."""

    def __init__(self, code: int, told: dict[str, Any]) -> None:
        self.code = code
        self.told = told

    def of(self, subject: str, result: str | None = None) -> list[str]:
        """What was told of a subject, with the remedy behind it."""
        return [
            f"{check['told']} => {check['remedy']}".removesuffix(" => ")
            for check in self.told["checks"]
            if check["subject"] == subject and result in {None, check["result"]}
        ]

    def results(self) -> set[str]:
        return {check["result"] for check in self.told["checks"] if check["subject"] != "agent"}


def findings(command: list[str]) -> Findings:
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert not ran.stderr, ran.stderr
    return Findings(ran.returncode, json.loads(ran.stdout))
