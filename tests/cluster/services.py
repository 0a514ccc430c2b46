"""The services of a node: etcd, containerd, the API server, controllers, scheduler, kubelet."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import yaml

from tests.cluster.credentials import Credentials
from tests.processes import ROOT, built, eventually

ADDRESS: Final = "10.44.0.1"
"""The node's, on a bridge in its own network namespace."""
NAME: Final = "node1"
BIN: Final = ROOT / "build/cluster/bin"
_SERVICE_NET: Final = "10.46.0.0/24"
_STORE: Final = "http://127.0.0.1:2379"
_ENVIRONMENT: Final = (f"PATH={BIN}:/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/run")
_START_S: Final = 120.0


def enter(node: int) -> list[str]:
    """The command that runs what follows it on the node with this process 1."""
    return ["nsenter", f"--target={node}", "--mount", "--net", "--pid", "--uts", "--ipc", "--wd=/", "--"]


def processes_of(node: int) -> list[int]:
    """All processes of the node with this process 1; containers have PID namespaces of their own, so theirs are not."""

    def lives_in(pid: int) -> str:
        try:
            return str(Path(f"/proc/{pid}/ns/pid").readlink())
        except OSError:
            return ""

    own = lives_in(node)
    there = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in there if own and lives_in(pid) == own]


class Services:
    """Starts and stops them; each writes to a log of its own on the node's disk."""

    def __init__(
        self, node: int, disk: Path, credentials: Credentials, cgroup: str, spawn: Callable[[list[str], Path], object]
    ) -> None:
        """Takes the node's process 1, its disk, who its services are, its pods' cgroup, and what starts a command."""
        self._node = node
        self._spawn = spawn
        self._enter = enter(node)
        self._disk = disk
        self._credentials = credentials
        self._cgroup = cgroup

    def start_all(self) -> None:
        """Starts all; returns when the API server is ready."""
        for name in ("etcd", "containerd", "kube-apiserver"):
            self.start(name)
        self._wait_for("the API server", lambda: self._get("/readyz") == "ok")
        for name in ("kube-controller-manager", "kube-scheduler", "kubelet"):
            self.start(name)

    def start(self, name: str) -> None:
        """Starts one of them."""
        program = built(f"cluster/bin/{name}", "cluster-tools")
        command = [*self._enter, "env", *_ENVIRONMENT, str(program), *self._arguments(name)]
        self._spawn(command, self._disk / "log" / f"{name}.log")

    def stop(self, name: str) -> None:
        """Asks one of them to end, and waits until it has."""
        running = self.pids(name)
        assert running, f"{name} is not running"
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        eventually(f"end of {name}", lambda: not self.pids(name))

    def pids(self, name: str) -> list[int]:
        """Its processes, as the machine numbers them."""
        program = str(BIN / name).encode()
        return [pid for pid in processes_of(self._node) if _command(pid)[0] == program]

    def _get(self, path: str) -> str:
        command = ("curl", "--silent", "--max-time", "5", "--cacert", str(self._credentials.directory / "ca.crt"))
        asked = subprocess.run(
            [*self._enter, *command, f"https://{ADDRESS}{path}"], check=False, capture_output=True, text=True
        )
        return asked.stdout

    def _wait_for(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            eventually(what, condition, timeout_s=_START_S)
        except AssertionError as error:
            log = (self._disk / "log/kube-apiserver.log").read_text(errors="replace")[-2000:]
            message = f"{error}; its log ends with:\n{log}"
            raise AssertionError(message) from error

    def _arguments(self, name: str) -> list[str]:
        keys = self._credentials.directory
        with_token = {"kube-controller-manager": "controllers", "kube-scheduler": "scheduler", "kubelet": "kubelet"}
        config = []
        if name in with_token:
            path = keys / f"{with_token[name]}.conf"
            path.write_text(self._credentials.kubeconfig(with_token[name], f"https://{ADDRESS}"))
            config = [f"--kubeconfig={path}"]
        match name:
            case "etcd":
                return [
                    "--data-dir=/var/lib/etcd",
                    f"--listen-client-urls={_STORE}",
                    f"--advertise-client-urls={_STORE}",
                    "--listen-peer-urls=http://127.0.0.1:2380",
                    "--unsafe-no-fsync",
                    "--log-level=warn",
                    "--initial-advertise-peer-urls=http://127.0.0.1:2380",
                    "--initial-cluster=default=http://127.0.0.1:2380",
                ]
            case "containerd":
                return [f"--config={self._write_runtime()}"]
            case "kube-apiserver":
                return [
                    f"--etcd-servers={_STORE}",
                    f"--advertise-address={ADDRESS}",
                    "--secure-port=443",  # the service's port too: no kube-proxy is needed
                    f"--tls-cert-file={keys}/api.crt",
                    f"--tls-private-key-file={keys}/api.key",
                    f"--client-ca-file={keys}/ca.crt",
                    f"--token-auth-file={keys}/tokens.csv",
                    f"--kubelet-client-certificate={keys}/api-client.crt",
                    f"--kubelet-client-key={keys}/api-client.key",
                    "--kubelet-preferred-address-types=InternalIP",
                    f"--service-account-key-file={keys}/accounts.key",
                    f"--service-account-signing-key-file={keys}/accounts.key",
                    "--service-account-issuer=https://kubernetes.default.svc",
                    f"--service-cluster-ip-range={_SERVICE_NET}",
                    "--authorization-mode=Node,RBAC",
                    "--enable-admission-plugins=NodeRestriction",
                    "--allow-privileged=true",
                    "--endpoint-reconciler-type=none",
                ]
            case "kube-controller-manager":
                return [
                    *config,
                    "--use-service-account-credentials",
                    f"--service-account-private-key-file={keys}/accounts.key",
                    f"--root-ca-file={keys}/ca.crt",
                    "--leader-elect=false",
                    "--bind-address=127.0.0.1",
                ]
            case "kube-scheduler":
                return [*config, "--leader-elect=false", "--bind-address=127.0.0.1"]
            case _:
                return [
                    *config,
                    f"--config={self._write_kubelet()}",
                    f"--hostname-override={NAME}",
                    f"--node-ip={ADDRESS}",
                ]

    def _write_runtime(self) -> Path:
        path = self._disk / "containerd.toml"
        path.write_text((ROOT / "tests/cluster/containerd.toml").read_text())
        return path

    def _write_kubelet(self) -> Path:
        path = self._disk / "kubelet.yaml"
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": ADDRESS,
            "healthzBindAddress": "127.0.0.1",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._credentials.directory / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "failCgroupV1": False,  # such machines are still about
            "failSwapOn": False,
            "makeIPTablesUtilChains": False,
            "resolvConf": "",
            "volumePluginDir": "/run/kubelet-plugins",
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "5s",
        }
        path.write_text(yaml.safe_dump(settings))
        return path


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return [b""]
