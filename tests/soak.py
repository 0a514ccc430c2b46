"""A soak: random kills, hangs, stops, list changes and front ends; at the end all is mended and nothing leaked."""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

from tests.processes import (
    PATIENCE_S,
    AgentProcess,
    FrontEnd,
    built,
    eventually,
    is_alive,
    processes_of,
    write_atomically,
    write_list,
)
from vdpa_agent.node.sockets import dead_sockets

POOL: Final = tuple(f"0000:82:{device:02x}.{function}" for device in range(2) for function in range(8))
RESTING: Final = POOL[:8]
"""The list at each look: what processes hold is compared while they serve these devices."""

LOOK_EVERY_S: Final = 10.0
MENDED_S: Final = 60.0
"""After the last fault all is right again within this time; the pauses before restarts are most of it."""

KILLS_OF_ONE_AGENT: Final = 3
"""More would only make the soak wait: each death doubles the pause before the next start."""

AGENT_STOPS_UNTIL: Final = 0.6
"""The share of the time after which the agent is left alive, so that what it leaks can gather."""
DAEMON_KILLS_UNTIL: Final = 0.8

FRONT_ENDS_MAX: Final = 2
RSS_NOISE_MIB: Final = 12.0
SETTLES_S: Final = 10.0
"""How long agent and daemon may take at the end to be done with what they were asked."""

LEFT_BEHIND: Final = {
    ".pciList.last",
    "pciList.dat",
    "socketNames.json",
    "vdpa.sock.lock",
    "vhost",
    "vhost/.vdpa-agent.lock",
    "socketList.dat.refused",
}
"""What may stay where an agent has ended."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds: its descriptors by kind, and its memory."""

    descriptors: Counter[str]
    rss_mib: float


