"""What Devices does with the answers and the notes of a daemon, which is the test's."""

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.memory import Names
from vdpa_agent.config import DaemonConfig
from vdpa_agent.daemon.control import Control
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.names import Names as Given
from vdpa_agent.daemon.repair import MappingRepair
from vdpa_agent.errors import DaemonLost, RequestRefused, Unanswered
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import SERVED, Device, DeviceState, VhostMode
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.front_end import CONNECTED, NO_FRONT_END, FrontEnd, configured
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.pci import DeviceList, PciAddress

pytestmark = pytest.mark.anyio

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
NO_SUCH_DEVICE, BUSY = -32001, -32000


class Daemon(Control):
    """Answers what the test has it answer."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.during: dict[str, Callable[[], None]] = {}
        self.calls: list[tuple[str, str]] = []
        self.silent: set[tuple[str, str]] = set()
        self._overtaken: list[Callable[[], None]] = []

    async def call(
        self,
        method: str,
        params: Mapping[str, str] | None = None,
        *,
        timeout_s: float,
        passed: Callable[[], None] | None = None,
    ) -> Any:
        await asyncio.sleep(0)
        call = (method, (params or {}).get("device", ""))
        self.calls.append(call)
        if call in self.silent:
            if passed is not None:
                self._overtaken.append(passed)
            await asyncio.sleep(timeout_s)
            message = f"it did not answer {method}"
            raise Unanswered(message)
        while self._overtaken:
            self._overtaken.pop()()
        if method in self.during:
            self.during[method]()
        answer = self.answers.get(method, {})
        if isinstance(answer, Exception):
            raise answer
        return answer


class World:
    """Devices with all that they are made of."""

    def __init__(
        self,
        directory: Path,
        names: Names | None = None,
        drain_timeout_s: float = 30.0,
        vhost_mode: VhostMode = VhostMode.CLIENT,
    ) -> None:
        # In client mode front ends open the sockets, so that none need be there for a device to be served.
        config = DaemonConfig(
            simulate=True,
            vhost_mode=vhost_mode,
            socket_dir=directory / "vhost",
            drain_timeout_s=drain_timeout_s,
        )
        self.wanted: Latest[Loaded[DeviceList]] = Latest(Loaded((A,)))
        self.mapping: Latest[Loaded[SocketMapping]] = Latest(Loaded())
        self.names = names or Names()
        self.steps: DestructiveSteps = Counter()
        self.touched = Latest(0)
        self.daemon = Daemon()
        self.directory = SocketDirectory(config.socket_dir, self.steps, self.touched)
        self.devices = Devices(
            config,
            wanted=self.wanted,
            names=Given(config.socket_naming, wanted=self.wanted, store=self.names, steps=self.steps),
            directory=self.directory,
            repair=MappingRepair(self.mapping, retire=self._retire, steps=self.steps),
            spread=lambda: 0.0,
        )

    async def _retire(self) -> None:
        self.daemon.calls.append(("retire", ""))

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        following = asyncio.ensure_future(self.devices.follow(self.daemon))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.wait({following})
            await self.directory.leave()

    async def until(self, address: PciAddress, wanted: Callable[[DeviceState | None], bool]) -> None:
        async with asyncio.timeout(20):
            await self.devices.published.wait_for(
                lambda devices: wanted(devices[address].state if address in devices else None)
            )


async def test_a_front_end_is_noted_once_however_often_the_daemon_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        with capture_logs() as logs:
            for front_end in (CONNECTED, CONNECTED, CONNECTED, NO_FRONT_END, NO_FRONT_END):
                world.devices.front_end(A, front_end)
                world.devices.front_end(B, front_end)  # of no device
        await world.until(A, lambda state: state is DeviceState.READY)
    assert [log["event"] for log in logs] == ["front_end_connected", "front_end_left"]


async def test_very_many_comings_and_goings_are_counted_and_not_logged_one_by_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        with capture_logs() as logs:
            for _ in range(1_000):
                world.devices.front_end(A, CONNECTED)
                world.devices.front_end(A, NO_FRONT_END)
            world.devices.look()
            async with asyncio.timeout(20):
                while not any(log["event"] == "front_end_changes" for log in logs):
                    await asyncio.sleep(0.001)
    assert len(logs) < 20
    (drawn,) = [log for log in logs if log["event"] == "front_end_changes"]
    assert (drawn["device"], drawn["changes"]) == (A, 2_000)
    assert (drawn["connected"], drawn["configured"]) == (False, False)


def _front_ends(logs: list[Any]) -> list[tuple[str, int | None]]:
    return [(log["event"], log.get("queue_pairs")) for log in logs if log["event"].startswith("front_end")]


async def test_queue_pairs_that_come_one_by_one_are_one_line_and_each_way_back_is_one(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        with capture_logs() as logs:
            world.devices.front_end(A, CONNECTED)
            for queue_pairs in (1, 2, 3, 4):
                world.devices.front_end(A, configured(queue_pairs))
            async with asyncio.timeout(20):
                while len(_front_ends(logs)) < 2:
                    await asyncio.sleep(0.001)
            assert world.devices.published.value[A].front_end == configured(4)
            for queue_pairs in (2, 0):
                world.devices.front_end(A, configured(queue_pairs))
            world.devices.front_end(A, CONNECTED)  # its driver is unbound
            world.devices.front_end(A, NO_FRONT_END)
    names = [("front_end_connected", None), ("front_end_configured", 4)]
    assert _front_ends(logs) == [*names, ("front_end_unconfigured", None), ("front_end_left", None)]


async def test_a_front_end_that_changes_its_queue_pairs_for_ever_does_not_write_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdpa_agent.daemon.front_ends._SETTLE_S", 0.0)
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        with capture_logs() as logs:
            for number in range(200):
                world.devices.front_end(A, configured(number % 2))
                await asyncio.sleep(0.001)
    assert 1 < len(_front_ends(logs)) <= 6


def _listed(front_end: FrontEnd, refusals: object = None) -> dict[str, Any]:
    told = {"connected": front_end.is_connected, "configured": front_end.is_configured}
    return {"devices": [{"device": A, **told, "queue_pairs_in_use": front_end.queue_pairs, "refusals": refusals}]}


@pytest.mark.parametrize("front_end", [NO_FRONT_END, CONNECTED, configured(2)])
async def test_what_no_notification_said_is_learned_from_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, front_end: FrontEnd
) -> None:
    monkeypatch.setattr("vdpa_agent.daemon.learning._LEARN_S", 0.0)
    world = World(tmp_path)
    world.daemon.answers["device.list"] = _listed(front_end)
    async with world.followed():
        await world.until(A, lambda state: state in SERVED)
        world.devices.front_end(A, configured(1))  # the rest was lost
        world.devices.look()
        async with asyncio.timeout(20):
            await world.devices.published.wait_for(lambda devices: devices[A].front_end == front_end)
        connected = world.devices.published.value[A].state is DeviceState.CONNECTED
    assert connected == front_end.is_connected


async def test_a_notification_that_comes_while_the_list_is_asked_for_is_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdpa_agent.daemon.learning._LEARN_S", 0.0)
    world = World(tmp_path)

    def meanwhile() -> None:
        del world.daemon.during["device.list"]
        world.devices.front_end(A, configured(3))
        world.daemon.answers["device.list"] = _listed(NO_FRONT_END, {"form": 1})

    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.daemon.during["device.list"] = meanwhile
        world.devices.look()
        async with asyncio.timeout(20):
            await world.devices.published.wait_for(lambda devices: bool(devices[A].refusals))
        assert world.devices.published.value[A].front_end == configured(3)


@pytest.mark.parametrize(
    "answer",
    [
        RequestRefused(BUSY, "no"),
        {},
        [],
        {"devices": 1},
        {"devices": [None, {"device": 1, "connected": True}, {"device": A}, {"device": A, "connected": 1}]},
        {"devices": [{"device": B, "connected": True, "configured": True}]},
    ],
)
async def test_a_list_that_says_nothing_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    monkeypatch.setattr("vdpa_agent.daemon.learning._LEARN_S", 0.0)
    world = World(tmp_path)
    world.daemon.answers["device.list"] = answer
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.devices.front_end(A, configured(3))
        asked = world.daemon.calls.count(("device.list", ""))
        async with asyncio.timeout(20):
            while world.daemon.calls.count(("device.list", "")) < asked + 2:  # so one was taken in between
                world.devices.look()
                await asyncio.sleep(0.001)
        assert set(world.devices.published.value) == {A}
        assert world.devices.published.value[A].front_end == configured(3)


async def test_refused_front_ends_are_counted_and_logged_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vdpa_agent.daemon.learning._LEARN_S", 0.0)
    world = World(tmp_path)

    async def see(refusals: dict[str, int]) -> None:
        world.daemon.answers["device.list"] = _listed(NO_FRONT_END, {**refusals, "odd": -1, "none": 0, "no": "x"})
        world.devices.look()
        async with asyncio.timeout(20):
            await world.devices.published.wait_for(lambda devices: devices[A].refusals == refusals)

    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        with capture_logs() as logs:
            await see({"form": 2})
            await see({"form": 2, "crowd": 900})
            await see({"form": 2, "crowd": 1900})
            monkeypatch.setattr("vdpa_agent.daemon.front_ends._REFUSALS_S", 0.0)
            world.devices.forget("the daemon ended")
            assert not world.devices.published.value[A].refusals
            world.devices.look()
            await world.until(A, lambda state: state is DeviceState.READY)
            await see({"form": 1})
            await see({"form": 4, "ring": 1})
    refused = [(log["device"], log["reasons"]) for log in logs if log["event"] == "front_ends_refused"]
    assert refused == [(A, {"form": 2}), (A, {"form": 1}), (A, {"form": 3, "ring": 1})]


async def test_a_device_that_the_daemon_no_longer_has_is_removed_all_the_same(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.daemon.answers["device.remove"] = RequestRefused(NO_SUCH_DEVICE, "no such device")
        world.wanted.set(Loaded(()))
        await world.until(A, lambda state: state is None)


async def test_a_device_that_the_daemon_does_not_let_go_stays_and_is_not_promised(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.daemon.answers["device.remove"] = RequestRefused(BUSY, "it is busy")
        with capture_logs() as logs:
            world.wanted.set(Loaded(()))
            async with asyncio.timeout(20):
                await world.devices.published.wait_for(lambda devices: devices[A].reason == "it is busy")
        assert world.devices.published.value[A].state is DeviceState.REMOVING
        assert [log["event"] for log in logs] == ["device_not_removed"]
        world.daemon.answers.clear()
        await world.until(A, lambda state: state is None)


async def test_the_same_refusal_is_a_warning_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.daemon.answers["device.add"] = RequestRefused(BUSY, "it is busy")
    with capture_logs() as logs:
        async with world.followed(), asyncio.timeout(20):
            while world.daemon.calls.count(("device.add", A)) < 2:
                await asyncio.sleep(0.01)
            world.daemon.answers["device.add"] = RequestRefused(BUSY, "it is another's")
            while world.daemon.calls.count(("device.add", A)) < 3:
                await asyncio.sleep(0.01)
    levels = [(log["log_level"], log["reason"]) for log in logs if log["event"] == "device_failed"]
    assert levels[:2] == [("warning", "it is busy"), ("debug", "it is busy")]
    assert ("warning", "it is another's") in levels


@pytest.mark.parametrize("given", [{"socket": "/elsewhere/vdpa-0"}, {"mode": "server"}])
async def test_a_daemon_that_serves_another_path_or_mode_than_asked_is_not_believed(
    tmp_path: Path, given: dict[str, str]
) -> None:
    world = World(tmp_path)
    world.daemon.answers["device.add"] = given
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.FAILED)
    reason = world.devices.published.value[A].reason
    ours = f"{tmp_path}/vhost/vdpa-0"
    theirs, mode = given.get("socket", ours), given.get("mode", "client")
    assert reason.startswith(f"the daemon serves {theirs[:60]!r}"[:-1])
    assert reason.endswith(f" as '{mode}' instead of {ours} as client")


async def test_a_device_in_use_drains_and_goes_when_its_front_end_leaves(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.devices.front_end(A, CONNECTED)
        world.wanted.set(Loaded(()))
        await world.until(A, lambda state: state is DeviceState.REMOVING)
        assert ("device.remove", A) not in world.daemon.calls
        world.devices.front_end(A, NO_FRONT_END)
        await world.until(A, lambda state: state is None)


async def test_a_device_in_use_goes_when_the_drain_timeout_is_over(tmp_path: Path) -> None:
    world = World(tmp_path, drain_timeout_s=0.1)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.devices.front_end(A, CONNECTED)
        world.wanted.set(Loaded(()))
        await world.until(A, lambda state: state is None)


async def test_names_of_another_boot_hold_for_the_devices_of_the_list_alone(tmp_path: Path) -> None:
    for this_boot, expected in ((True, "vdpa-1"), (False, "vdpa-0")):
        names = Names(this_boot=this_boot)
        names.kept = {B: "vdpa-0"}
        world = World(tmp_path, names)
        async with world.followed():
            await world.until(A, lambda state: state is DeviceState.READY)
        assert world.devices.published.value[A].socket.endswith(expected)
        assert (B in names.kept) == this_boot


async def test_names_that_are_lost_are_kept_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.names.kept = {}
        async with asyncio.timeout(20):
            while world.names.kept != {A: "vdpa-0"}:
                world.devices.look()
                await asyncio.sleep(0.01)


async def test_a_mapping_that_another_process_changed_is_written_again_and_counted(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        with capture_logs() as logs:
            world.mapping.set(Loaded(SocketMapping({A: "/v/foreign"})))  # type: ignore[arg-type]
            async with asyncio.timeout(20):
                while not world.steps:
                    await asyncio.sleep(0.01)
    assert world.steps == {Destructive.MAPPING_REPAIRED: 1}
    assert ("mapping.write", "") in world.daemon.calls
    (repaired,) = [log for log in logs if log["event"] == "mapping_repaired"]
    assert repaired["reason"].endswith("0 devices are missing, 0 are not of this agent, 1 have another device's socket")


async def test_what_is_not_a_mapping_is_taken_away_before_it_is_written_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        world.mapping.set(Loaded(SocketMapping({A: "/v/a"}), "it is empty", refused=True))  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            while not world.steps:
                await asyncio.sleep(0.01)
    assert world.daemon.calls.index(("retire", "")) < world.daemon.calls.index(("mapping.write", ""))


async def test_a_mapping_that_cannot_be_written_is_an_error_and_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.daemon.answers["mapping.write"] = {"mapping_written": False, "mapping_problem": "no \x1b space"}
    with capture_logs() as logs:
        async with world.followed():
            await world.until(A, lambda state: state is DeviceState.READY)
            async with asyncio.timeout(20):
                while world.daemon.calls.count(("mapping.write", "")) < 2:
                    await asyncio.sleep(0.01)
                world.daemon.answers["mapping.write"] = {}
                while not world.steps:
                    await asyncio.sleep(0.01)
    refusals = [log for log in logs if log["event"] == "mapping_not_written"]
    levels = [log["log_level"] for log in refusals]
    assert refusals[0]["reason"].endswith("; the daemon could not write it: no \\x1b space")
    assert (levels[0], set(levels[1:])) == ("error", {"debug"})


async def test_a_change_in_the_directory_of_the_sockets_has_them_looked_at(tmp_path: Path) -> None:
    world = World(tmp_path, vhost_mode=VhostMode.SERVER)
    path = tmp_path / "vhost" / "vdpa-0"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        found = path.stat()
        world.daemon.answers["device.add"] = {"socket_file": f"{found.st_dev}:{found.st_ino}"}
        async with world.followed():
            await world.until(A, lambda state: state is DeviceState.READY)
            path.unlink()
            world.touched.set(1)  # nothing else has it looked at
            await world.until(A, lambda state: state is DeviceState.FAILED)
    assert world.devices.published.value[A].reason == f"the socket file {path} is gone"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are late at once, and given up soon."""
    for name, seconds in {
        "asking._LATE_S": 0.05,
        "asking._GIVEN_UP_S": 0.2,
        "repair._WRITE_S": 0.2,
        "learning._LIST_S": 0.2,
        "learning._LEARN_S": 0.0,
    }.items():
        monkeypatch.setattr(f"vdpa_agent.daemon.{name}", seconds)


