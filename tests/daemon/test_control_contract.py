"""The real vdpad answers the requests of the contract as its examples say."""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.daemon.test_control import CONTRACT
from tests.e2e.front_ends import SET_MEM_TABLE, FrontEnd
from tests.processes import PATIENCE_S, built, front_end

REQUESTS: Final = sorted(
    (example for path in CONTRACT.glob("*.json") if "request" in (example := json.loads(path.read_text()))),
    key=lambda example: int(example["request"]["id"]),
)
"""In the order of their ids: the device is added first, and vdpad ends last."""


class _Vdpad:
    """A real vdpad, with the agent's end of its channel."""

    def __init__(self, directory: Path) -> None:
        self.socket = str(directory / "vdpa-0")
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE_S)
        self._end = ours
        self._lines = ours.makefile("rb")
        with theirs:
            self.process = subprocess.Popen(
                [
                    built("native/vdpad/vdpad", "native"),
                    f"--control-fd={theirs.fileno()}",
                    f"--socket-list={directory / 'socketList.dat'}",
                    f"--socket-dir={directory}",
                    "--simulate",
                    "--memory=none",
                ],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if "socket" in request["params"]:
            request = {**request, "params": {**request["params"], "socket": self.socket}}
        self._end.sendall(json.dumps(request).encode() + b"\n")
        while "id" not in (answer := self.next()):
            pass  # a front end came or went
        return answer

    def next(self) -> dict[str, Any]:
        return dict(json.loads(self._lines.readline()))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._lines.close()
        self._end.close()


@pytest.fixture
def vdpad(run_dir: Path) -> Iterator[_Vdpad]:
    daemon = _Vdpad(run_dir)
    try:
        yield daemon
    finally:
        daemon.end()


def _shape(value: object) -> object:
    """A JSON value's form: its keys and types; a list is as its first entry, and counters have any name."""
    if isinstance(value, dict):
        return {key: "counters" if key == "stats" else _shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_shape(member) for member in value[:1]]
    return type(value)


def _be_refused(path: str) -> None:
    """Shares a table of no memory."""
    with FrontEnd(Path(path)) as front:
        front.send(SET_MEM_TABLE, bytes(40))
        assert front.ended()


def test_each_request_is_answered_in_the_form_of_its_example(vdpad: _Vdpad) -> None:
    methods = [example["request"]["method"] for example in REQUESTS]
    assert (methods[0], methods[-1]) == ("version", "shutdown")
    for example in REQUESTS:
        answer, expected = vdpad.ask(example["request"]), example["answer"]
        assert _shape(answer) == _shape(expected), example["request"]["method"]
        assert answer["id"] == expected["id"]
        assert answer.get("error") == expected.get("error")
        if answer.get("result", {}).get("mode") == "server":
            _be_refused(vdpad.socket)
    assert vdpad.process.wait(PATIENCE_S) == 0


def test_a_front_end_is_announced_in_the_form_of_the_examples(vdpad: _Vdpad) -> None:
    for example in REQUESTS[:2]:
        vdpad.ask(example["request"])
    with front_end(vdpad.socket, "--rate=1000", "--interval=0.1") as front:
        seen = [vdpad.next(), vdpad.next()]
        front.stop()
    while seen[-1]["method"] != "device.disconnected":
        seen.append(vdpad.next())  # it may be connected and not configured in between
    names = [f"device.{word}" for word in ("connected", "configured", "disconnected")]
    examples = {name: json.loads((CONTRACT / f"{name}.json").read_text())["notification"] for name in names}
    assert [seen[0]["method"], seen[1]["method"]] == names[:2]
    assert [seen[0], seen[1], seen[-1]] == [examples[name] for name in names]
    # It disables its queue pair before it stops, so that none is in use.
    assert all(_shape(notification) == _shape(examples[notification["method"]]) for notification in seen)