@dataclass(slots=True)
class Report:
    """What was done, and what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def table(self) -> str:
        rows = [*sorted(self.counts.items()), *self.figures.items(), ("problems", len(self.problems))]
        return "\n".join([f"{name:40} {value}" for name, value in rows] + self.problems)


class Soak:
    """One run in a directory of its own."""

    def __init__(self, directory: Path, seconds: float, seed: int) -> None:
        self.report = Report()
        self._directory = directory
        self._seconds = seconds
        self._random = Random(seed)
        self._began = time.monotonic()
        self._fronts: list[FrontEnd] = []
        self._daemons: set[int] = set()
        self._kills_of_agent = 0
        write_list(directory / "pciList.dat", RESTING)
        self._agent = self._start()
        self._at_rest = self._look()

    def run(self, tell: Callable[[str], None]) -> Report:
        """Does damage until the time is over, then looks at what is left."""
        actions: list[tuple[Callable[[], None], int]] = [
            (self._kill_daemon, 2),
            (self._hang_daemon, 2),
            (self._restart_agent, 2),
            (self._change_list, 8),
            (self._spoil_list, 2),
            (self._come_with_front_end, 4),
            (self._kill_front_end, 1),
        ]
        try:
            looked = time.monotonic()
            while self._share() < 1:
                action = self._random.choices([action for action, _ in actions], [weight for _, weight in actions])[0]
                action()
                self._pause(0.3)
                if time.monotonic() - looked > LOOK_EVERY_S:
                    self._look()
                    looked = time.monotonic()
                    tell(f"{looked - self._began:5.0f} s  {dict(self.report.counts)}")
            self._end()
        finally:
            self._clean_up()
        return self.report

    def _share(self) -> float:
        return (time.monotonic() - self._began) / self._seconds

    def _pause(self, most_s: float) -> None:
        threading.Event().wait(self._random.uniform(0, most_s))

    # ---- damage ------------------------------------------------------------------------------------------------------

    def _start(self) -> AgentProcess:
        vdpad = built("native/vdpad/vdpad", "native")
        arguments = ["--simulate", "--memory=none", f"--vdpad={vdpad}", "--drain-timeout=1", "--log-level=warning"]
        agent = AgentProcess(self._directory, arguments, {})
        self._kills_of_agent = 0
        return agent

    def _daemon(self) -> int | None:
        """The running daemon, None between two."""
        for pid, line in processes_of(self._directory).items():
            if pid != self._agent.process.pid and "--control-fd" in line and is_alive(pid):
                self._daemons.add(pid)
                return pid
        return None

    def _signal_daemon(self, number: signal.Signals) -> bool:
        pid = self._daemon()
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return True

    def _kill_daemon(self) -> None:
        if self._share() > DAEMON_KILLS_UNTIL or self._kills_of_agent >= KILLS_OF_ONE_AGENT:
            return
        if self._signal_daemon(signal.SIGKILL):
            self._kills_of_agent += 1
            self.report.counts["daemon killed"] += 1

    def _hang_daemon(self) -> None:
        pid = self._daemon()
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._pause(1.5)
            os.kill(pid, signal.SIGCONT)
            self.report.counts["daemon stopped and continued"] += 1

    def _restart_agent(self) -> None:
        if self._share() > AGENT_STOPS_UNTIL:
            return
        number = self._random.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGKILL])
        if number == signal.SIGTERM:
            self._agent.ask(POOL[0])  # before it can answer, SIGTERM ends it as it ends any program
        code = self._agent.stop(number)
        self._wrong_if(number == signal.SIGTERM and code, "exit code of the agent")
        self._judge_log()
        self.report.counts["agent stopped" if number == signal.SIGTERM else "agent killed"] += 1
        eventually("no process left", lambda: not self._agent_left(), timeout_s=1)
        self._agent = self._start()

    def _agent_left(self) -> bool:
        fronts = {front.process.pid for front in self._fronts}
        return bool(processes_of(self._directory).keys() - fronts)

    def _change_list(self) -> None:
        addresses = self._random.sample(POOL, self._random.randint(0, len(POOL)))
        content = "# a list\n" + "".join(f"{address}\n" for address in addresses)
        self._write(self._random.choice(["pciList.dat", "socketList.dat"]), content)
        self.report.counts["list changed"] += 1

    def _spoil_list(self) -> None:
        content = self._random.choice(["0000:82:00.2\nnonsense\n", "0000:82:00\n", "\0\0\0", "#\n" + "x" * 2_000_000])
        self._write(self._random.choice(["pciList.dat", "socketList.dat"]), content)
        self.report.counts["list spoilt"] += 1

    def _write(self, name: str, content: str) -> None:
        """Writes a list. One that was put in the older place must have been taken before a newer one goes elsewhere."""
        if name == "pciList.dat":
            self._wait_taken()
        write_atomically(self._directory / name, content)

    def _wait_taken(self) -> None:
        places = [self._directory / name for name in ("socketList.dat", ".socketList.dat.retired")]

        def taken() -> bool:
            for place in places:
                with suppress(FileNotFoundError):
                    if not place.read_text().startswith("["):
                        return False
            return True

        eventually("the older place is free", taken, timeout_s=MENDED_S)

    def _come_with_front_end(self) -> None:
        self._fronts = [front for front in self._fronts if not self._has_left(front)]
        sockets = sorted((self._directory / "vhost").glob("vdpa-*"))
        if not sockets or len(self._fronts) >= FRONT_ENDS_MAX:
            return
        seconds = self._random.uniform(0.5, 3)
        arguments = [f"--seconds={seconds:.1f}", "--rate=2000", "--connect-timeout=2"]
        self._fronts.append(FrontEnd(str(self._random.choice(sockets)), *arguments))
        self.report.counts["front end came"] += 1

    def _has_left(self, front: FrontEnd) -> bool:
        if front.process.poll() is None:
            return False
        front.lines.end()
        for done in front.lines.named("done"):
            self.report.counts["packets that came back"] += done["received"]
            self._wrong_if(done["corrupt"], "corrupt packets")
        return True

    def _kill_front_end(self) -> None:
        if self._fronts:
            self._fronts[-1].process.kill()
            self._fronts[-1].process.wait()
            self.report.counts["front end killed"] += 1

    # ---- looks -------------------------------------------------------------------------------------------------------

    def _look(self) -> dict[str, Held]:
        """Lets everything come to rest with the resting list, and returns what agent and daemon hold then."""
        self._end_fronts()
        self._write("pciList.dat", "".join(f"{address}\n" for address in RESTING))
        self._wait_served()
        self.report.counts["looks at rest, all served"] += 1
        daemon = self._daemon()
        assert daemon is not None
        return {"agent": _held(self._agent.process.pid), "vdpad": _held(daemon)}

    def _wait_served(self) -> None:
        def served() -> bool:
            if self._agent.process.poll() is not None:
                message = f"the agent ended: {''.join(self._agent.log.raw[-20:])}"
                raise AssertionError(message)
            answers = {address: self._agent.ask(address) for address in POOL}
            sockets = {answers[address] for address in RESTING}
            others = any(answers[address] for address in POOL if address not in RESTING)
            if len(list((self._directory / "vhost").glob("vdpa-*"))) > len(RESTING):
                return False  # the daemon still gives some of them up
            return not others and "" not in sockets and len(sockets) == len(RESTING) and not dead_sockets(sockets)

        eventually("all is served again", served, timeout_s=MENDED_S)

    def _look_when_done(self) -> dict[str, Held]:
        """What they hold when they are done with what was asked of them: a file may be open for a moment."""
        end_s = time.monotonic() + SETTLES_S
        while True:
            held = self._look()
            if time.monotonic() > end_s or not any(
                now.descriptors - self._at_rest[name].descriptors for name, now in held.items()
            ):
                return held
            time.sleep(0.1)

    def _end(self) -> None:
        """Judges what agent and daemon hold after it all, then what they leave when they end."""
        at_end = self._look_when_done()
        for name, now in at_end.items():
            before = self._at_rest[name]
            self.report.figures[f"{name} descriptors"] = f"{before.descriptors.total()} -> {now.descriptors.total()}"
            self.report.figures[f"{name} RSS MiB"] = f"{before.rss_mib:.1f} -> {now.rss_mib:.1f}"
            self._wrong_if(now.descriptors - before.descriptors, f"{name} leaked descriptors")
            self._wrong_if(max(0.0, now.rss_mib - before.rss_mib - RSS_NOISE_MIB), f"{name} grew beyond noise, MiB")
        self._wrong_if(_zombies_of(self._agent.process.pid), "zombies of the agent")
        sockets = sorted(path.name for path in (self._directory / "vhost").glob("vdpa-*"))
        self._wrong_if(sockets[len(RESTING) :], "sockets of no device")
        self._wrong_if(self._agent.stop(), "exit code of the agent")
        self._judge_log()
        self._wrong_if(processes_of(self._directory), "processes left")
        files = {str(path.relative_to(self._directory)) for path in self._directory.rglob("*")}
        own = {name for name in files if name == "devices" or (self._directory / name).is_dir()}  # pods may have them
        self._wrong_if(sorted(files - LEFT_BEHIND - own), "files left")
        traces = [Path(top) / "dpdk" / f"vdpad-{pid}" for top in ("/run", "/tmp") for pid in self._daemons]
        self._wrong_if([str(trace) for trace in traces if trace.exists()], "files of DPDK left")

    def _judge_log(self) -> None:
        log = self._agent.log
        self.report.problems += [f"not a log line: {event['line']}" for event in log.named("not_json")]
        self.report.problems += [f"a defect: {event}" for event in log.events if "exception" in event]

    def _wrong_if(self, found: object, what: str) -> None:
        if found:
            self.report.problems.append(f"{what}: {found}")

    def _end_fronts(self) -> None:
        for front in self._fronts:
            front.process.send_signal(signal.SIGTERM)
        for front in self._fronts:
            with suppress(Exception):
                front.process.wait(2 * PATIENCE_S)
            self._has_left(front)
        self._fronts = []

    def _clean_up(self) -> None:
        for front in self._fronts:
            front.process.kill()
            front.process.wait()
        self._signal_daemon(signal.SIGCONT)
        self._agent.kill()


def _held(pid: int) -> Held:
    kinds: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            name = str(descriptor.readlink()).partition(":[")[0]
            kinds[name.replace(f"/proc/{pid}/", "/proc/self/")] += 1
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return Held(kinds, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _zombies_of(parent: int) -> list[int]:
    zombies = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] == "Z" and int(fields[1]) == parent:
                zombies.append(int(stat.parent.name))
    return zombies


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the soak and prints its counts; 1 if something was wrong at the end."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to do damage (default 600)")
    parser.add_argument("--seed", type=int, default=1, help="of the random order (default 1)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        report = Soak(Path(directory), options.seconds, options.seed).run(_tell)
    sys.stdout.write(f"seed {options.seed}, {options.seconds:g} s\n{report.table()}\n")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
