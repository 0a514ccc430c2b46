"""top: the devices of a running agent in a terminal, with their packet rates, as they change."""

import argparse
import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from vdpa_agent.cli import client
from vdpa_agent.cli.output import print_line, table_lines, writing
from vdpa_agent.errors import ConfigError, NotReachable
from vdpa_agent.model.text import printable
from vdpa_agent.serve.pb import device_service_pb2 as pb

_HEAD: Final = (
    "ADDRESS",
    "STATE",
    "FRONT END",
    "QUEUE PAIRS",
    "RX PACKETS/S",
    "TX PACKETS/S",
    "SOCKET",
    "POD",
    "REASON",
)

_COUNTERS: Final = ("packets", "completed_descriptors")
"""What counts the packets of a queue: in the software device, and in mlx5 (DPDK's drivers/vdpa/mlx5/mlx5_vdpa.c)."""

_RECONNECT_S: Final = 1.0
"""How long after a lost or refused connection the next is tried."""

# ECMA-48 and xterm's private modes: the other screen, and the cursor.
_ENTER: Final = "\x1b[?1049h\x1b[?25l"
_LEAVE: Final = "\x1b[?25h\x1b[?1049l"
_HOME: Final = "\x1b[H"
_END_OF_LINE: Final = "\x1b[K"
_END_OF_SCREEN: Final = "\x1b[J"

_ENDS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Packets = tuple[int, int]
"""How many a front end received and sent so far."""

Rates = Mapping[str, tuple[float, float]]
"""Per address, how many a front end receives and sends a second."""


def top(options: argparse.Namespace) -> int:
    """Shows the devices until `q`, Ctrl-C or the loss of the terminal; or once."""
    live = Live(options.address, interval_s=options.interval, timeout_s=options.timeout)
    if options.once:
        with asyncio.Runner() as runner:
            runner.run(live.look_once())
        for line in live.lines():
            print_line(line)
        return 0
    if not sys.stdout.isatty():
        message = "standard output is no terminal, give --once"
        raise ConfigError(message)
    with _other_screen(), asyncio.Runner() as runner:
        runner.run(live.run())
    return 0


class Live:
    """What is shown, and what keeps it at what the agent says."""

    def __init__(self, path: Path, *, interval_s: float, timeout_s: float) -> None:
        """Asks nothing yet.

        Args:
            path: the agent's socket.
            interval_s: how often packets are counted, in seconds.
            timeout_s: how long each answer may take, in seconds.
        """
        self._path = path
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._status: pb.GetStatusResponse | None = None
        self._devices: dict[str, pb.Device] = {}
        self._rates: Rates = {}
        self._counted: tuple[float, Mapping[str, Packets]] = (0.0, {})
        self._problem = "asking the agent"
        self._ask_again = asyncio.Event()
        self._end = asyncio.Event()

    async def look_once(self) -> None:
        """Counts packets for one interval.

        Raises:
            NotReachable: no agent answers in time.
        """
        await self._ask()
        await asyncio.sleep(self._interval_s)
        self._devices = {device.pci_address: device for device in await self._ask()}

    async def run(self) -> None:
        """Follows the agent and draws on the terminal until it is asked to end, or the terminal is lost."""
        loop = asyncio.get_running_loop()
        for number in _ENDS:
            loop.add_signal_handler(number, self._end.set)
        loop.add_signal_handler(signal.SIGWINCH, self._draw)
        if sys.stdin.isatty():
            loop.add_reader(sys.stdin.fileno(), self._key)
        async with asyncio.TaskGroup() as tasks:
            following = [tasks.create_task(self._follow()), tasks.create_task(self._count())]
            await self._end.wait()
            for task in following:
                task.cancel()

    def lines(self) -> list[str]:
        """What is to be seen now, a line each, fit to print."""
        rows = [self._row(device) for device in self._devices.values()]
        return [*map(printable, (_headline(self._status), *self._problems())), "", *table_lines(_HEAD, rows)]

    async def _follow(self) -> None:
        """Has each change of a device drawn at once; after a loss the agent is looked for again."""
        while True:
            with suppress(NotReachable):
                await client.watch_devices(self._path, self._changed, timeout_s=self._timeout_s)
            self._devices = {}
            self._ask_again.set()
            await asyncio.sleep(_RECONNECT_S)

    def _changed(self, response: pb.WatchDevicesResponse) -> None:
        if response.initial:
            self._devices = {}
            self._ask_again.set()
        self._devices |= {device.pci_address: device for device in response.devices}
        for address in response.removed_pci_addresses:
            self._devices.pop(address, None)
        self._draw()

    async def _count(self) -> None:
        """Asks for counters and status each interval, and at once when a connection came or went."""
        while True:
            try:
                await self._ask()
            except NotReachable as error:
                self._problem, self._status, self._rates = str(error), None, {}
            self._draw()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._ask_again.wait()
            self._ask_again.clear()

    async def _ask(self) -> list[pb.Device]:
        self._status = await client.ask_status(self._path, timeout_s=self._timeout_s)
        devices = await client.ask_devices(self._path, timeout_s=self._timeout_s, statistics=True)
        packets = {device.pci_address: counts for device in devices if (counts := _packets(device)) is not None}
        counted = asyncio.get_running_loop().time(), packets
        self._rates = rates(self._counted, counted)
        self._counted = counted
        self._problem = ""
        return devices

    def _problems(self) -> list[str]:
        return [self._problem] if self._problem else list(self._status.not_ready_reasons[:1] if self._status else ())

    def _row(self, device: pb.Device) -> tuple[str, ...]:
        rates = self._rates.get(device.pci_address)
        return (
            device.pci_address,
            client.word("DeviceState", device.state),
            client.front_end_word(device),
            client.queue_pairs(device),
            *(f"{rate:.0f}" for rate in rates or ()),
            *(() if rates else ("", "")),
            device.socket_path,
            client.owner_words(device),
            device.reason,
        )

    def _draw(self) -> None:
        try:
            columns, rows = os.get_terminal_size(sys.stdout.fileno())
            _write(_screen(self.lines(), columns, rows))
        except OSError:
            self._end.set()

    def _key(self) -> None:
        try:
            keys = os.read(sys.stdin.fileno(), 64)
        except OSError:
            keys = b""
        # Nothing to read means that the terminal is gone.
        if not keys or b"q" in keys:
            self._end.set()


