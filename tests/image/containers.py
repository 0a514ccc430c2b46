"""Containers of the images, locked down: for the tests of the images and of what deploys them."""

import json
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.processes import PATIENCE_S, built, eventually

AGENT: Final = "localhost/vdpa-agent:latest"
FRONT: Final = "localhost/vdpa-front:latest"
RUN_DIRECTORY: Final = "/var/run/vdpa"
USER: Final = 65532
"""The user of both images."""

LOCKED: Final = (
    "--network=none",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
)
"""Nothing but what is mounted can be written to, and nothing more than the image's user may do can be done."""


def run_podman(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs podman as `scripts/image` has set it up."""
    configuration = built("image/containers.conf", "image")
    command = ["env", f"CONTAINERS_CONF={configuration}", "podman", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert ended.returncode == expect, f"podman {' '.join(arguments)}: {ended.returncode}: {ended.stderr}{ended.stdout}"
    return ended


def podman(*arguments: str, expect: int = 0) -> str:
    """The standard output of podman."""
    return run_podman(*arguments, expect=expect).stdout


class Container:
    """A container that was started in the background."""

    def __init__(self, name: str) -> None:
        self.name = name

    def exec(self, *command: str, expect: int = 0) -> str:
        """Runs a command in it; returns standard output."""
        return podman("exec", self.name, *command, expect=expect)

    def state(self) -> dict[str, Any]:
        """What podman knows of it now."""
        state: dict[str, Any] = json.loads(podman("inspect", self.name))[0]["State"]
        return state

    def pid(self) -> int:
        """Its first process, as seen from outside."""
        return int(self.state()["Pid"])

    def lines(self) -> list[dict[str, Any]]:
        """What it printed, one JSON object a line, over all of its starts."""
        printed = run_podman("logs", self.name)
        lines = (printed.stdout + printed.stderr).splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def named(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The events of a name with these fields."""
        wanted = {"event": event, **fields}
        return [line for line in self.lines() if all(line.get(key) == value for key, value in wanted.items())]

    def wait_end(self) -> int:
        """Waits for its end; returns the exit code."""
        eventually(f"end of {self.name}", lambda: not self.state()["Running"], timeout_s=2 * PATIENCE_S)
        return int(self.state()["ExitCode"])


@contextmanager
def container(image: str, directory: Path, *arguments: str, options: tuple[str, ...] = ()) -> Iterator[Container]:
    """A locked-down container with a host directory as its run directory, gone at the end."""
    name = f"vdpa-test-{secrets.token_hex(4)}"
    mount = f"--volume={directory}:{RUN_DIRECTORY}"
    try:
        podman("run", "--detach", f"--name={name}", *LOCKED, mount, *options, image, *arguments)
        yield Container(name)
    finally:
        podman("rm", "--force", "--time=0", "--ignore", name)


@contextmanager
def front_end(directory: Path, socket: str, *arguments: str) -> Iterator[Container]:
    """A container of the counting front end, on a socket as the agent names it."""
    assert socket, "no socket was answered: wait for it first"
    with container(FRONT, directory, f"--path={socket}", "--memory=none", "--format=json", *arguments) as front:
        yield front


def counts(front: Container) -> dict[str, Any]:
    """Waits for the end of a front end; returns its final counts."""
    assert front.wait_end() == 0, front.lines()
    return front.named("done")[-1]


def ask(directory: Path, address: str) -> str:
    """The socket of an address as grpcurl, outside, gets it through the mounted directory; empty if there is none."""
    command = [
        *(str(built("go/bin/grpcurl", "interop")), "-plaintext", "-unix", "-max-time=10"),
        *("-d", json.dumps({"pciAddress": address}), f"{directory}/vdpa.sock", "vdpadpdk.VdpaDpdk/GetSocketpath"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return str(json.loads(ended.stdout).get("socketpath", ""))
