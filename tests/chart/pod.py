"""The pod that a DaemonSet's template makes, in the form that `podman kube play` runs."""

import copy
from pathlib import Path
from typing import Any


def pod_of(daemon_set: dict[str, Any], *, image: str, node: Path) -> dict[str, Any]:
    """The pod of a DaemonSet."""
    template = daemon_set["spec"]["template"]
    metadata = {"name": daemon_set["metadata"]["name"], **template["metadata"]}
    return playable({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}, image, node)


def playable(pod: dict[str, Any], image: str, node: Path) -> dict[str, Any]:
    """The pod with another image, the directories of its node below `node`.

    What others than a container runtime do is left out: the service account, the priority, the choice of a node, probes
    with their port.
    """
    pod = copy.deepcopy(pod)
    spec = pod["spec"]
    for name in (
        "serviceAccountName",
        "automountServiceAccountToken",
        "priorityClassName",
        "nodeSelector",
        "tolerations",
    ):
        spec.pop(name, None)
    for container in (*spec.get("initContainers", ()), *spec["containers"]):
        container["image"] = image
        container["imagePullPolicy"] = "Never"
        for name in ("livenessProbe", "readinessProbe", "ports"):
            container.pop(name, None)
    for volume in spec["volumes"]:
        if "hostPath" in volume:
            volume["hostPath"]["path"] = f"{node}{volume['hostPath']['path']}"
    return pod
