"""What the machine can lack: the agent stays up, says what is wrong and what to do, and mends with the machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import PATIENCE_S, AgentProcess, eventually, running, write_list

MEND_S: Final = PATIENCE_S
"""After the mend everything is right again within this time."""

WITHOUT_DAC: Final = ("setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all")
"""root without the power to ignore permissions; anybody else has none to lose."""

MANY: Final = tuple(
    f"0000:{bus:02x}:{device:02x}.{function}" for bus in range(1, 9) for device in range(32) for function in range(8)
)
FLOOD_LINES: Final = 50
"""A fault that lasts must not fill the log."""

MEMORY_BYTES: Final = 16 * 2**20
"""A limit of address space below what the agent has and the daemon needs."""

NO_MORE: Final = 3
"""A limit of descriptors that lets a process keep what it has and open nothing: it is one of their numbers."""

TABLE_SIZE: Final = 1023
"""Sockets and connections that DPDK 22.11 can hold together."""


def _powerless() -> tuple[str, ...]:
    return WITHOUT_DAC if os.geteuid() == 0 else ()


def _socket(agent: AgentProcess, number: int) -> str:
    """Where the device with this number is; on a disk of its own where there is one."""
    disk = agent.directory / "disk"
    return str((disk if disk.exists() else agent.directory) / "vhost" / f"vdpa-{number}")


def _wait_mended(agent: AgentProcess) -> None:
    """The devices are served at the sockets that they had first, in time."""
    for number, address in enumerate(FOUR):
        agent.wait_answer(address, _socket(agent, number), timeout_s=MEND_S)


def _complaints(agent: AgentProcess, words: str) -> list[dict[str, Any]]:
    """The warnings and errors that hold these words."""
    return [
        event
        for event in list(agent.log.events)
        if event.get("level") in {"warning", "error"} and words in " ".join(map(str, event.values())).lower()
    ]


def _failures(agent: AgentProcess) -> int:
    """How often the first device, or the daemon for all of them, was tried in vain."""
    return len(agent.log.named("device_failed", device=FOUR[0])) + len(agent.log.named("daemon_not_started"))


def _wait_complaint(agent: AgentProcess, words: str, *, count: int = 1) -> dict[str, Any]:
    def seen() -> list[dict[str, Any]] | None:
        assert agent.process.poll() is None, "".join(agent.log.raw[-20:])
        found = _complaints(agent, words)
        return found if len(found) >= count else None

    return eventually(f"{count} complaints of {words!r}", seen)[-1]


def _assert_remedy(agent: AgentProcess, words: str) -> None:
    """Some complaint that holds the words says what to do, as a field or after a semicolon."""
    found = _complaints(agent, words)
    assert any("remedy" in event or ";" in str(event.get("reason")) for event in found), found


def _limit(pid: int, resource: str, soft: int | None, under: tuple[str, ...] = ()) -> None:
    """Changes a limit of a running process, None: to its hard limit; `under` is who it runs as."""
    hard = subprocess.run(
        [*under, "prlimit", f"--pid={pid}", f"--{resource}", "--noheadings", "--raw", "--output=HARD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    new = hard if soft is None else soft
    subprocess.run([*under, "prlimit", f"--pid={pid}", f"--{resource}={new}:"], check=True)


@contextmanager
def _disk(run_dir: Path) -> Iterator[Path]:
    """A small file system for lists and sockets; mounting needs root, if only that of a user namespace."""
    disk = run_dir / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "vdpa-agent-test", str(disk)], check=True)
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _on(disk: Path) -> tuple[str, ...]:
    """The options of an agent that has all but its own socket on a disk."""
    return (
        f"--socket-list={disk / 'socketList.dat'}",
        f"--pci-list={disk / 'pciList.dat'}",
        f"--socket-dir={disk / 'vhost'}",
    )


@contextmanager
def _prepared(disk: Path, name: str, addresses: tuple[str, ...]) -> Iterator[Path]:
    """A list that can come and go without taking or freeing space: it is held open."""
    path = disk / name
    write_list(path, addresses)
    with path.open():
        yield path


def _fill(directory: Path) -> Path:
    """Takes all space that is left."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue
    return filler


