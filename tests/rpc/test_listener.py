"""Opening the gRPC socket."""

import asyncio
import fcntl
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hyperframe.frame import SettingsFrame
from structlog.testing import capture_logs

from tests.abuse.wire import PREFACE
from tests.mounts import mounted
from tests.stoppable import stoppable
from vdpa_agent.config import ServeConfig
from vdpa_agent.errors import AlreadyRunning, ListenError
from vdpa_agent.latest import Latest
from vdpa_agent.model.health import Standing
from vdpa_agent.rpc import listener
from vdpa_agent.rpc.listener import listening

pytestmark = pytest.mark.anyio


def _listening(config: ServeConfig, standing: Latest[Standing] | None = None) -> AbstractAsyncContextManager[Any]:
    return listening(config, [], standing or Latest(Standing()))


async def test_the_socket_has_its_mode_and_is_gone_at_the_end(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "deep" / "s.sock", listen_mode=0o600)
    async with _listening(config):
        assert stat.S_IMODE(config.listen.stat().st_mode) == 0o600
        assert config.listen.is_socket()
    assert not config.listen.exists()


async def test_a_stale_socket_is_replaced(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(config.listen))
    async with _listening(config):
        _, writer = await asyncio.open_unix_connection(config.listen)
        writer.close()


async def test_a_second_one_names_the_holder_and_disturbs_nothing(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    async with _listening(config):
        inode = config.listen.stat().st_ino
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(AlreadyRunning, match=f"{holder}, holds {config.listen}"):
            async with _listening(config):
                pytest.fail("two hold one socket")
        assert config.listen.stat().st_ino == inode


async def test_what_is_no_socket_is_not_replaced(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    config.listen.write_text("precious")
    with pytest.raises(ListenError, match="a regular file is there, not a socket; move it away"):
        async with _listening(config):
            pytest.fail("it listens")
    assert config.listen.read_text() == "precious"


async def test_the_socket_of_a_successor_is_left_alone(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    async with _listening(config):
        config.listen.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(config.listen))
    assert config.listen.exists()


async def test_an_impossible_place_is_an_error_with_a_remedy(run_dir: Path) -> None:
    (run_dir / "file").touch()
    config = ServeConfig(listen=run_dir / "file" / "s.sock")
    with pytest.raises(ListenError, match="needs a directory that it can write to"):
        async with _listening(config):
            pytest.fail("it listens")


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
async def test_the_mode_is_the_one_that_was_asked_for_whatever_the_umask(run_dir: Path, mode: int) -> None:
    config = ServeConfig(listen=run_dir / "s.sock", listen_mode=mode, listen_group=65_531)
    for umask in (0, 0o022, 0o777):
        before = os.umask(umask)
        try:
            async with _listening(config):
                found = config.listen.stat()
                assert (stat.S_IMODE(found.st_mode), found.st_gid) == (mode, 65_531)
                assert stat.S_IMODE((run_dir / "s.sock.lock").stat().st_mode) == 0o600
        finally:
            os.umask(before)
        assert _names(run_dir) == []


async def test_the_lock_of_an_earlier_version_is_kept_from_strangers(run_dir: Path) -> None:
    lock = run_dir / "s.sock.lock"
    lock.touch(0o644)
    async with _listening(ServeConfig(listen=run_dir / "s.sock")):
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def _link(at: Path, outside: Path) -> None:
    at.symlink_to(outside / "precious")


def _dangling_link(at: Path, outside: Path) -> None:
    at.symlink_to(outside / "new")


def _hard_link(at: Path, outside: Path) -> None:
    at.hardlink_to(outside / "precious")


def _directory(at: Path, _outside: Path) -> None:
    at.mkdir()


def _fifo(at: Path, _outside: Path) -> None:
    os.mkfifo(at)


def _foreign_file(at: Path, _outside: Path) -> None:
    at.touch()
    os.chown(at, 65_532, 65_532)


def _device(at: Path, _outside: Path) -> None:
    os.mknod(at, stat.S_IFCHR | 0o600, os.makedev(1, 3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_link, "it is a symbolic link"),
        (_dangling_link, "it is a symbolic link"),
        (_hard_link, "the file has 2 names"),
        (_directory, "is a directory"),
        (_fifo, "it is a FIFO"),
        (_device, "it is a device"),
        (_foreign_file, "it belongs to user 65532, the agent runs as 0"),
    ],
)
async def test_what_is_in_place_of_the_lock_is_one_clear_error_and_stays(
    run_dir: Path, make: Callable[[Path, Path], None], reason: str
) -> None:
    outside = run_dir / "outside"
    outside.mkdir()
    precious = outside / "precious"
    precious.write_text("secret")
    before = precious.stat()
    run = run_dir / "run"
    run.mkdir()
    make(run / "s.sock.lock", outside)
    with pytest.raises(ListenError, match=f"--listen: {run}/s.sock.lock: {reason}; move it away"):
        async with _listening(ServeConfig(listen=run / "s.sock")):
            pytest.fail("it listens")
    after = precious.stat()
    assert (precious.read_text(), after.st_mode, after.st_uid) == ("secret", before.st_mode, before.st_uid)
    assert _names(outside) == ["precious"]
    assert _names(run) == ["s.sock.lock"]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (_link, "a symbolic link"),
        (_dangling_link, "a symbolic link"),
        (_hard_link, "a regular file"),
        (_directory, "a directory"),
        (_fifo, "a FIFO"),
    ],
)
async def test_what_is_in_place_of_the_socket_likewise(
    run_dir: Path, make: Callable[[Path, Path], None], kind: str
) -> None:
    outside = run_dir / "outside"
    outside.mkdir()
    (outside / "precious").write_text("secret")
    before = (outside / "precious").stat().st_mode
    run = run_dir / "run"
    run.mkdir()
    make(run / "s.sock", outside)
    with pytest.raises(ListenError, match=f"--listen: {run}/s.sock: {kind} is there, not a socket; move it away"):
        async with _listening(ServeConfig(listen=run / "s.sock", listen_mode=0o666)):
            pytest.fail("it listens")
    assert (outside / "precious").stat().st_mode == before
    assert _names(run) == ["s.sock"]