def _is_late(address: PciAddress, devices: Mapping[PciAddress, Device]) -> bool:
    return "has not answered device.add for" in devices[address].reason


C, D = PciAddress("0000:82:00.4"), PciAddress("0000:82:00.5")
ALL = (A, B, C, D)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("silent", [ALL[:1], ALL[:2], ALL[:3], ALL[2:]])
async def test_devices_that_the_daemon_does_not_answer_for_keep_no_other_one_waiting(
    tmp_path: Path, silent: tuple[PciAddress, ...]
) -> None:
    world = World(tmp_path)
    world.wanted.set(Loaded(ALL))
    world.daemon.silent = {("device.add", address) for address in silent}
    with capture_logs() as logs:
        async with world.followed():
            if len(silent) >= 2:  # each of them has a turn: the answer to the ping frees both
                await asyncio.sleep(0.02)
                await world.daemon.call("version", timeout_s=1)
                await asyncio.sleep(0.02)
                await world.daemon.call("version", timeout_s=1)
            for address in set(ALL) - set(silent):
                await world.until(address, lambda state: state is DeviceState.READY)
            async with asyncio.timeout(20):
                for address in silent:
                    await world.devices.published.wait_for(partial(_is_late, address))
                for address in silent:
                    await world.until(address, lambda state: state is DeviceState.FAILED)
                while world.daemon.calls.count(("device.add", silent[0])) < 3:
                    assert not world.daemon._overtaken or await world.daemon.call("version", timeout_s=1) == {}
                    await asyncio.sleep(0.01)
            world.daemon.silent.clear()
            for address in ALL:
                await world.until(address, lambda state: state is DeviceState.READY)
    for address in silent:
        late = [log for log in logs if log["event"] == "device_unanswered" and log["device"] == address]
        assert [log["log_level"] for log in late].count("warning") == 1
        assert late[0]["reason"] == "the daemon has not answered device.add for 0.05 s"
        failed = [log for log in logs if log["event"] == "device_failed" and log["device"] == address]
        assert [log["log_level"] for log in failed].count("warning") == 1
        # Whether the daemon has it is not known, so it is given up before it is asked for again.
        assert world.daemon.calls.index(("device.remove", address)) > world.daemon.calls.index(("device.add", address))


