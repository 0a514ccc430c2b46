"""Measures what Kubernetes' users wait for, on a real node: install, restarts of agent, kubelet and node, allocations.

usage, as root, after `make cluster-tools`: python -m bench.cluster [--rounds N]
"""

import argparse
import json
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.cluster.cluster import NAMESPACE, Cluster
from tests.cluster.node import temporary
from tests.cluster.pods import NET, limited, lines, received, wait_more
from tests.cluster.services import NAME
from tests.kubelet.fake_kubelet import kubelet
from tests.processes import built, eventually, running

POOLS: Final = [{"resourceName": "net", "vhostMode": "client", "simulated": 2}]
VALUES: Final = (f"--set-json=resourceConfig={json.dumps({'resourceList': POOLS})}", "--set=config.vhostMode=client")
RATE: Final = 1000
SETTLE_S: Final = 3.0
"""How long a pod has been Ready before it is deleted: a kubelet puts off for a second or two what comes sooner."""

PEER: Final = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "peer"},
    "spec": {
        "selector": {"matchLabels": {"app": "peer"}},
        "template": {
            "metadata": {"labels": {"app": "peer"}},
            "spec": {"containers": [{"name": "pause", "image": "localhost/pause:1", "imagePullPolicy": "Never"}]},
        },
    },
}
LONG_S: Final = 300.0


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="how often the agent's pod is deleted")
    rounds = parser.parse_args().rounds
    with temporary() as node:
        cluster = Cluster(node)
        cluster.boot()
        _on_the_node(cluster, rounds)
    _allocations(64)
    _memory()


def _on_the_node(cluster: Cluster, rounds: int) -> None:
    began = time.monotonic()
    cluster.install(*VALUES)
    _row("helm install to Ready, s", [time.monotonic() - began])
    _until_allocatable(cluster)
    _row("helm install to allocatable, s", [time.monotonic() - began])
    cluster.apply(limited("front", f"--rate={RATE}", "--interval=0.1"))
    applied = time.monotonic()
    eventually("packets", lambda: _passes(cluster), timeout_s=LONG_S)
    _row("pod applied to packets, s", [time.monotonic() - applied])

    ready, peers, outages = [], [], []
    cluster.apply(PEER)
    cluster.wait("daemonset/peer", "jsonpath={.status.numberReady}=1")
    for _ in range(rounds):
        time.sleep(SETTLE_S)
        began = time.monotonic()
        cluster.replace_agent()
        ready.append(time.monotonic() - began)
        wait_more(cluster, "front", "default")
        peers.append(_replace_peer(cluster))
    _row(f"agent's pod deleted to Ready, s, of {rounds}", ready)
    _row("the same of a pod that does nothing, s", peers)
    cluster.kubectl("delete", "daemonset", "peer")

    for level in ("debug", "info", "debug", "info", "debug"):
        before = len(_recoveries(cluster))
        cluster.install(*VALUES, f"--set=config.logLevel={level}", wait=False)
        cluster.kubectl("rollout", "status", "daemonset/vdpa-agent", f"--namespace={NAMESPACE}", "--timeout=120s")
        eventually("packets again", lambda n=before: len(_recoveries(cluster)) > n, timeout_s=LONG_S)  # type: ignore[misc]
        outages.append(_recoveries(cluster)[-1])
    _row("rolling update under a pod: no packets for, s, of 5", outages)

    agent = cluster.agent()
    registered = []
    for _ in range(3):
        before = _registrations(cluster, agent)
        began = time.monotonic()
        cluster.node.restart_kubelet()
        eventually("a registration", lambda n=before: _registrations(cluster, agent) > n, timeout_s=LONG_S)  # type: ignore[misc]
        registered.append(time.monotonic() - began)
    _row("kubelet's restart to registered, its own start included, s, of 3", registered)

    cluster.power_cut()
    began = time.monotonic()
    cluster.boot()
    _row("power on to a ready node, s", [time.monotonic() - began])
    cluster.wait_served()
    _row("power on to agent Ready, s", [time.monotonic() - began])
    _until_allocatable(cluster)
    _row("power on to allocatable, s", [time.monotonic() - began])


