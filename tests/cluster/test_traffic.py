"""Pods whose traffic outlives what happens to the agent and to the node."""

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import AGENTS, NAMESPACE, VFS, Cluster
from tests.cluster.pods import front, received, wait_more
from tests.processes import eventually

SOCKET = "/var/run/vdpa/vhost/vdpa-0"


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Cluster:
    """An agent whose daemon connects to sockets that the pods make."""
    cluster.install("--set=config.vhostMode=client")
    return cluster


@pytest.fixture
def pod(agent: Cluster, namespace: str) -> Iterator[str]:
    """A front end that passes packets on a socket of its own until it is ended."""
    agent.apply(front("front", SOCKET, "--server", "--rate=1000", "--interval=0.2"), namespace=namespace)
    agent.wait("pod/front", namespace=namespace)
    wait_more(agent, "front", namespace)
    yield "front"
    # The next test's pod makes a socket of the same name.
    agent.kubectl("delete", "pod", "front", f"--namespace={namespace}")


def restarts(cluster: Cluster, pod: str, namespace: str) -> int:
    (state,) = cluster.get("pod", pod, namespace=namespace)["status"]["containerStatuses"]
    return int(state["restartCount"])


def test_packets_pass_again_when_another_agent_has_come(agent: Cluster, pod: str, namespace: str) -> None:
    agent.replace_agent()
    wait_more(agent, pod, namespace)
    assert restarts(agent, pod, namespace) == 0


def test_a_rolling_update_reaches_the_node_by_itself(agent: Cluster, pod: str, namespace: str) -> None:
    old = agent.agent()
    try:
        agent.install("--set=config.vhostMode=client,config.logLevel=debug")
        agent.kubectl("rollout", "status", "daemonset/vdpa-agent", f"--namespace={NAMESPACE}", "--timeout=120s")
        assert agent.agent() != old
        wait_more(agent, pod, namespace)
    finally:
        agent.install("--set=config.vhostMode=client")
        agent.kubectl("rollout", "status", "daemonset/vdpa-agent", f"--namespace={NAMESPACE}", "--timeout=120s")


def test_a_restart_of_the_kubelet_interrupts_nothing(agent: Cluster, pod: str, namespace: str) -> None:
    serving, before = agent.agent(), received(agent, pod, namespace)
    agent.restart_kubelet()
    agent.wait_served()
    assert agent.agent() == serving
    (state,) = agent.get("pod", serving, namespace=NAMESPACE)["status"]["containerStatuses"]
    assert state["restartCount"] == 0
    wait_more(agent, pod, namespace)
    assert received(agent, pod, namespace) > before
    log = [line for line in agent.logs(serving, namespace=NAMESPACE).splitlines() if "front_end_lost" in line]
    assert restarts(agent, pod, namespace) == 0, log


def test_after_a_power_cut_all_is_served_again_without_a_hand(agent: Cluster, namespace: str) -> None:
    lasting = front("front", SOCKET, "--server", "--rate=1000", "--interval=0.2")
    lasting["spec"]["restartPolicy"] = "Always"
    agent.apply(lasting, namespace=namespace)
    agent.wait("pod/front", namespace=namespace)
    wait_more(agent, "front", namespace)
    agent.power_cut()
    agent.boot()
    eventually("the agent's second start", lambda: restarts(agent, agent.agent(), NAMESPACE) > 0, timeout_s=120)
    agent.wait_served()
    assert VFS[0] in agent.ask("get", VFS[0])
    eventually("the pod's second start", lambda: restarts(agent, "front", namespace) > 0, timeout_s=120)
    agent.wait("pod/front", namespace=namespace)
    wait_more(agent, "front", namespace)
    assert len(agent.pods(AGENTS, namespace=NAMESPACE)) == 1
