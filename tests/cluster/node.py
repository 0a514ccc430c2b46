"""A node: its namespaces, its disk, its services, and that nothing of it stays."""

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tests.cluster.credentials import Credentials
from tests.cluster.services import ADDRESS, BIN, Services, enter
from tests.processes import PATIENCE_S, ROOT, eventually

CGROUPS: Final = Path("/sys/fs/cgroup")
ABOVE: Final = ROOT / "build/cluster"
"""Where the disks of nodes are."""
_PREFIX: Final = "node-"
_LOCK: Final = "lock"
_NAMESPACES: Final = ("--mount", "--net", "--pid", "--uts", "--ipc")
_NEEDED: Final = ("unshare", "nsenter", "setpriv", "ip", "openssl", "runc", "/usr/lib/cni/bridge")
_SHOWN_LINES: Final = 30


class Lacking(Exception):
    """The machine lacks a right or a program that a node needs; the message names all that is missing."""


def check_machine() -> None:
    """Looks for what a node needs of the machine.

    Raises:
        Lacking: something is missing.
    """
    missing = [f"{name}: install it by `make cluster-tools`" for name in _NEEDED if not shutil.which(name)]
    if os.geteuid() != 0:
        missing.append("root: run it as root")
    else:
        tried = subprocess.run(
            ["unshare", *_NAMESPACES, "--fork", "mount", "-t", "tmpfs", "tmpfs", "/run"],
            check=False,
            capture_output=True,
            text=True,
        )
        if tried.returncode != 0:
            missing.append(f"namespaces with mounts of their own (CAP_SYS_ADMIN): {tried.stderr.strip()}")
        missing += [
            f"cgroups below {hierarchy} (read-only in an unprivileged container)"
            for hierarchy in hierarchies()
            if not os.access(hierarchy, os.W_OK)
        ]
    if missing:
        raise Lacking("a node cannot be started here, this is missing: " + "; ".join(missing))