def _replace_peer(cluster: Cluster) -> float:
    """How long a pod takes whose program does nothing and is ready at once: what Kubernetes itself takes."""
    (old,) = cluster.pods("app=peer")
    began = time.monotonic()
    cluster.kubectl("delete", "pod", old["metadata"]["name"])

    def ready() -> bool:
        conditions = [c for pod in cluster.pods("app=peer") for c in pod["status"].get("conditions", [])]
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    eventually("the peer", ready, timeout_s=LONG_S)
    return time.monotonic() - began


def _until_allocatable(cluster: Cluster) -> None:
    def there() -> bool:
        return bool(cluster.get("node", NAME)["status"]["allocatable"].get(NET) == "2")

    eventually("allocatable", there, timeout_s=LONG_S)


def _passes(cluster: Cluster) -> bool:
    with suppress(AssertionError):
        return received(cluster, "front", "default") > 0
    return False


def _recoveries(cluster: Cluster) -> list[float]:
    """How long each outage of the front end was, in seconds, by its own clock."""
    said = lines(cluster, "front", "default")
    return [line["recovered_after_ms"] / 1000 for line in said if line["event"] == "recovered"]


def _registrations(cluster: Cluster, agent: str) -> int:
    """By the log on the node's disk: the API server cannot ask a kubelet that is not there."""
    logs = cluster.node.path("/var/log/pods").glob(f"{NAMESPACE}_{agent}_*/vdpa-agent/*.log")
    return sum(log.read_text().count('"kubelet_registered"') for log in logs)


def _allocations(devices: int, rounds: int = 5) -> None:
    """From Allocate's call to its answer, of a kubelet beside the agent."""
    took: list[float] = []
    with (
        tempfile.TemporaryDirectory() as name,
        kubelet(Path(name) / "kubelet") as node,
        running(Path(name), *_options(Path(name), devices), f"--kubelet-dir={node.root}"),
    ):
        eventually("a plugin", lambda: node.plugins.get(NET))
        plugin = node.plugins[NET]
        eventually("its list", lambda: plugin.lists and len(plugin.lists[-1]) == devices)
        addresses = list(plugin.lists[-1])
        plugin.allocate(addresses[-1])
        for _ in range(rounds):
            for address in addresses:
                began = time.monotonic()
                plugin.allocate(address)
                took.append(time.monotonic() - began)
    _row(f"Allocate with {devices} VFs, ms, of {len(took)}", [s * 1000 for s in took])


def _memory() -> None:
    with tempfile.TemporaryDirectory() as name, kubelet(Path(name) / "kubelet") as node:
        kib = []
        for arguments in ((), (f"--kubelet-dir={node.root}",)):
            directory = Path(name) / str(len(arguments))
            directory.mkdir()
            with running(directory, *_options(directory, 2), *arguments) as agent:
                agent.wait_logged("kubelet_registered" if arguments else "device_ready")
                time.sleep(5)
                kib.append(agent.rss_kib())
        _row("RSS of the agent without the plugin, MiB", [kib[0] / 1024])
        _row("RSS of the agent with it, MiB", [kib[1] / 1024])


def _options(directory: Path, devices: int) -> tuple[str, ...]:
    config = {"resourceList": [{"resourceName": "net", "vhostMode": "client", "simulated": devices}]}
    (directory / "config.json").write_text(json.dumps(config))
    vdpad = built("native/vdpad/vdpad", "native")
    return (
        "--simulate",
        "--memory=none",
        "--hold-timeout=8",
        f"--vdpad={vdpad}",
        f"--resource-config={directory / 'config.json'}",
    )


def _row(name: str, values: list[float]) -> None:
    values = sorted(values)
    if len(values) == 1:
        print(f"| {name} | {values[0]:.2f} |", flush=True)
        return
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    print(f"| {name} | p50 {statistics.median(values):.2f}, p99 {p99:.2f}, max {values[-1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
