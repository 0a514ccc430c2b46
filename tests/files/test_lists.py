"""The two followed files, on a real file system."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.files.conftest import NoDescriptors
from tests.hung import hung
from tests.processes import mapping_text, write_atomically
from vdpa_agent.config import FilesConfig
from vdpa_agent.files.lists import Lists
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.loaded import ABSENT, Loaded

pytestmark = pytest.mark.anyio

ONE = {"0000:82:00.2": "/v/vdpa-0"}
TWO = {**ONE, "0000:82:00.3": "/v/vdpa-1"}
DEVICES = tuple(f"0000:82:00.{function}" for function in range(4))


def _lists(
    directory: Path,
    *,
    takes_requests: bool = True,
    shrink_settle_s: float = 30.0,
    steps: DestructiveSteps | None = None,
) -> Lists:
    counted: DestructiveSteps = Counter() if steps is None else steps
    config = FilesConfig(socket_list=directory / "socketList.dat", pci_list=directory / "pciList.dat")
    return Lists(config, takes_requests=takes_requests, shrink_settle_s=shrink_settle_s, steps=counted)


@asynccontextmanager
async def _followed(lists: Lists) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(lists.run())
        yield
        following.cancel()


async def _becomes(latest: Latest[Loaded[Any]], wanted: Callable[[Loaded[Any]], bool]) -> Loaded[Any]:
    async with asyncio.timeout(20):
        return await latest.wait_for(wanted)


async def _appears(path: Path) -> None:
    async with asyncio.timeout(20):
        while not path.exists():
            await asyncio.sleep(0.01)


def _sockets(expected: dict[str, str]) -> Callable[[Loaded[Any]], bool]:
    return lambda loaded: loaded.value is not None and dict(loaded.value) == expected


def _written(devices: tuple[str, ...]) -> str:
    return "".join(f"{address}\n" for address in devices)


async def test_the_first_look_publishes_both_files(run_dir: Path) -> None:
    (run_dir / "pciList.dat").write_text(_written(DEVICES))
    (run_dir / "socketList.dat").write_text(mapping_text(ONE))
    lists = _lists(run_dir)
    await lists.first()
    assert lists.devices.value == Loaded(DEVICES)
    assert _sockets(ONE)(lists.mapping.value)


async def test_the_first_look_publishes_refusals_and_absence(run_dir: Path) -> None:
    (run_dir / "pciList.dat").write_text("0000:82:00.2\nens1\n")
    lists = _lists(run_dir)
    await lists.first()
    assert lists.devices.value == Loaded(
        None, "line 2: 'ens1' is not a PCI address such as 0000:82:00.2; write one address a line", refused=True
    )
    assert lists.mapping.value == Loaded(None, ABSENT, refused=False)


async def test_without_a_daemon_to_manage_the_device_list_is_not_read(run_dir: Path) -> None:
    (run_dir / "pciList.dat").write_text(_written(DEVICES))
    lists = _lists(run_dir, takes_requests=False)
    async with _followed(lists):
        await _becomes(lists.mapping, lambda loaded: loaded.problem == ABSENT)
    assert lists.devices.value == Loaded()


async def test_a_device_list_in_the_mappings_place_is_moved_to_its_own(run_dir: Path) -> None:
    lists = _lists(run_dir)
    (run_dir / "pciList.dat").write_text("0000:82:00.7\n")
    (run_dir / "socketList.dat").write_text("0000:82:00.2\n0000:82:00.3\n")
    await lists.first()
    assert lists.devices.value.value == ("0000:82:00.2", "0000:82:00.3")
    assert (run_dir / "pciList.dat").read_text() == "0000:82:00.2\n0000:82:00.3\n"
    assert not (run_dir / "socketList.dat").exists()


async def test_without_a_daemon_to_manage_such_a_list_is_refused_and_left_alone(run_dir: Path) -> None:
    lists = _lists(run_dir, takes_requests=False)
    (run_dir / "socketList.dat").write_text("0000:82:00.2\n")
    async with _followed(lists):
        loaded = await _becomes(lists.mapping, lambda loaded: loaded.refused)
    assert "it is not JSON; a list of PCI addresses belongs into --pci-list" in loaded.problem
    assert (run_dir / "socketList.dat").exists()
    assert lists.devices.value.value is None


async def test_an_emptied_list_counts_only_when_it_stays_empty(run_dir: Path) -> None:
    steps: DestructiveSteps = Counter()
    lists = _lists(run_dir, shrink_settle_s=0.5, steps=steps)
    path = run_dir / "pciList.dat"
    path.write_text("0000:82:00.2\n")
    await lists.first()
    with capture_logs() as logs:
        async with _followed(lists):
            path.write_text("")
            loaded = await _becomes(lists.devices, lambda loaded: bool(loaded.problem))
            assert loaded == Loaded(
                ("0000:82:00.2",), "the list was emptied: 1 devices go in 0.5 s unless it is written again"
            )
            await _becomes(lists.devices, lambda loaded: loaded == Loaded(()))
    assert [log for log in logs if log["event"] == "device_list_shrinks"] == [
        {
            "event": "device_list_shrinks",
            "file": str(path),
            "before": 1,
            "after": 0,
            "wait_s": 0.5,
            "remedy": "write the whole list again; else what is missing goes",
            "log_level": "warning",
        }
    ]
    assert [log["log_level"] for log in logs if log["event"] == "device_list_shrunk"] == ["warning"]
    assert steps == {Destructive.LIST_SHRUNK: 1}


async def test_what_is_new_in_a_list_that_lost_most_counts_at_once_behind_what_was(run_dir: Path) -> None:
    lists = _lists(run_dir)
    path = run_dir / "pciList.dat"
    path.write_text(_written(DEVICES))
    async with _followed(lists):
        await _becomes(lists.devices, lambda loaded: loaded.value == DEVICES)
        write_atomically(path, "0000:83:00.0\n0000:82:00.1\n")
        loaded = await _becomes(lists.devices, lambda loaded: bool(loaded.problem))
        assert loaded.value == (*DEVICES, "0000:83:00.0")
        assert not loaded.refused
        write_atomically(path, _written((*DEVICES, "0000:83:00.1")))
        await _becomes(lists.devices, lambda loaded: loaded == Loaded((*DEVICES, "0000:83:00.1")))


async def test_the_device_list_outlives_its_file(run_dir: Path) -> None:
    lists = _lists(run_dir)
    path = run_dir / "pciList.dat"
    path.write_text("0000:82:00.2\n")
    async with _followed(lists):
        await _becomes(lists.devices, lambda loaded: loaded.value == ("0000:82:00.2",))
        path.unlink()
        loaded = await _becomes(lists.devices, lambda loaded: bool(loaded.problem))
    assert loaded == Loaded(("0000:82:00.2",), ABSENT)


async def test_the_last_good_list_outlives_the_agent(run_dir: Path) -> None:
    path = run_dir / "pciList.dat"
    path.write_text(_written(DEVICES))
    async with _followed(_lists(run_dir)):
        await _appears(run_dir / ".pciList.last")

    def make_directory() -> None:
        path.unlink()
        path.mkdir()

    def make_link() -> None:
        path.rmdir()
        path.symlink_to("/etc/shadow")

    for make_bad in (lambda: path.write_text("garbage\n"), make_directory, make_link):
        make_bad()
        lists = _lists(run_dir)
        with capture_logs() as logs:
            await lists.first()
        assert lists.devices.value.value == DEVICES
        assert lists.devices.value.refused
        assert "kept_list_used" in [log["event"] for log in logs]


async def test_a_kept_list_is_not_used_where_the_list_is_absent(run_dir: Path) -> None:
    (run_dir / ".pciList.last").write_text(_written(DEVICES))
    lists = _lists(run_dir)
    await lists.first()
    assert lists.devices.value == Loaded(None, ABSENT)


async def test_only_what_counts_is_kept_and_a_kept_list_that_is_gone_comes_again(run_dir: Path) -> None:
    path, kept = run_dir / "pciList.dat", run_dir / ".pciList.last"
    path.write_text(_written(DEVICES))
    lists = _lists(run_dir)
    async with _followed(lists):
        await _appears(kept)
        path.write_text("0000:83:00.0\n")
        await _becomes(lists.devices, lambda loaded: "lost" in loaded.problem)
        path.write_text("garbage")
        loaded = await _becomes(lists.devices, lambda loaded: loaded.refused)
        assert loaded.value == (*DEVICES, "0000:83:00.0")
        assert kept.read_text() == _written(DEVICES)
        write_atomically(path, _written((*DEVICES, "0000:83:00.1")))
        async with asyncio.timeout(20):
            while kept.read_text() != path.read_text():
                await asyncio.sleep(0.01)
        kept.unlink()
        await _appears(kept)
    assert kept.read_text() == path.read_text()


async def test_a_fifo_or_a_directory_in_a_files_place_does_not_stop_the_loop(run_dir: Path) -> None:
    os.mkfifo(run_dir / "pciList.dat")
    (run_dir / "socketList.dat").mkdir()
    lists = _lists(run_dir)
    async with _followed(lists):
        devices = await _becomes(lists.devices, lambda loaded: bool(loaded.problem))
        mapping = await _becomes(lists.mapping, lambda loaded: bool(loaded.problem))
    assert devices.problem == "not a regular file; put a file in its place"
    assert mapping.problem == "not a regular file; put a file in its place"


async def test_a_hung_list_is_a_problem_and_the_other_file_is_followed(run_dir: Path) -> None:
    directory = run_dir / "lists"
    directory.mkdir()
    path = directory / "pciList.dat"
    path.write_text("0000:82:00.2\n")
    config = FilesConfig(socket_list=run_dir / "socketList.dat", pci_list=path)
    lists = Lists(config, takes_requests=True, shrink_settle_s=30, steps=Counter())
    async with _followed(lists):
        await _becomes(lists.devices, lambda loaded: loaded.value == ("0000:82:00.2",))
        with hung(directory):
            write_atomically(config.socket_list, mapping_text(ONE))
            await _becomes(lists.mapping, _sockets(ONE))
            loaded = await _becomes(lists.devices, lambda loaded: bool(loaded.problem))
            assert loaded.value == ("0000:82:00.2",)
            assert loaded.refused
            assert loaded.problem.startswith(f"{path}: the file system does not answer within 3 s")
            write_atomically(config.socket_list, mapping_text(TWO))
            await _becomes(lists.mapping, _sockets(TWO))
        # It answers again.
        await _becomes(lists.devices, lambda loaded: loaded == Loaded(("0000:82:00.2",)))


async def test_the_first_look_ends_where_nothing_answers(run_dir: Path) -> None:
    (run_dir / ".pciList.last").write_text(_written(DEVICES))
    lists = _lists(run_dir)
    with hung(run_dir):
        async with asyncio.timeout(30):
            await lists.first()
        assert lists.devices.value.refused
        assert "does not answer" in lists.devices.value.problem
        assert "does not answer" in lists.mapping.value.problem


async def test_a_directory_that_is_absent_from_the_start_is_found_when_it_comes(run_dir: Path) -> None:
    lists = _lists(run_dir / "later" / "still")
    async with _followed(lists):
        await _becomes(lists.devices, lambda loaded: loaded.problem == ABSENT)
        (run_dir / "later" / "still").mkdir(parents=True)
        (run_dir / "later" / "still" / "pciList.dat").write_text("0000:82:00.2\n")
        await _becomes(lists.devices, lambda loaded: loaded == Loaded(("0000:82:00.2",)))


async def test_undecodable_and_many_names_in_the_directory_do_not_end_the_following(run_dir: Path) -> None:
    for number in range(5000):
        (run_dir / f"other{number}").touch()
    lists = _lists(run_dir, takes_requests=False)
    async with _followed(lists):
        write_atomically(run_dir / "socketList.dat", mapping_text(ONE))
        await _becomes(lists.mapping, _sockets(ONE))
        with open(os.fsencode(run_dir) + b"/\xff\xfe", "wb"):  # noqa: PTH123 - a name that no Path holds
            pass
        write_atomically(run_dir / "socketList.dat", mapping_text(TWO))
        await _becomes(lists.mapping, _sockets(TWO))


async def test_a_file_that_never_changes_any_more_is_read_and_warned_of_once(detached_mount: Path) -> None:
    detached_mount.write_text(mapping_text(ONE))
    config = FilesConfig(socket_list=detached_mount, pci_list=detached_mount.with_name("pciList.dat"))
    lists = Lists(config, takes_requests=False, shrink_settle_s=30, steps=Counter())
    with capture_logs() as logs:
        await lists.first()
        async with _followed(lists):
            for number in range(5):
                detached_mount.with_name(f"other{number}").touch()
            detached_mount.write_text(mapping_text(TWO))
            await _becomes(lists.mapping, _sockets(TWO))
    warnings = [log for log in logs if log["event"] == "file_detached"]
    assert [(log["file"], "mount its directory" in log["remedy"]) for log in warnings] == [(str(detached_mount), True)]


async def test_without_a_descriptor_from_the_start_the_files_are_read_when_there_is_one(
    run_dir: Path, no_descriptors: NoDescriptors
) -> None:
    (run_dir / "pciList.dat").write_text(_written(DEVICES))
    lists = _lists(run_dir)
    with capture_logs() as logs, no_descriptors():
        await lists.first()
        assert lists.devices.value == Loaded(
            None, "too many open files; raise the agent's limit of open files (ulimit -n)", refused=True
        )
        async with _followed(lists), asyncio.timeout(20):
            while "watch_interrupted" not in [log["event"] for log in logs]:
                await asyncio.sleep(0.01)
    async with _followed(lists):
        await _becomes(lists.devices, lambda loaded: loaded == Loaded(DEVICES))


THREADLESS = """
import asyncio, resource, sys
from collections import Counter
from pathlib import Path
from vdpa_agent.config import FilesConfig
from vdpa_agent.files.lists import Lists

