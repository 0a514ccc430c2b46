"""A directory of the sockets that does not answer: it is said, nothing in it is promised, and it is tried again."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.hung import hung
from tests.mounts import mounted
from tests.processes import WITH_HTTP, AgentProcess, eventually, front_end, running, write_list
from tests.stoppable import stoppable

SOON_S = 25.0
"""Less than the time after which a file system of `hung` fails by itself."""


def _silent(directory: Path) -> str:
    return f"the socket directory {directory}: the file system does not answer within 2 s; see to the mount below it"


def _not_ready(agent: AgentProcess, reason: str) -> bool:
    status, page = agent.get("/readyz?verbose")
    return status == 503 and reason in page


@pytest.mark.parametrize("isolation", ["shared", "device"])
def test_one_that_hangs_later(run_dir: Path, options: tuple[str, ...], isolation: str) -> None:
    directory = run_dir / "vhost"
    paths = [directory / f"vdpa-{number}" for number in range(2)]
    write_list(run_dir / "pciList.dat", FOUR[:2])
    with running(run_dir, *options, WITH_HTTP, f"--isolation={isolation}") as agent:
        for address, path in zip(FOUR, paths, strict=False):
            agent.wait_answer(address, str(path))
        inodes = [path.stat().st_ino for path in paths]
        daemon = agent.daemon_pid()
        with front_end(str(paths[0]), "--rate=1000", "--interval=0.1") as front:
            front.wait_passing()
            with hung(directory):
                eventually("not ready", lambda: _not_ready(agent, _silent(directory)), timeout_s=SOON_S)
                assert [agent.ask(address) for address in FOUR[:2]] == ["", ""]
                assert agent.get("/livez")[0] == 200
                agent.wait_logged("socket_dir_silent", reason=_silent(directory))
                # vdpad would wait for the file system with all of its devices, if it were to remove a socket.
                write_list(run_dir / "pciList.dat", FOUR[:1])
                agent.wait_logged("device_not_removed", device=FOUR[1], reason=_silent(directory))
                seen = len(front.lines.named("interval"))
                eventually("packets", lambda: any(e["received"] for e in front.lines.named("interval")[seen + 1 :]))
            agent.wait_answer(FOUR[0], str(paths[0]), timeout_s=SOON_S)
            agent.wait_logged("socket_dir_answers")
            eventually("ready", lambda: agent.get("/readyz")[0] == 200)
            eventually("removed", lambda: not paths[1].exists())
        assert paths[0].stat().st_ino == inodes[0]
        assert agent.log.named("daemon_started")[0]["pid"]
        assert not agent.log.named("daemon_killed")
        assert isolation == "device" or agent.daemon_pid() == daemon


def test_one_whose_server_stops_goes_on_with_it_or_with_what_replaces_it(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    """The agent has files open in it, which hang with it for good."""
    directory, source = run_dir / "vhost", run_dir / "source"
    directory.mkdir()
    source.mkdir()
    path = directory / "vdpa-0"
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with stoppable(directory, source) as server, running(run_dir, *options, WITH_HTTP) as agent:
        agent.wait_answer(FOUR[0], str(path))
        inode = (source / "vdpa-0").stat().st_ino
        daemon, threads = agent.daemon_pid(), _threads(agent)
        server.stop()
        agent.wait_answer(FOUR[0], "", timeout_s=SOON_S)
        assert _not_ready(agent, _silent(directory))
        server.go_on()
        agent.wait_answer(FOUR[0], str(path), timeout_s=SOON_S)
        assert (source / "vdpa-0").stat().st_ino == inode
        eventually("no thread is left over", lambda: _threads(agent) <= threads + 2)
        server.stop()
        agent.wait_answer(FOUR[0], "", timeout_s=SOON_S)
        with mounted(directory):
            agent.wait_answer(FOUR[0], str(path), timeout_s=SOON_S)
            assert path.is_socket()
            assert agent.daemon_pid() == daemon
            server.go_on()
            eventually("no thread is left over", lambda: _threads(agent) <= threads + 2)


def _threads(agent: AgentProcess) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/task").iterdir()))


def test_one_that_hung_from_the_start_is_used_when_it_is_replaced(run_dir: Path, options: tuple[str, ...]) -> None:
    directory = run_dir / "vhost"
    directory.mkdir()
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with hung(directory), ExitStack() as undo:
        agent = undo.enter_context(running(run_dir, *options, WITH_HTTP))
        assert agent.wait_logged("daemon_not_started")["reason"] == _silent(directory)
        assert _not_ready(agent, _silent(directory))
        threads = _threads(agent)
        with mounted(directory):
            agent.wait_answer(FOUR[0], str(directory / "vdpa-0"), timeout_s=SOON_S)
            assert (directory / "vdpa-0").is_socket()
            assert _threads(agent) <= threads + 8
            undo.close()  # while it answers


def test_one_that_hung_from_the_start_is_used_when_it_answers(run_dir: Path, options: tuple[str, ...]) -> None:
    directory = run_dir / "vhost"
    directory.mkdir()
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[0], str(directory / "vdpa-0"))
    with hung(directory):
        context = running(run_dir, *options)
        agent = context.__enter__()
        agent.wait_logged("daemon_not_started", reason=_silent(directory))
    agent.wait_answer(FOUR[0], str(directory / "vdpa-0"), timeout_s=SOON_S)
    context.__exit__(None, None, None)
