"""The agent's own death: SIGKILL at any moment leaves no daemon, loses no list and hinders no next start."""

import threading
from dataclasses import dataclass
from pathlib import Path
from random import Random
from stat import S_ISSOCK
from typing import Final

import pytest

from tests.e2e.conftest import FOUR
from tests.processes import AgentProcess, eventually, processes_of, running, write_atomically, write_list
from vdpa_agent.node.sockets import dead_sockets

KILLS: Final = 100
SERVED_EVERY: Final = 5
"""Every so many agents may serve the newest list before they are killed; the others die within LATEST_S."""
LATEST_S: Final = 0.6
SHRINKS_SOON: Final = "--drain-timeout=0.1"
"""A list that lost most of its devices counts only once it has stayed so for that long."""
POOL: Final = tuple(f"0000:82:{device:02x}.{function}" for device in range(2) for function in range(4))


@dataclass(frozen=True, slots=True)
class Version:
    """One list as it was written."""

    number: int
    addresses: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"# {self.number}\n" + "".join(f"{address}\n" for address in self.addresses)


class Writer:
    """Writes one list after the other to one place until it is told to end."""

    def __init__(self, place: Path, newest: Version, random: Random) -> None:
        self.newest = newest
        self._place = place
        self._random = random
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._random.uniform(0, 0.2)):
            addresses = self._random.sample(POOL, self._random.randint(1, len(POOL)))
            version = Version(self.newest.number + 1, tuple(addresses))
            write_atomically(self._place, version.text)
            self.newest = version

    def end(self) -> Version:
        """Returns the last list that it wrote, or the one it began with."""
        self._ended.set()
        self._thread.join()
        return self.newest


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [20])
def test_an_agent_killed_at_any_moment_leaves_no_daemon_and_loses_no_list(
    run_dir: Path, options: tuple[str, ...], seed: int
) -> None:
    random = Random(seed)
    options = (*options, SHRINKS_SOON)
    newest = Version(0, FOUR)
    write_atomically(run_dir / "pciList.dat", newest.text)
    for kill in range(KILLS):
        agent = AgentProcess(run_dir, options, {})
        try:
            if kill % SERVED_EVERY == 0:
                _wait_served(agent, newest)
            writer = Writer(_next_place(run_dir, random), newest, Random(random.random()))
            threading.Event().wait(random.uniform(0, LATEST_S))
            agent.process.kill()
            newest = writer.end()
        finally:
            agent.kill()
        eventually(f"kill {kill}: the daemon's end", lambda: not processes_of(run_dir))
        assert newest.text in _kept_lists(run_dir), f"kill {kill}: list {newest.number} is lost"
        assert not agent.log.named("not_json"), "".join(agent.log.raw)
    with running(run_dir, *options) as agent:
        _wait_served(agent, newest)
    _assert_tidy(run_dir)


def test_a_list_left_aside_by_a_killed_agent_is_older_than_one_that_came_since(
    run_dir: Path, options: tuple[str, ...]
) -> None:
    for place in ("socketList.dat", "pciList.dat"):
        write_list(run_dir / ".socketList.dat.retired", [FOUR[0]])
        write_list(run_dir / place, [FOUR[1]])
        with running(run_dir, *options) as agent:
            agent.wait_logged("device_ready")
            _wait_served(agent, Version(0, (FOUR[1],)))
        assert (run_dir / "pciList.dat").read_text() == f"{FOUR[1]}\n"


def test_a_list_left_aside_by_a_killed_agent_counts(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", [FOUR[0]])
    write_list(run_dir / ".socketList.dat.retired", [FOUR[1]])
    with running(run_dir, *options, SHRINKS_SOON) as agent:
        _wait_served(agent, Version(0, (FOUR[1],)))
    assert not (run_dir / ".socketList.dat.retired").exists()


def test_stale_sockets_go_also_where_their_devices_left_the_list(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    agent = AgentProcess(run_dir, options, {})
    try:
        agent.wait_logged("device_ready", count=4)
    finally:
        agent.kill()
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[0], str(run_dir / "vhost" / "vdpa-0"))
        eventually("only one socket", lambda: [path.name for path in (run_dir / "vhost").glob("vdpa-*")] == ["vdpa-0"])


def _next_place(run_dir: Path, random: Random) -> Path:
    """Where the next lists go: where one still waits to be taken a newer one replaces it, else anywhere."""
    waiting = [name for name in ("socketList.dat", ".socketList.dat.retired") if _holds_list(run_dir / name)]
    names = ["socketList.dat"] if waiting else ["socketList.dat", "pciList.dat"]
    return run_dir / random.choice(names)


def _kept_lists(run_dir: Path) -> list[str]:
    paths = [
        run_dir / name for name in ("pciList.dat", "socketList.dat", ".socketList.dat.retired", ".socketList.dat.vdpad")
    ]
    return [path.read_text() for path in paths if path.exists()]


def _holds_list(path: Path) -> bool:
    return path.exists() and path.read_text().startswith("#")


def _wait_served(agent: AgentProcess, version: Version) -> None:
    """Waits until exactly the devices of a list are answered, each with a socket of its own that listens."""

    def served() -> bool:
        answers = {address: agent.ask(address) for address in {*POOL, *FOUR}}
        sockets = [answers[address] for address in version.addresses]
        others = [answers[address] for address in answers if address not in version.addresses]
        return all(sockets) and not any(others) and len(set(sockets)) == len(sockets) and not dead_sockets(sockets)

    eventually(f"list {version.number}", served)


def _assert_tidy(run_dir: Path) -> None:
    left = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if not S_ISSOCK(path.lstat().st_mode)}
    of_devices = {name for name in left if name.startswith("devices/")}  # which pods may have mounted
    assert left - of_devices == {".pciList.last", "devices", "pciList.dat", "socketNames.json", "vhost"}
    assert of_devices <= {f"devices/{address}" for address in (*POOL, *FOUR)}