@pytest.mark.usefixtures("impatient")
async def test_a_daemon_that_answers_for_no_device_is_lost(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.daemon.silent = {("device.add", A)}
    async with asyncio.timeout(20):
        with pytest.raises(ExceptionGroup) as lost:
            await world.devices.follow(world.daemon)
    assert lost.group_contains(DaemonLost, match="has not answered device.add")


@pytest.mark.usefixtures("impatient")
async def test_a_device_that_the_daemon_does_not_say_it_let_go_is_not_restored_but_renewed(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.wanted.set(Loaded((A, B)))
    async with world.followed():
        for address in (A, B):
            await world.until(address, lambda state: state is DeviceState.READY)
        world.daemon.silent = {("device.remove", A)}
        world.wanted.set(Loaded((B,)))
        async with asyncio.timeout(20):
            await world.devices.published.wait_for(
                lambda devices: devices[A].reason.endswith("device.remove for 0.2 s")
            )
        assert world.devices.published.value[A].state is DeviceState.REMOVING
        world.daemon.silent.clear()
        asked = world.daemon.calls.count(("device.add", A))
        world.wanted.set(Loaded((A, B)))
        await world.until(A, lambda state: state is DeviceState.READY)
        assert world.daemon.calls.count(("device.add", A)) == asked + 1


@pytest.mark.usefixtures("impatient")
async def test_a_list_of_devices_that_does_not_come_holds_nothing_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.daemon.silent = {("device.list", ""), ("mapping.write", "")}
    with capture_logs() as logs:
        async with world.followed(), asyncio.timeout(20):
            await world.until(A, lambda state: state is DeviceState.READY)
            world.mapping.set(Loaded(SocketMapping({A: "/v/foreign"})))  # type: ignore[arg-type]
            while not [log for log in logs if log["event"] == "mapping_not_written"]:
                world.devices.look()
                await asyncio.sleep(0.01)
            world.wanted.set(Loaded((A, B)))
            await world.until(B, lambda state: state is DeviceState.READY)
            while [log["event"] for log in logs].count("front_ends_unknown") < 2:
                world.devices.look()
                await asyncio.sleep(0.01)
            world.daemon.silent.clear()
            while not world.steps:
                await asyncio.sleep(0.01)
    unknown = [log["log_level"] for log in logs if log["event"] == "front_ends_unknown"]
    assert (unknown[0], set(unknown[1:])) == ("warning", {"debug"})
    (failed,) = [log for log in logs if log["event"] == "mapping_not_written" and log["log_level"] == "error"]
    assert failed["reason"].endswith("; the daemon has not answered mapping.write for 0.2 s")


@pytest.mark.usefixtures("impatient")
async def test_the_mapping_may_have_a_device_that_the_daemon_has_not_answered_for_or_not(tmp_path: Path) -> None:
    for said in ({B: f"{tmp_path}/vhost/vdpa-1"}, {A: f"{tmp_path}/vhost/vdpa-0", B: f"{tmp_path}/vhost/vdpa-1"}):
        world = World(tmp_path)
        world.wanted.set(Loaded((A, B)))
        world.daemon.silent = {("device.add", A), ("device.remove", A)}
        world.mapping.set(Loaded(SocketMapping(said)))  # type: ignore[arg-type]
        async with world.followed():
            await world.until(B, lambda state: state is DeviceState.READY)
            await asyncio.sleep(1.7)  # longer than the file may differ
        assert ("mapping.write", "") not in world.daemon.calls


@contextmanager
def _listening(path: Path, kind: socket.SocketKind = socket.SOCK_STREAM) -> Iterator[str]:
    """A socket at a path; gives device and inode as vdpad would."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX, kind) as one:
        one.bind(str(path))
        if kind is socket.SOCK_STREAM:
            one.listen()
        found = path.stat()
        yield f"{found.st_dev}:{found.st_ino}"


@pytest.mark.parametrize(
    ("file", "kind", "reason"),
    [
        (None, socket.SOCK_STREAM, "the daemon did not say which file its socket is"),
        ("1:2", socket.SOCK_STREAM, "another process replaced the socket file {}"),
        ("1:2", None, "the socket file {} is gone"),
        ("", socket.SOCK_DGRAM, "what is bound at {} takes no streams"),
    ],
)
async def test_what_the_daemon_acknowledges_is_looked_at_before_it_is_served(
    tmp_path: Path, file: str | None, kind: socket.SocketKind | None, reason: str
) -> None:
    world = World(tmp_path, vhost_mode=VhostMode.SERVER)
    path = tmp_path / "vhost" / "vdpa-0"
    seen: list[DeviceState] = []

    async def watch() -> None:
        async for devices in world.devices.published.changes():
            seen.extend(device.state for device in devices.values())

    watching = asyncio.ensure_future(watch())
    with ExitStack() as sockets:
        made = sockets.enter_context(_listening(path, kind)) if kind else ""
        world.daemon.answers["device.add"] = {} if file is None else {"socket_file": file or made}
        async with world.followed():
            await world.until(A, lambda state: state is DeviceState.FAILED)
    assert world.devices.published.value[A].reason.startswith(reason.format(path))
    watching.cancel()
    assert not SERVED & set(seen)


async def test_one_file_is_the_socket_of_one_device(tmp_path: Path) -> None:
    """Also where two daemons say so, which have one directory."""
    directory = SocketDirectory(tmp_path / "vhost", Counter(), Latest(0))
    first, second = tmp_path / "vhost" / "vdpa-0", tmp_path / "vhost" / "vdpa-1"
    with _listening(first) as said:
        device, inode = map(int, said.split(":"))
        assert await directory.problem(str(first), (device, inode)) == ""
        os.link(first, second)
        reason = await directory.problem(str(second), (device, inode))
        assert reason == f"the socket file {second} is that of {first} as well"
        assert await directory.problem(str(first), (device, inode)) == ""
    first.unlink()  # another file may have its number then
    with _listening(tmp_path / "vhost" / "other"):
        second.unlink()
    with _listening(second) as said:
        device, inode = map(int, said.split(":"))
        assert await directory.problem(str(second), (device, inode)) == ""


async def test_in_client_mode_the_socket_is_the_front_ends(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.daemon.answers["device.add"] = {"socket_file": "1:2"}
    async with world.followed():
        await world.until(A, lambda state: state is DeviceState.READY)
        assert not world.devices.take_opened()


async def test_a_daemon_that_ends_at_any_moment_is_followed_by_one_that_is_asked_for_everything(tmp_path: Path) -> None:
    for steps in range(60):
        world = World(tmp_path)
        world.wanted.set(Loaded(ALL))
        async with world.followed():
            for _ in range(steps):
                await asyncio.sleep(0)
        world.devices.forget("the daemon ended")
        async with world.followed():
            for address in ALL:
                await world.until(address, lambda state: state is DeviceState.READY)