def _headline(status: pb.GetStatusResponse | None) -> str:
    if status is None:
        return "vdpa-agent"
    daemon = status.daemon
    told = [
        f"vdpa-agent {status.version}",
        client.word("Role", status.role),
        "ready" if status.ready else "not ready",
        f"up {status.uptime.ToTimedelta().total_seconds():.0f} s",
        f"daemon {client.daemon_words(status)}",
        f"{daemon.restarts} restarts",
    ]
    return ", ".join(told)


def _packets(device: pb.Device) -> Packets | None:
    """The packets of all queues, None if none are counted; of pair n, queue 2n receives and 2n+1 transmits."""
    counted = [0, 0]
    counts = False
    for queue in device.statistics:
        for name in _COUNTERS:
            if name in queue.counters:
                counted[queue.queue % 2] += queue.counters[name]
                counts = True
    return (counted[0], counted[1]) if counts else None


def rates(before: tuple[float, Mapping[str, Packets]], now: tuple[float, Mapping[str, Packets]]) -> Rates:
    """The packets a second between two counts; nothing where a counter began anew.

    Args:
        before: when the earlier count was, in seconds, and what it counted.
        now: likewise the later one.
    """
    seconds = now[0] - before[0]
    found = {}
    for address, (received, sent) in now[1].items():
        earlier = before[1].get(address)
        if seconds > 0 and earlier is not None and received >= earlier[0] and sent >= earlier[1]:
            found[address] = (received - earlier[0]) / seconds, (sent - earlier[1]) / seconds
    return found


def _screen(lines: list[str], columns: int, rows: int) -> str:
    """As much of the lines as there is room for; the last one tells what is left out."""
    if len(lines) > rows:
        lines = [*lines[: rows - 1], f"{len(lines) - rows + 1} more"]
    return _HOME + "\r\n".join(f"{line[:columns]}{_END_OF_LINE}" for line in lines) + _END_OF_SCREEN


@contextmanager
def _other_screen() -> Iterator[None]:
    """Takes the terminal over, and gives it back as it was, if it is still there."""
    attributes = _quiet_keys()
    try:
        with writing():
            _write(_ENTER)
        yield
    finally:
        with suppress(OSError):
            _write(_LEAVE)
        if attributes is not None:
            with suppress(termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, attributes)


def _quiet_keys() -> list[Any] | None:
    """Has keys read one by one without an echo, Ctrl-Z included; returns how it was, None if there are no keys."""
    if not sys.stdin.isatty():
        return None
    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[6][termios.VSUSP] = b"\0"
    termios.tcsetattr(sys.stdin, termios.TCSAFLUSH, changed)
    return before


def _write(text: str) -> None:
    # Not by sys.stdout: what it could not write to a terminal that is gone, it would write again at the end.
    left = text.encode()
    while left:
        left = left[os.write(sys.stdout.fileno(), left) :]
