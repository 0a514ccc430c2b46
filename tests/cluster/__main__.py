"""A cluster for a person to play with: `python -m tests.cluster up`, and `down`."""

import shlex
import sys
from typing import Final

from tests.cluster.cluster import CHART, NAMESPACE, SIMULATED, Cluster
from tests.cluster.node import Lacking, Node
from tests.cluster.services import BIN
from tests.processes import ROOT

DISK: Final = ROOT / "build/cluster/node"

_USE: Final = """\
A node of Kubernetes is on, with the images vdpa-agent:0.1.0 and vdpa-front:0.1.0. It reaches nothing outside of itself.

  export KUBECONFIG={kubeconfig} PATH={bin}:{chart_bin}:$PATH
  kubectl get nodes
  helm install vdpa-agent {chart} --namespace {namespace} {simulated}
  helm test vdpa-agent --namespace {namespace}
  kubectl --namespace {namespace} exec daemonset/vdpa-agent -- vdpa-agent list

Its logs: {disk}/log. End it by `make cluster-down`."""


def up() -> int:
    """Starts the node, if it is off; what was on it before is there again."""
    cluster = Cluster(Node(DISK, outlives=True))
    if cluster.node.pid is None:
        try:
            cluster.boot()
        except Lacking as error:
            sys.stderr.write(f"{error}\n")
            return 1
    chart_bin = ROOT / "build/chart/bin"
    sys.stdout.write(
        _USE.format(
            kubeconfig=cluster.node.kubeconfig,
            bin=BIN,
            chart_bin=chart_bin,
            chart=CHART,
            namespace=NAMESPACE,
            simulated=shlex.quote(SIMULATED),
            disk=DISK,
        )
        + "\n"
    )
    return 0


def down() -> int:
    """Ends the node and removes its disk; where there is none, that is all."""
    if DISK.exists():
        node = Node(DISK)
        node.cut_power()
        node.remove()
    return 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["up"], ["down"]):
        sys.exit("usage: python -m tests.cluster up|down")
    sys.exit(up() if sys.argv[1] == "up" else down())