async def main():
    run_dir = Path(sys.argv[1])
    config = FilesConfig(socket_list=run_dir / "socketList.dat", pci_list=run_dir / "pciList.dat")
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    lists = Lists(config, takes_requests=True, shrink_settle_s=30, steps=Counter())
    await lists.first()
    print(lists.devices.value.problem)
    resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(lists.run())
        print((await lists.devices.wait_for(lambda loaded: loaded.value)).value)
        following.cancel()

asyncio.run(main())
"""


async def test_without_a_thread_from_the_start_the_files_are_read_when_there_is_one(run_dir: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    (run_dir / "pciList.dat").write_text("0000:82:00.2\n")
    run_dir.chmod(0o755)
    process = await asyncio.create_subprocess_exec(
        *("setpriv", "--reuid=300003", "--regid=300003", "--clear-groups"),
        *(sys.executable, "-c", THREADLESS, str(run_dir)),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    lines = output.decode().splitlines()
    expected = f"{run_dir}/pciList.dat: no thread can be started; raise the limit of processes"
    assert [line for line in lines if line.startswith(expected)]
    assert lines[-1] == "('0000:82:00.2',)"


async def test_a_kept_list_that_cannot_be_read_at_first_counts_when_it_can(
    run_dir: Path, no_descriptors: NoDescriptors
) -> None:
    (run_dir / "pciList.dat").mkdir()
    (run_dir / ".pciList.last").write_text(_written(DEVICES))
    lists = _lists(run_dir)
    with no_descriptors():
        await lists.first()
    assert lists.devices.value.value is None
    async with _followed(lists):
        loaded = await _becomes(lists.devices, lambda loaded: loaded.value == DEVICES)
    assert loaded.refused


async def test_a_list_that_a_killed_agent_left_aside_counts_from_the_first_look(run_dir: Path) -> None:
    path, aside = run_dir / "pciList.dat", run_dir / ".socketList.dat.retired"
    path.write_text(_written(DEVICES))
    aside.write_text("0000:82:00.7\n")
    lists = _lists(run_dir)
    await lists.first()
    assert lists.devices.value == Loaded(("0000:82:00.7",))
    assert not aside.exists()


async def test_without_a_daemon_to_manage_what_is_aside_is_left_alone(run_dir: Path) -> None:
    aside = run_dir / ".socketList.dat.retired"
    aside.write_text("0000:82:00.7\n")
    await _lists(run_dir, takes_requests=False).first()
    assert aside.exists()
