"""One agent at a time has the directory of the sockets, whatever its name; no stranger keeps it from that."""

import fcntl
import os
import socket
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.mounts import mounted
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.errors import AlreadyRunning, ListenError, SocketDirUnusable
from vdpa_agent.latest import Latest
from vdpa_agent.node.lock import Lock

pytestmark = pytest.mark.anyio

LOCK = ".vdpa-agent.lock"


def _directory(path: Path) -> SocketDirectory:
    return SocketDirectory(path, Counter(), Latest(0))


def _held(path: Path) -> str:
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    return f"another agent, {holder}, holds {path}; stop it or choose another --socket-dir"


@pytest.mark.parametrize("alias", ["the same name", "a link on the way", "a bind mount"])
async def test_one_agent_has_it_whatever_it_is_called(run_dir: Path, alias: str) -> None:
    path, above = run_dir / "above" / "vhost", run_dir / "alias"
    first = _directory(path)
    await first.claim()
    if alias == "a link on the way":
        above.symlink_to("above")
    elif alias == "a bind mount":
        above.mkdir()
    other = path if alias == "the same name" else above / "vhost"

    async def refused() -> None:
        second = _directory(other)
        with pytest.raises(AlreadyRunning) as running:
            await second.claim()
        assert str(running.value) == _held(other)
        with pytest.raises(SocketDirUnusable) as unusable:
            await second.make()
        assert str(unusable.value) == _held(other)

    if alias == "a bind mount":
        with mounted(above, run_dir / "above"):
            await refused()
    else:
        await refused()
    await first.leave()
    assert list(path.iterdir()) == []
    after = _directory(path)
    await after.claim()
    await after.leave()


async def test_no_user_can_keep_the_agent_from_it(run_dir: Path) -> None:
    run_dir.chmod(0o755)
    path = run_dir / "vhost"
    first = _directory(path)
    await first.claim()
    assert path.stat().st_mode & 0o777 == 0o755
    assert (path / LOCK).stat().st_mode & 0o777 == 0o600
    stranger = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    tried = subprocess.run([*stranger, "flock", "-n", path / LOCK, "true"], check=False, capture_output=True, text=True)
    assert tried.returncode != 0
    assert "Permission denied" in tried.stderr
    await first.leave()
    # Who may read the directory may lock it: that is not what counts.
    with subprocess.Popen([*stranger, "flock", path, "sh", "-c", "echo held; read x"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        await first.claim()
        await first.leave()
        holder.communicate(b"\n")


def _link(lock: Path) -> None:
    lock.symlink_to(lock.parent.parent / "victim")


def _dangling(lock: Path) -> None:
    lock.symlink_to("nowhere")


def _hard_link(lock: Path) -> None:
    os.link(lock.parent.parent / "victim", lock)


def _of_a_stranger(lock: Path) -> None:
    lock.touch()
    os.chown(lock, 65534, 65534)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (_link, "it is a symbolic link; move it away, or choose another --socket-dir"),
        (_dangling, "it is a symbolic link; move it away, or choose another --socket-dir"),
        (os.mkfifo, "it is a FIFO; move it away, or choose another --socket-dir"),
        (Path.mkdir, "is a directory; move it away, or choose another --socket-dir"),
        (_hard_link, "the file has 2 names; move it away, or choose another --socket-dir"),
        (_of_a_stranger, "it belongs to user 65534, the agent runs as 0; move it away, or choose another --socket-dir"),
    ],
)
async def test_what_is_in_place_of_the_lock_is_refused_in_words_and_stops_nothing(
    run_dir: Path, plant: Callable[[Path], None], reason: str
) -> None:
    victim, path = run_dir / "victim", run_dir / "vhost"
    victim.write_text("precious")
    path.mkdir()
    plant(path / LOCK)
    directory = _directory(path)
    with capture_logs() as logs:
        await directory.claim()
        await directory.make()
        assert await directory.lost({}) == {}
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("socket_dir_not_locked", f"--socket-dir: {path / LOCK}: {reason}")
    ]
    assert victim.read_text() == "precious"
    assert sorted(entry.name for entry in run_dir.iterdir()) == ["vhost", "victim"]
    (path / LOCK).rename(path / "away")
    await directory.lost({})
    assert (path / LOCK).stat().st_mode & 0o777 == 0o600
    await directory.leave()


async def test_a_lock_that_was_taken_away_is_made_again_and_that_of_another_agent_is_respected(run_dir: Path) -> None:
    path = run_dir / "vhost"
    directory = _directory(path)
    await directory.claim()
    (path / LOCK).unlink()
    await directory.lost({})
    assert (path / LOCK).exists()
    (path / LOCK).unlink()
    with (path / LOCK).open("w") as other, capture_logs() as logs:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("4711 pod-b\n")
        other.flush()
        for _ in range(3):
            assert await directory.lost({}) == {}  # what runs goes on
        with pytest.raises(SocketDirUnusable, match=r"^another agent, process 4711 on pod-b, holds "):
            await directory.make()
    assert [log["event"] for log in logs] == ["socket_dir_not_locked"]
    await directory.make()
    await directory.leave()


async def test_nothing_is_made_beyond_a_link_in_its_place(run_dir: Path) -> None:
    (run_dir / "beyond").mkdir()
    (run_dir / "vhost").symlink_to("beyond")
    directory = _directory(run_dir / "vhost")
    await directory.claim()
    await directory.lost({})
    with pytest.raises(SocketDirUnusable, match="it is a symbolic link"):
        await directory.make()
    # Also where the link comes between two steps.
    lock = Lock(run_dir / "vhost" / LOCK, run_dir / "vhost", "--socket-dir", makes_directory=False)
    with pytest.raises(ListenError, match="not a directory"):
        lock.take()
    assert list((run_dir / "beyond").iterdir()) == []