# ---- descriptors -----------------------------------------------------------------------------------------------------


def test_an_agent_without_descriptors(four: AgentProcess) -> None:
    pid = four.process.pid
    write_list(four.pci_list, FOUR[:3])
    four.wait_answer(FOUR[3], "")
    four.channel.close()
    _limit(pid, "nofile", NO_MORE)
    write_list(four.pci_list, FOUR)
    _wait_complaint(four, "too many open files")
    os.kill(four.daemon_pid(), signal.SIGKILL)
    four.wait_logged("daemon_ended")
    _wait_complaint(four, "too many open files", count=2)
    assert four.process.poll() is None
    _assert_remedy(four, "too many open files")
    _limit(pid, "nofile", None)
    _wait_served_by_log(four, 4)


def _wait_served_by_log(agent: AgentProcess, count: int) -> None:
    """Waits until the newest daemon has so many devices ready; asks nothing, since gRPC has its own pauses."""

    def ready() -> bool:
        assert agent.process.poll() is None, "".join(agent.log.raw[-20:])
        names = [event["event"] for event in list(agent.log.events)]
        last_start = len(names) - names[::-1].index("daemon_started")
        return names[last_start:].count("device_ready") >= count

    eventually("all devices ready", ready, timeout_s=MEND_S)


def test_an_agent_without_descriptors_answers_again(four: AgentProcess) -> None:
    pid = four.process.pid
    four.channel.close()
    _limit(pid, "nofile", NO_MORE)
    asked = subprocess.Popen(
        ["curl", "--silent", "--max-time", "20", "--unix-socket", str(four.listen), "http://localhost/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_complaint(four, "too many open files")
        _assert_remedy(four, "too many open files")
    finally:
        asked.kill()
        asked.wait()
    _limit(pid, "nofile", None)
    again = subprocess.run(
        [sys.executable, "-m", "vdpa_agent", "get", FOUR[0], f"--address={four.listen}", f"--timeout={MEND_S}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again
    assert len(_complaints(four, "too many open files")) < FLOOD_LINES


def test_a_daemon_without_descriptors_serves_what_it_can_and_the_limit_is_named(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    limit = 60
    addresses = MANY[:64]
    write_list(run_dir / "pciList.dat", addresses)
    with running(run_dir, *options, under=("prlimit", f"--nofile={limit}:{limit}")) as agent:
        failure = agent.wait_logged("device_failed")
        assert str(limit) in failure["reason"]
        assert agent.ask(addresses[0]) == _socket(agent, 0)
        served = [address for address in addresses if agent.ask(address)]
        assert len(served) > limit // 2
        assert len(agent.log.named("daemon_started")) == 1


# ---- space -----------------------------------------------------------------------------------------------------------


def test_no_space_for_the_mapping(run_dir: Path, options: tuple[str, ...]) -> None:
    with _disk(run_dir) as disk, _prepared(disk, "two", FOUR[:2]) as two, _prepared(disk, "four", FOUR) as four:
        two.rename(disk / "pciList.dat")
        with running(run_dir, *options, *_on(disk)) as agent:
            agent.wait_logged("device_ready", count=2)
            agent.wait_answer(FOUR[1], _socket(agent, 1))
            agent.wait_answer(FOUR[0], _socket(agent, 0))
            filler = _fill(disk)
            four.rename(disk / "pciList.dat")
            _wait_complaint(agent, "no space left on device")
            agent.wait_logged("device_ready", count=4)
            assert [agent.ask(address) for address in FOUR] == [_socket(agent, number) for number in range(4)]
            agent.wait_logged("mapping_not_written")
            filler.unlink()
            _wait_mended(agent)
            _assert_remedy(agent, "no space left on device")
            assert len(agent.log.named("daemon_started")) == 1


def test_names_that_had_no_space_are_kept_once_there_is_some(run_dir: Path, options: tuple[str, ...]) -> None:
    with (
        _disk(run_dir) as disk,
        _prepared(disk, "two", FOUR[:2]) as two,
        _prepared(disk, "three", FOUR[:3]) as three,
        _prepared(disk, "last", FOUR[1:3]) as last_two,
    ):
        two.rename(disk / "pciList.dat")
        with running(run_dir, *options, *_on(disk)) as agent:
            agent.wait_logged("device_ready", count=2)
            filler = _fill(disk)
            three.rename(disk / "pciList.dat")
            agent.wait_logged("names_not_written")
            agent.wait_logged("device_ready", device=FOUR[2])
            last_two.rename(disk / "pciList.dat")
            agent.wait_logged("device_removed", device=FOUR[0])
            filler.unlink()
            agent.wait_answer(FOUR[2], _socket(agent, 2), timeout_s=MEND_S)
            names = disk / "socketNames.json"
            eventually("the names on disk", lambda: "vdpa-2" in names.read_text(), timeout_s=MEND_S)
        with running(run_dir, *options, *_on(disk)) as agent:
            agent.wait_answer(FOUR[2], _socket(agent, 2))


@pytest.mark.parametrize("tries", [1, 4])
def test_a_read_only_file_system(run_dir: Path, options: tuple[str, ...], tries: int) -> None:
    with _disk(run_dir) as disk:
        write_list(disk / "pciList.dat", FOUR)
        with running(run_dir, *options, "--log-level=debug", *_on(disk)) as agent:
            agent.wait_logged("device_ready", count=4)
            for number, address in enumerate(FOUR):
                agent.wait_answer(address, _socket(agent, number))
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            agent.wait_logged("mapping_not_retired", reason="read-only file system; mount the directory writable")
            eventually("the tries", lambda: _failures(agent) >= tries)
            assert {agent.ask(address) for address in FOUR} == {""}
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            _wait_mended(agent)
            _assert_remedy(agent, "read-only file system")


# ---- permissions -----------------------------------------------------------------------------------------------------


@contextmanager
def _served_powerless(run_dir: Path, options: tuple[str, ...]) -> Iterator[AgentProcess]:
    write_list(run_dir / "pciList.dat", FOUR[:3])
    # At this level each try is logged, not only each new reason.
    with running(run_dir, *options, "--log-level=debug", under=_powerless()) as agent:
        agent.wait_logged("device_ready", count=3)
        agent.wait_answer(FOUR[2], _socket(agent, 2))
        yield agent


@pytest.mark.parametrize("tries", [1, 4])
def test_a_socket_directory_without_permission(run_dir: Path, options: tuple[str, ...], tries: int) -> None:
    """Four tries: also where the pauses between them have grown, the mend is seen in time."""
    with _served_powerless(run_dir, options) as agent:
        (run_dir / "vhost").chmod(0o555)
        write_list(agent.pci_list, FOUR)
        failure = agent.wait_logged("device_failed", device=FOUR[3], count=tries)
        assert "permission denied" in failure["reason"].lower()
        assert str(run_dir / "vhost") in failure["reason"]
        assert agent.ask(FOUR[0]) == _socket(agent, 0)
        (run_dir / "vhost").chmod(0o755)
        _wait_mended(agent)
        _assert_remedy(agent, "permission denied")
        assert len(agent.log.named("daemon_started")) == 1


def test_lists_without_permission(run_dir: Path, options: tuple[str, ...]) -> None:
    with _served_powerless(run_dir, options) as agent:
        new = run_dir / "new"
        write_list(new, FOUR)
        new.chmod(0)
        new.rename(agent.pci_list)
        refusal = agent.wait_logged("file_refused", file=str(agent.pci_list))
        assert refusal["reason"] == "permission denied; give the agent read permission"
        assert agent.ask(FOUR[0]) == _socket(agent, 0)
        agent.pci_list.chmod(0o644)
        _wait_mended(agent)


def test_an_unreadable_list_in_the_older_place_outlives_the_daemon(run_dir: Path, options: tuple[str, ...]) -> None:
    with _served_powerless(run_dir, options) as agent:
        new = run_dir / "new"
        write_list(new, FOUR)
        new.chmod(0)
        new.rename(agent.socket_list)
        agent.wait_logged("file_refused", file=str(agent.socket_list))
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        agent.wait_logged("daemon_started", count=2)
        places = [agent.socket_list, run_dir / ".socketList.dat.retired"]
        kept = [place for place in places if place.exists() and FOUR[3] in place.read_text()]
        assert kept, "the list is lost"
        kept[0].chmod(0o644)
        _wait_mended(agent)


def test_a_directory_of_the_lists_without_permission(run_dir: Path, options: tuple[str, ...]) -> None:
    with _served_powerless(run_dir, options) as agent:
        new = run_dir / "new"
        write_list(new, FOUR)
        new.rename(agent.pci_list)
        agent.wait_answer(FOUR[3], _socket(agent, 3))
        run_dir.chmod(0o555)
        try:
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            agent.wait_logged("mapping_not_retired")
            _wait_complaint(agent, "permission denied", count=2)
            _assert_remedy(agent, "permission denied")
            agent.wait_logged("daemon_started", count=2)
        finally:
            run_dir.chmod(0o755)
        _wait_mended(agent)


# ---- processes and memory --------------------------------------------------------------------------------------------


NOBODY: Final = 65534
AS_NOBODY: Final = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""Limits on processes do not hold for root; a user without files of its own may still read the interpreter."""


def _unprivileged(run_dir: Path) -> tuple[str, ...]:
    if os.geteuid() != 0:
        return ()
    os.chown(run_dir, NOBODY, NOBODY)
    return AS_NOBODY


@pytest.mark.parametrize("tries", [1, 4])
def test_a_daemon_that_cannot_be_spawned(run_dir: Path, options: tuple[str, ...], tries: int) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    under = _unprivileged(run_dir)
    with running(run_dir, *options, under=under) as agent:
        agent.wait_logged("device_ready", count=4)
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, _socket(agent, number))
        _limit(agent.process.pid, "nproc", 1, under)
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        failure = agent.wait_logged("daemon_not_started", count=tries)
        assert "resource temporarily unavailable" in failure["reason"]
        assert {agent.ask(address) for address in FOUR} == {""}
        _limit(agent.process.pid, "nproc", None, under)
        _wait_mended(agent)
        _assert_remedy(agent, "resource temporarily unavailable")


def test_a_daemon_without_memory(run_dir: Path, options: tuple[str, ...]) -> None:
    """The agent keeps what it has; a daemon that inherits the limit cannot even be loaded."""
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options) as agent:
        agent.wait_logged("device_ready", count=4)
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, _socket(agent, number))
        _limit(agent.process.pid, "as", MEMORY_BYTES)
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        agent.wait_logged("daemon_restart_waits", count=2)
        assert {agent.ask(address) for address in FOUR} == {""}
        _limit(agent.process.pid, "as", None)
        _wait_mended(agent)
        assert _complaints(agent, "memory") or _complaints(agent, "shared libraries")


# ---- the daemon's own table ------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_more_devices_than_the_daemon_can_hold(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", MANY[:1030])
    with running(run_dir, *options) as agent:
        eventually("a full table", lambda: len(agent.log.named("device_ready")) >= TABLE_SIZE, timeout_s=400)

        def excess() -> list[str] | None:
            unserved = [address for address in MANY[:1030] if not agent.ask(address)]
            return unserved if len(unserved) == 1030 - TABLE_SIZE else None

        # Which ones it is is a matter of who came first: on a loaded machine a device may fail once for other reasons.
        unserved = eventually("the excess", excess, timeout_s=60)
        for address in unserved:
            agent.wait_logged("device_failed", device=address)
            reasons = [event["reason"] for event in agent.log.named("device_failed", device=address)]
            assert any("1023" in reason for reason in reasons), reasons
        assert len(agent.log.named("daemon_started")) == 1
        assert agent.process.poll() is None
