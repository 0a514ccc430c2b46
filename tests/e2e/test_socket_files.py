"""The sockets on disk are those that the daemon made, or none is served."""

import socket
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.mounts import mounted
from tests.processes import PATIENCE_S, AgentProcess, eventually, front_end, running, write_list


def _replaced(path: Path) -> str:
    return f"another process replaced the socket file {path}"


def test_swapped_sockets_are_not_served_and_both_are_made_again(four: AgentProcess) -> None:
    first, second = (four.directory / "vhost" / f"vdpa-{number}" for number in (0, 1))
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)
    four.wait_logged("device_failed", device=FOUR[0])
    four.wait_logged("device_failed", device=FOUR[1])
    for address, path in ((FOUR[0], first), (FOUR[1], second)):
        four.wait_answer(address, str(path))
        with front_end(str(path), "--rate=1000", "--interval=0.1") as front:
            front.wait_passing()
    assert four.ask(FOUR[2]) == str(four.directory / "vhost" / "vdpa-2")


def test_a_listener_of_another_process_in_a_sockets_place_is_not_served(four: AgentProcess) -> None:
    path = four.directory / "vhost" / "vdpa-0"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path.with_name("other")))
        other.listen()
        path.with_name("other").rename(path)
        four.wait_logged("device_failed", device=FOUR[0], reason=_replaced(path))
        eventually("not served", lambda: four.ask(FOUR[0]) == "")
        four.wait_logged("device_failed", device=FOUR[0], reason=f"socket {path} is in use: another process has it")
        assert path.is_socket()
    four.wait_answer(FOUR[0], str(path))


def test_a_link_in_place_of_the_directory_costs_nothing_beyond_it(run_dir: Path, options: tuple[str, ...]) -> None:
    beyond, link = run_dir / "beyond", run_dir / "vhost"
    beyond.mkdir()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(beyond / "vdpa-0"))
    link.symlink_to("beyond")
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, *options) as agent:
        remedy = "it is a symbolic link; put a directory there, or choose another one"
        agent.wait_logged("daemon_not_started", reason=f"--socket-dir {link}: {remedy}")
        assert [path.name for path in beyond.iterdir()] == ["vdpa-0"]
        link.unlink()
        agent.wait_answer(FOUR[0], str(link / "vdpa-0"))
        assert link.is_dir()
        assert not link.is_symlink()


def test_a_link_that_comes_later_is_refused_by_the_daemon_too(four: AgentProcess) -> None:
    link = four.directory / "vhost"
    beyond = link.with_name("beyond")
    link.rename(beyond)
    link.symlink_to("beyond")
    (beyond / "vdpa-0").unlink()
    four.wait_logged("device_failed", device=FOUR[0])
    eventually("the link is named", lambda: any("symbolic link" in line for line in four.log.raw))
    assert not (beyond / "vdpa-0").exists()
    link.unlink()
    beyond.rename(link)
    for number, address in enumerate(FOUR):
        four.wait_answer(address, str(link / f"vdpa-{number}"))


@pytest.mark.parametrize("what", ["the directory", "the run directory", "a socket"])
def test_a_path_that_something_was_mounted_over_is_not_served(four: AgentProcess, what: str) -> None:
    directory = four.directory / "vhost"
    path = directory / "vdpa-0"
    other = four.directory / "other"
    other.touch()
    before = path.stat().st_ino
    place, source = {
        "the directory": (directory, None),
        "the run directory": (four.directory, None),
        "a socket": (path, other),
    }[what]
    with mounted(place, source):
        four.wait_logged("device_failed", device=FOUR[0])
        assert four.ask(FOUR[0]) == "" or path.stat().st_ino != before
        if what == "the directory":
            four.wait_answer(FOUR[0], str(path))  # in the new one
            assert path.is_socket()
    four.wait_answer(FOUR[0], str(path))
    with front_end(str(path), "--rate=1000", "--interval=0.1") as front:
        front.wait_passing()


def _second(run_dir: Path, options: tuple[str, ...], socket_dir: Path, *under: str) -> AgentProcess:
    """An agent that has everything of its own, but the directory of the sockets."""
    other = run_dir / "other"
    other.mkdir()
    write_list(other / "pciList.dat", FOUR[2:])
    return AgentProcess(other, (*options, f"--socket-dir={socket_dir}"), {}, under)


@pytest.mark.parametrize("place", ["beside it", "in a container"])
def test_two_agents_with_lists_of_their_own_and_one_directory(
    run_dir: Path, options: tuple[str, ...], place: str
) -> None:
    directory = run_dir / "first" / "vhost"
    directory.parent.mkdir()
    write_list(directory.parent / "pciList.dat", FOUR[:2])
    with running(directory.parent, *options) as first:
        for number, address in enumerate(FOUR[:2]):
            first.wait_answer(address, str(directory / f"vdpa-{number}"))
        sockets = {path.name: path.stat().st_ino for path in directory.iterdir()}
        if place == "beside it":
            second = _second(run_dir, options, directory)
        else:
            mount = run_dir / "mount"
            mount.mkdir()
            script = f'hostname pod-b; mount --bind {directory} {mount}; exec "$@"'
            namespaces = ("unshare", "-m", "--propagation", "private", "--uts", "sh", "-ec", script, "sh")
            second = _second(run_dir, options, mount, *namespaces)
        try:
            assert second.process.wait(PATIENCE_S) == 100
        finally:
            second.kill()
        where = directory if place == "beside it" else run_dir / "mount"
        holder = f"process {first.process.pid} on {socket.gethostname()}"
        said = f"another agent, {holder}, holds {where}; stop it or choose another --socket-dir"
        assert said in second.log.raw[-1]
        assert {path.name: path.stat().st_ino for path in directory.iterdir()} == sockets
        assert [first.ask(address) for address in FOUR[:2]] == [str(directory / f"vdpa-{n}") for n in range(2)]
    assert list(directory.iterdir()) == []
