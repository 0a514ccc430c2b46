"""The two followed files, on a real file system."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.processes import mapping_text, write_atomically
from vdpa_agent.config import FilesConfig
from vdpa_agent.files.lists import Lists
from vdpa_agent.latest import Latest

pytestmark = pytest.mark.anyio

ONE = {"0000:82:00.2": "/v/vdpa-0"}
TWO = {**ONE, "0000:82:00.3": "/v/vdpa-1"}


def _lists(directory: Path, *, takes_requests: bool = True) -> Lists:
    config = FilesConfig(socket_list=directory / "socketList.dat", pci_list=directory / "pciList.dat")
    return Lists(config, takes_requests=takes_requests)


@asynccontextmanager
async def _followed(lists: Lists) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(lists.run())
        yield
        following.cancel()


async def _becomes(latest: Latest, wanted: Callable[[object], bool]) -> None:  # type: ignore[type-arg]
    async with asyncio.timeout(5):
        await latest.wait_for(lambda loaded: wanted(loaded.value))


def _sockets(expected: dict[str, str] | None) -> Callable[[object], bool]:
    def matches(value: object) -> bool:
        found = None if value is None else dict(value)  # type: ignore[call-overload]
        return bool(found == expected)

    return matches


async def test_a_device_list_in_the_mappings_place_is_moved_to_its_own(run_dir: Path) -> None:
    lists = _lists(run_dir)
    (run_dir / "pciList.dat").write_text("0000:82:00.7\n")
    (run_dir / "socketList.dat").write_text("0000:82:00.2\n0000:82:00.3\n")
    lists.check()
    assert lists.devices.value.value == ("0000:82:00.2", "0000:82:00.3")
    assert (run_dir / "pciList.dat").read_text() == "0000:82:00.2\n0000:82:00.3\n"
    assert not (run_dir / "socketList.dat").exists()


async def test_without_a_daemon_to_manage_such_a_list_is_refused_and_left_alone(run_dir: Path) -> None:
    lists = _lists(run_dir, takes_requests=False)
    (run_dir / "socketList.dat").write_text("0000:82:00.2\n")
    async with _followed(lists):
        async with asyncio.timeout(5):
            loaded = await lists.mapping.wait_for(lambda loaded: bool(loaded.problem))
    assert "it is not JSON; a list of PCI addresses belongs into --pci-list" in loaded.problem
    assert (run_dir / "socketList.dat").exists()
    assert lists.devices.value.value is None


async def test_a_malformed_request_is_put_aside_and_told_of_once(run_dir: Path) -> None:
    lists = _lists(run_dir)
    (run_dir / "pciList.dat").write_text("0000:82:00.7\n")
    (run_dir / "socketList.dat").write_text("0000:82:00.2\nens1\n")
    with capture_logs() as logs:
        async with _followed(lists), asyncio.timeout(5):
            while (run_dir / "socketList.dat").exists():
                await asyncio.sleep(0.01)
    refusals = [log for log in logs if log["event"] == "device_list_refused"]
    assert [log["reason"] for log in refusals] == [
        "line 2: 'ens1' is not a PCI address such as 0000:82:00.2; write one address a line"
    ]
    assert (run_dir / "socketList.dat.refused").read_text() == "0000:82:00.2\nens1\n"
    assert lists.devices.value.value == ("0000:82:00.7",)


async def test_an_emptied_list_counts_only_when_it_stays_empty(run_dir: Path) -> None:
    lists = _lists(run_dir)
    path = run_dir / "pciList.dat"
    path.write_text("0000:82:00.2\n")
    lists.check()
    path.write_text("")
    lists.check()
    assert lists.devices.value.value == ("0000:82:00.2",)
    async with _followed(lists):
        await _becomes(lists.devices, lambda value: value == ())


async def test_the_device_list_outlives_its_file(run_dir: Path) -> None:
    lists = _lists(run_dir)
    path = run_dir / "pciList.dat"
    path.write_text("0000:82:00.2\n")
    async with _followed(lists):
        await _becomes(lists.devices, lambda value: value == ("0000:82:00.2",))
        path.unlink()
        async with asyncio.timeout(10):
            loaded = await lists.devices.wait_for(lambda loaded: bool(loaded.problem))
    assert loaded.value == ("0000:82:00.2",)


async def test_retiring_removes_a_mapping_and_keeps_a_list(run_dir: Path) -> None:
    lists = _lists(run_dir)
    socket_list = run_dir / "socketList.dat"
    socket_list.write_text(mapping_text(ONE))
    await lists.retire_mapping()
    assert list(run_dir.iterdir()) == []
    socket_list.write_text("0000:82:00.4\n")
    await lists.retire_mapping()
    assert [path.name for path in run_dir.iterdir()] == ["pciList.dat"]
    assert lists.devices.value.value == ("0000:82:00.4",)


async def test_a_list_that_a_killed_agent_left_aside_is_found_again(run_dir: Path) -> None:
    (run_dir / ".socketList.dat.retired").write_text("0000:82:00.4\n")
    lists = _lists(run_dir)
    await lists.retire_mapping()
    assert lists.devices.value.value == ("0000:82:00.4",)


async def test_a_fifo_or_a_directory_in_a_files_place_does_not_stop_the_loop(run_dir: Path) -> None:
    os.mkfifo(run_dir / "pciList.dat")
    (run_dir / "socketList.dat").mkdir()
    lists = _lists(run_dir)
    async with _followed(lists), asyncio.timeout(5):
        devices = await lists.devices.wait_for(lambda loaded: bool(loaded.problem))
        mapping = await lists.mapping.wait_for(lambda loaded: bool(loaded.problem))
    assert devices.problem == "not a regular file; put a file in its place"
    assert mapping.problem == "not a regular file; put a file in its place"


async def test_an_undecodable_name_in_the_directory_does_not_end_the_following(run_dir: Path) -> None:
    lists = _lists(run_dir, takes_requests=False)
    async with _followed(lists):
        write_atomically(run_dir / "socketList.dat", mapping_text(ONE))
        await _becomes(lists.mapping, _sockets(ONE))
        with open(os.fsencode(run_dir) + b"/\xff\xfe", "wb"):  # noqa: PTH123 - a name that no Path holds
            pass
        write_atomically(run_dir / "socketList.dat", mapping_text(TWO))
        await _becomes(lists.mapping, _sockets(TWO))