def hierarchies() -> list[Path]:
    """The roots of the machine's cgroups: each controller's of version 1, or the one of version 2."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    return sorted(path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists())


@contextlib.contextmanager
def temporary(above: Path = ABOVE) -> Iterator["Node"]:
    """A node for as long as the context lasts, of which nothing stays; first, what killed runs left is swept away."""
    with (above / ".sweep").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        sweep(above)
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=above))
        lock = (directory / _LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        node = Node(directory / "disk")
        try:
            yield node
        finally:
            node.remove()
            shutil.rmtree(directory)


def sweep(above: Path) -> None:
    """Removes the temporary nodes whose run is no more: the kernel lets go of a lock when its process has ended."""
    for path in above.glob(f"{_PREFIX}*/{_LOCK}"):
        with path.open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            Node(path.parent / "disk").remove()
            shutil.rmtree(path.parent)


class Node:
    """A node whose disk is a directory. It is off until `boot`, and off again after `cut_power`."""

    def __init__(self, disk: Path, *, outlives: bool = False) -> None:
        """Names a node.

        Args:
            disk: what outlives a power cut; made if it is not there.
            outlives: whether the node goes on when this process ends.
        """
        self.disk = disk
        self.kubeconfig = disk / "admin.conf"
        self._outlives = outlives
        self._started: list[subprocess.Popen[bytes]] = []
        self._pid_file = disk / "init.pid"
        self._cgroup = self._keep("cgroup", lambda: f"vdpa-node-{secrets.token_hex(4)}")

    @property
    def pid(self) -> int | None:
        """Its process 1, as the machine numbers it; None while the node is off."""
        try:
            pid = int(self._pid_file.read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        return pid if b"pause" in command or b"init" in command else None

    def boot(self) -> None:
        """Starts the node and its services; returns when the API server is ready.

        Raises:
            Lacking: the machine lacks something that a node needs.
        """
        assert self.pid is None, f"the node is on already: process {self.pid}"
        check_machine()
        credentials = Credentials.below(self.disk / "pki")
        for hierarchy in hierarchies():
            (hierarchy / self._cgroup).mkdir(exist_ok=True)
        # Where the test is killed, the node goes with it.
        bound = () if self._outlives else ("setpriv", "--pdeathsig=KILL")
        command = (*bound, "unshare", *_NAMESPACES, "--fork", "--kill-child", "--propagation=private")
        init = self._spawn(
            [*command, str(ROOT / "tests/cluster/init"), str(self.disk)], self.disk / "init.log", stdout=subprocess.PIPE
        )
        assert init.stdout is not None
        with init.stdout:
            said = init.stdout.readline()
        assert said == b"ready\n", f"the node did not start: {(self.disk / 'init.log').read_text()[-2000:]}"
        children = Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()
        self._pid_file.write_text(children[0])
        self._services(credentials).start_all()
        self._relay(credentials)

    def cut_power(self) -> None:
        """Kills all that runs on the node at once, and waits until it is gone; its disk stays."""
        pid = self.pid
        if pid is not None:
            # The kernel ends all others of its PID namespace before it is gone itself.
            os.kill(pid, signal.SIGKILL)
            eventually("end of the node", lambda: self.pid is None)
        self._pid_file.unlink(missing_ok=True)
        for process in self._started:
            process.wait(PATIENCE_S)
        self._started.clear()
        self._remove_cgroups()
        eventually("end of what entered the node", lambda: not self.leftovers())

    def remove(self) -> None:
        """Ends the node, and removes its disk."""
        self.cut_power()
        shutil.rmtree(self.disk)

    def restart_kubelet(self) -> None:
        """Ends the kubelet as its service manager would, and starts it again; pods go on meanwhile."""
        services = self._services(Credentials.below(self.disk / "pki"))
        services.stop("kubelet")
        services.start("kubelet")

    def run(self, *command: str, stdin: str | None = None, expect: int = 0) -> str:
        """Runs a command on the node; returns its standard output."""
        ended = subprocess.run(
            [*enter(self._on()), *command],
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=PATIENCE_S * 2,
        )
        assert ended.returncode == expect, f"{' '.join(command)}: {ended.returncode}: {ended.stderr}{ended.stdout}"
        return ended.stdout

    def path(self, inside: str) -> Path:
        """Where a path of the node can be read from outside, while it is on."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def import_image(self, archive: Path) -> None:
        """Has the node's runtime take the images of an archive, unless its disk has them already."""
        image = archive.with_suffix(".tar.id").read_text()
        kept = self.disk / f"{archive.name}.id"
        if not kept.exists() or kept.read_text() != image:
            self.run(str(BIN / "ctr"), "--namespace=k8s.io", "images", "import", str(archive))
            kept.write_text(image)

    def log_tail(self, service: str, lines: int = _SHOWN_LINES) -> str:
        """The end of a service's log."""
        path = self.disk / "log" / f"{service}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def leftovers(self) -> list[str]:
        """What of the node is still on the machine, its disk apart: processes, cgroups, mounts."""
        found = [str(path) for hierarchy in hierarchies() for path in hierarchy.glob(f"{self._cgroup}*")]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [line for line in mounts if str(self.disk) in line]
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if str(self.disk).encode() in (process / "cmdline").read_bytes() and process.name != str(os.getpid()):
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def _services(self, credentials: Credentials) -> Services:
        return Services(self._on(), self.disk, credentials, self._cgroup, self._spawn)

    def _on(self) -> int:
        pid = self.pid
        assert pid is not None, "the node is off"
        return pid

    def _spawn(
        self, command: list[str], log: Path, *, stdout: int | None = None, descriptors: tuple[int, ...] = ()
    ) -> "subprocess.Popen[bytes]":
        """Starts what goes on in the background until the node ends."""
        with log.open("ab") as file:
            started = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file if stdout is None else stdout,
                stderr=file,
                pass_fds=descriptors,
                start_new_session=True,
            )
        self._started.append(started)
        return started

    def _relay(self, credentials: Credentials) -> None:
        """Makes the API server reachable by a port of the machine's loopback, and writes who may use it."""
        listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        with listening:
            port = listening.getsockname()[1]
            self._spawn(
                [
                    *("nsenter", f"--target={self.pid}", "--net", "--pid", "--"),
                    *(sys.executable, str(ROOT / "tests/cluster/relay.py"), str(listening.fileno()), ADDRESS, "443"),
                ],
                self.disk / "relay.log",
                descriptors=(listening.fileno(),),
            )
        self.kubeconfig.write_text(credentials.kubeconfig("admin", f"https://127.0.0.1:{port}"))
        self.kubeconfig.chmod(0o600)

    def _remove_cgroups(self) -> None:
        """Removes the node's cgroups; the kernel frees those of processes that just ended a little later."""

        def gone() -> bool:
            left = False
            for hierarchy in hierarchies():
                for directory, _, _ in os.walk(hierarchy / self._cgroup, topdown=False):
                    try:
                        Path(directory).rmdir()
                    except OSError:
                        left = True
            return not left

        eventually("end of the node's cgroups", gone)

    def _keep(self, name: str, make: Callable[[], str]) -> str:
        """A word that the node keeps on its disk."""
        self.disk.mkdir(parents=True, exist_ok=True)
        path = self.disk / name
        if not path.exists():
            path.write_text(make())
        return path.read_text()