async def test_what_bears_the_temporary_name_of_an_earlier_version_is_left_alone(run_dir: Path) -> None:
    (run_dir / "s.sock.new").mkdir()
    (run_dir / "s.sock.new" / "precious").touch()
    async with _listening(ServeConfig(listen=run_dir / "s.sock")):
        assert (run_dir / "s.sock.new" / "precious").exists()


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


async def _eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


async def _answers(listen: Path) -> bool:
    """Whether the agent at a path speaks HTTP/2."""
    reader, writer = await asyncio.open_unix_connection(listen)
    writer.write(PREFACE + SettingsFrame(0).serialize())
    try:
        async with asyncio.timeout(20):
            return (await reader.read(9))[3:4] == b"\x04"
    finally:
        writer.close()


class _Standings:
    """Every standing that there was."""

    def __init__(self) -> None:
        self.latest = Latest(Standing())
        self.seen: list[Standing] = []

    async def run(self) -> None:
        async for standing in self.latest.changes():
            self.seen.append(standing)


@asynccontextmanager
async def _watched(config: ServeConfig) -> AsyncIterator[_Standings]:
    standings = _Standings()
    async with _listening(config, standings.latest), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(standings.run())
        yield standings
        watching.cancel()


def _remove_socket(listen: Path) -> None:
    listen.unlink()


