"""Pods of the tests: front ends that count packets, some of which get their VF by their limits alone."""

import copy
import json
from typing import Any, Final

from tests.cluster.cluster import Cluster, Object
from tests.processes import eventually

SUCCEEDED: Final = "jsonpath={.status.phase}=Succeeded"
RUNNING: Final = "condition=Ready"
NET: Final = "vdpa.io/net"
"""The resource of the pool `net`."""


def front(name: str, socket: str, *arguments: str) -> Object:
    """A pod of the counting front end on a socket of the run directory, as the user of the agent's sockets."""
    directory = "/var/run/vdpa/vhost"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "front",
                    "image": "vdpa-front:0.1.0",
                    "args": [f"--path={socket}", "--memory=none", "--connect-timeout=60", *arguments],
                    "securityContext": {
                        "runAsUser": 0,
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "sockets", "mountPath": directory}],
                }
            ],
            "volumes": [{"name": "sockets", "hostPath": {"path": directory, "type": "Directory"}}],
        },
    }


def limited(name: str, *arguments: str, vfs: int = 1, resource: str = NET, server: bool = True) -> Object:
    """A pod of the counting front end on the VF that it gets by its limits; it passes `restricted`.

    Args:
        name: the pod's.
        arguments: of the front end.
        vfs: how many VFs it wants; it uses the first one.
        resource: of which resource.
        server: whether it opens the socket, as in vhost mode client, or connects to it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 5,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "front",
                    "image": "vdpa-front:0.1.0",
                    "args": [
                        "--path=$(VDPA_NET_SOCKET)",
                        *(("--server",) if server else ()),
                        "--memory=none",
                        "--connect-timeout=120",
                        *arguments,
                    ],
                    "resources": {"limits": {resource: vfs}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def python(name: str, code: str, *, vfs: int = 1, resource: str = NET) -> Object:
    """The same, with a Python program in place of the front end."""
    pod = limited(name, vfs=vfs, resource=resource)
    (container,) = pod["spec"]["containers"]
    container["image"] = "vdpa-agent:0.1.0"
    container["command"] = ["/opt/vdpa-agent/bin/python", "-c", code]
    del container["args"]
    return pod


def deployment(pod: Object) -> Object:
    """A Deployment of one such pod, which is replaced when it ends."""
    pod = copy.deepcopy(pod)
    labels = pod["metadata"]["labels"]
    pod["spec"]["restartPolicy"] = "Always"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pod["metadata"]["name"]},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
        },
    }


def lines(cluster: Cluster, pod: str, namespace: str) -> list[dict[str, Any]]:
    """What a front end printed, one event a line."""
    printed = cluster.logs(pod, namespace=namespace).splitlines()
    return [json.loads(line) for line in printed if line.startswith("{")]


def counts(cluster: Cluster, pod: str, namespace: str) -> dict[str, Any]:
    """The last counts of a front end that ended."""
    return [line for line in lines(cluster, pod, namespace) if line["event"] == "done"][-1]


def received(cluster: Cluster, pod: str, namespace: str) -> int:
    """How many packets a running front end has had back, by its newest interval."""
    said = [line["received"] for line in lines(cluster, pod, namespace) if "received" in line]
    return int(said[-1]) if said else 0


def wait_more(cluster: Cluster, pod: str, namespace: str) -> None:
    """Waits until a running front end has had more packets back than now."""
    before = received(cluster, pod, namespace)
    eventually(f"packets of {pod}", lambda: received(cluster, pod, namespace) > before)