def _put_another(listen: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{listen}.other")
    Path(f"{listen}.other").rename(listen)


def _remove_lock(listen: Path) -> None:
    Path(f"{listen}.lock").unlink()


def _replace_lock(listen: Path) -> None:
    _remove_lock(listen)
    Path(f"{listen}.lock").touch()


def _remove_directory(listen: Path) -> None:
    shutil.rmtree(listen.parent)


def _remake_directory(listen: Path) -> None:
    shutil.rmtree(listen.parent)
    listen.parent.mkdir()


@pytest.mark.parametrize(
    "do", [_remove_socket, _put_another, _remove_lock, _replace_lock, _remove_directory, _remake_directory]
)
async def test_what_another_process_took_away_is_made_again(run_dir: Path, do: Callable[[Path], None]) -> None:
    config = ServeConfig(listen=run_dir / "deep" / "s.sock", listen_mode=0o640)
    with capture_logs() as logs:
        async with _watched(config) as standings:
            reader, writer = await asyncio.open_unix_connection(config.listen)
            do(config.listen)
            await _eventually(lambda: any(standing.not_ready for standing in standings.seen))
            await _eventually(lambda: standings.seen[-1] == Standing())
            assert not any(standing.not_live for standing in standings.seen)
            assert stat.S_IMODE(config.listen.stat().st_mode) == 0o640
            assert await _answers(config.listen)
            with pytest.raises(AlreadyRunning):
                async with _listening(config):
                    pytest.fail("two hold one socket")
            writer.write(PREFACE + SettingsFrame(0).serialize())  # the open one goes on
            assert (await reader.read(9))[3:4] == b"\x04"
            writer.close()
    assert not config.listen.exists()
    (lost,) = [log for log in logs if log["event"] == "socket_lost"]
    assert lost["log_level"] == "warning"
    assert str(config.listen.parent) in lost["reason"]
    assert [log["event"] for log in logs if log["event"].startswith("socket_")] == ["socket_lost", "socket_restored"]


async def test_a_mount_over_the_directory_is_seen_at_once(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "_LOOK_S", 1000.0)  # only an event counts
    config = ServeConfig(listen=run_dir / "deep" / "s.sock")
    async with _watched(config) as standings:
        with mounted(config.listen.parent):
            await _eventually(lambda: any(standing.not_ready for standing in standings.seen))
            await _eventually(lambda: standings.seen[-1] == Standing() and config.listen.exists())
            assert await _answers(config.listen)
            standings.seen.clear()
        # What was hidden is not the socket that listens any more.
        await _eventually(lambda: any(standing.not_ready for standing in standings.seen))
        await _eventually(lambda: standings.seen[-1] == Standing())
        assert await _answers(config.listen)


async def test_a_directory_that_hangs_is_left_for_what_replaces_it(run_dir: Path) -> None:
    """The lock and the socket are open in it, and hang with it for good."""
    place, source = run_dir / "place", run_dir / "source"
    place.mkdir()
    source.mkdir()
    config = ServeConfig(listen=place / "s.sock")
    with stoppable(place, source) as server:
        async with _watched(config) as standings:
            server.stop()
            silent = f"{place}: the file system does not answer within 1 s; see to the mount below it"
            await _eventually(lambda: standings.latest.value == Standing(not_ready=silent))
            with mounted(place):
                await _eventually(lambda: standings.latest.value == Standing())
                assert await _answers(config.listen)
            server.go_on()
            await _eventually(lambda: standings.latest.value == Standing() and config.listen.exists())


async def test_the_lock_of_another_agent_is_respected_until_it_goes(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    lock = run_dir / "s.sock.lock"
    async with _watched(config) as standings:
        lock.unlink()
        with lock.open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            other.write("4711")
            other.flush()
            await _eventually(lambda: "process 4711, holds" in standings.latest.value.not_ready)
            _remove_socket(config.listen)
            _put_another(config.listen)
            inode = config.listen.stat().st_ino
            seen = len(standings.seen)
            await _eventually(lambda: len(standings.seen) > seen + 1)
            assert config.listen.stat().st_ino == inode
            assert not standings.latest.value.not_live
        await _eventually(lambda: standings.latest.value == Standing())
        assert await _answers(config.listen)


async def test_a_place_that_is_taken_by_no_socket_is_reported_and_left_alone(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    with capture_logs() as logs:
        async with _watched(config) as standings:
            config.listen.unlink()
            config.listen.write_text("precious")
            reason = f"--listen: {config.listen}: a regular file is there"
            await _eventually(lambda: standings.latest.value.not_ready.startswith(reason))
            assert config.listen.read_text() == "precious"
            config.listen.unlink()
            await _eventually(lambda: standings.latest.value == Standing())
    assert [log["log_level"] for log in logs if log["event"] == "socket_not_restored"][:1] == ["error"]


async def test_only_a_new_container_gets_a_removed_mount_back(run_dir: Path) -> None:
    host, mount = run_dir / "host", run_dir / "mount"
    host.mkdir()
    mount.mkdir()
    subprocess.run(["mount", "--bind", host, mount], check=True)
    try:
        async with _watched(ServeConfig(listen=mount / "s.sock")) as standings:
            shutil.rmtree(host)
            host.mkdir()
            await _eventually(lambda: bool(standings.latest.value.not_live))
            (reason, same) = standings.latest.value
            assert (
                reason
                == same
                == f"the directory {mount} was removed while it is mounted; only a new container can fix that"
            )
    finally:
        subprocess.run(["umount", mount], check=True)


async def test_clients_that_stay_connected_do_not_delay_the_end(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    async with asyncio.timeout(5):
        async with _listening(config):
            connections = [await asyncio.open_unix_connection(config.listen) for _ in range(20)]
        for reader, writer in connections:
            while await reader.read(4096):
                pass
            writer.close()


async def test_a_disk_without_room_for_a_number_in_the_lock_is_no_obstacle(run_dir: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "vdpa-agent-test", run_dir], check=True)
    try:
        with (run_dir / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(512))
        path = run_dir / "s.sock"
        async with _watched(ServeConfig(listen=path)):
            assert path.is_socket()
            assert (run_dir / "s.sock.lock").read_text() == ""
    finally:
        subprocess.run(["umount", "--lazy", run_dir], check=True)
