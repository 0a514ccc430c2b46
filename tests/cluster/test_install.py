"""The chart from its installation to its removal, by helm and kubectl as docs/deployment.md has them."""

import json
import re
import shlex
import time
from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.cluster import CHART, NAMESPACE, SIMULATED, VFS, Cluster, Object
from tests.cluster.pods import SUCCEEDED, counts, front
from tests.processes import ROOT, eventually


def documented(words: str) -> str:
    """The line of docs/deployment.md that begins with these words, the same wherever it is."""
    (line,) = set(re.findall(rf"^{re.escape(words)}.*$", (ROOT / "docs/deployment.md").read_text(), re.MULTILINE))
    return str(line)


def test_a_fresh_install_passes_helm_test_at_once(cluster: Cluster) -> None:
    # No wait between the two: the test's pod waits for the agent.
    cluster.install(wait=False)
    said = cluster.helm("test", "vdpa-agent", f"--namespace={NAMESPACE}", "--timeout=170s")
    assert re.search(r"^Phase: +Succeeded$", said, re.MULTILINE)
    cluster.wait_served()


def test_the_documented_wait_ends_when_the_agent_is_ready(agent: Cluster) -> None:
    assert "OnDelete" in agent.get("daemonset", "vdpa-agent", namespace=NAMESPACE)["spec"]["updateStrategy"]["type"]
    agent.kubectl(*shlex.split(documented("kubectl --namespace kube-system wait daemonset/vdpa-agent"))[1:])
    refused = agent.kubectl("rollout", "status", "daemonset/vdpa-agent", f"--namespace={NAMESPACE}", expect=1)
    assert "RollingUpdate" in refused


def test_every_vf_is_listed_and_a_pod_passes_packets(agent: Cluster, namespace: str) -> None:
    listed = json.loads(agent.ask("list", "-o", "json"))
    assert [device["pci_address"] for device in listed] == list(VFS)
    agent.apply(front("front", "/var/run/vdpa/vhost/vdpa-0", "--packets=1000"), namespace=namespace)
    agent.wait("pod/front", SUCCEEDED, namespace=namespace)
    done = counts(agent, "front", namespace)
    assert (done["sent"], done["received"]) == (1000, 1000)


def test_the_client_pod_of_the_examples_is_answered(agent: Cluster, namespace: str) -> None:
    agent.apply((ROOT / "deploy/examples/client-pod.yaml").read_text(), namespace=namespace)
    agent.wait("pod/client", "jsonpath={.status.phase}=Failed", namespace=namespace)
    assert "/var/run/vdpa/vhost/vdpa-0" in agent.logs("client", "--container=known", namespace=namespace)
    states = agent.get("pod", "client", namespace=namespace)["status"]["containerStatuses"]
    assert {state["name"]: state["state"]["terminated"]["exitCode"] for state in states} == {"known": 0, "unknown": 4}


def test_the_front_end_of_the_examples_runs_on_a_node_of_two_cpus(agent: Cluster, namespace: str) -> None:
    pod = yaml.safe_load((ROOT / "deploy/examples/front-end-pod.yaml").read_text())
    (container,) = pod["spec"]["containers"]
    # testpmd is in no image of ours, and not every machine has hugepages: all else is the example's.
    assert container.pop("command") == ["dpdk-testpmd"]
    container["image"] = "vdpa-front:0.1.0"
    (device,) = [argument for argument in container["args"] if argument.startswith("--vdev=")]
    container["args"] = [f"--path={device.partition('path=')[2]}", "--memory=none", "--packets=1000"]
    del container["resources"]["limits"]["hugepages-2Mi"]
    pod["spec"]["volumes"] = [volume for volume in pod["spec"]["volumes"] if volume["name"] != "hugepages"]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "hugepages"]
    try:
        agent.install("--set=config.socketGroup=2000")
        agent.replace_agent()
        agent.apply(pod, namespace=namespace)
        agent.wait("pod/front-end", SUCCEEDED, namespace=namespace)
        assert counts(agent, "front-end", namespace)["received"] == 1000
    finally:
        agent.install()
        agent.replace_agent()


def test_a_deleted_agent_is_ready_again_sooner_than_at_the_second_look_at_its_readiness(agent: Cluster) -> None:
    took = []
    for _ in range(5):
        began = time.monotonic()
        agent.replace_agent()
        took.append(time.monotonic() - began)
        assert VFS[0] in agent.ask("get", VFS[0])
    period = yaml.safe_load((CHART / "values.yaml").read_text())["probes"]["readiness"]["periodSeconds"]
    assert min(took) < period, took


def test_a_changed_list_reaches_the_agent_at_once_when_its_pod_is_annotated(agent: Cluster) -> None:
    more = (*VFS, "0000:82:00.4")
    pod = agent.agent()
    try:
        agent.install(f"--set=deviceList={{{','.join(more)}}}")
        command = documented("kubectl --namespace kube-system annotate pod").replace("$(date +%s)", str(time.time_ns()))
        agent.kubectl(*command.split()[1:])
        eventually("the third VF", lambda: "0000:82:00.4" in agent.ask("list"), timeout_s=30)
        assert agent.agent() == pod
    finally:
        agent.install()


def test_a_second_release_is_refused_with_the_pod_that_is_there(agent: Cluster) -> None:
    first = agent.agent()
    try:
        agent.install("--set=nameOverride=other", release="second", wait=False)
        selector = "app.kubernetes.io/instance=second"
        (second,) = eventually("its pod", lambda: agent.pods(selector, namespace=NAMESPACE))
        name = second["metadata"]["name"]

        def end() -> Object | None:
            states = agent.get("pod", name, namespace=NAMESPACE)["status"].get("containerStatuses", [])
            ends = [s["state"].get("terminated") or s.get("lastState", {}).get("terminated") for s in states]
            return ends[0] if ends else None

        said = eventually("its end", end)
        assert said["exitCode"] == 100
        assert f"another agent, process 1 on {first}, holds" in said["message"], said
    finally:
        agent.helm("uninstall", "second", f"--namespace={NAMESPACE}", "--wait")
    assert VFS[0] in agent.ask("get", VFS[0])


def test_an_upgrade_reaches_the_node_when_the_pod_is_deleted(agent: Cluster) -> None:
    old = agent.agent()
    try:
        agent.install("--set=config.logLevel=debug")
        assert agent.agent() == old
        new = agent.replace_agent()
        assert "--log-level=debug" in str(agent.get("pod", new, namespace=NAMESPACE)["spec"])
        agent.helm("rollback", "vdpa-agent", f"--namespace={NAMESPACE}")
    finally:
        agent.install()
        agent.replace_agent()


def test_a_drain_leaves_the_agent_and_takes_the_application(agent: Cluster, namespace: str) -> None:
    agent.apply(front("front", "/var/run/vdpa/vhost/vdpa-0"), namespace=namespace)
    agent.wait("pod/front", namespace=namespace)
    serving = agent.agent()
    try:
        agent.kubectl("drain", "node1", "--ignore-daemonsets", "--force", "--delete-emptydir-data")
        assert agent.pods("app=front", namespace=namespace) == []
        assert agent.agent() == serving
    finally:
        agent.kubectl("uncordon", "node1")


@pytest.fixture
def enforced(cluster: Cluster) -> Iterator[str]:
    """A namespace whose Pod Security level is `baseline`."""
    cluster.kubectl("create", "namespace", "enforced")
    cluster.kubectl("label", "namespace", "enforced", "pod-security.kubernetes.io/enforce=baseline")
    yield "enforced"
    cluster.kubectl("delete", "namespace", "enforced")


def test_the_run_directory_is_what_pod_security_refuses(agent: Cluster, enforced: str) -> None:
    rendered = agent.helm("template", "vdpa-agent", str(CHART), f"--namespace={enforced}", SIMULATED)
    (pod,) = [thing for thing in yaml.safe_load_all(rendered) if thing["kind"] == "Pod"]
    pod["metadata"].pop("annotations")
    said = agent.kubectl("apply", "--filename=-", f"--namespace={enforced}", stdin=yaml.safe_dump(pod), expect=1)
    assert 'violates PodSecurity "baseline:latest": hostPath volumes (volume "run")' in said, said


def test_nothing_stays_after_an_uninstall(agent: Cluster) -> None:
    agent.uninstall()
    selector = "--selector=app.kubernetes.io/instance=vdpa-agent"
    kinds = "all,configmaps,serviceaccounts,secrets,networkpolicies"
    assert agent.get(kinds, selector, namespace=NAMESPACE)["items"] == []
    assert list(agent.node.path("/run/vdpa/vhost").iterdir()) == []
    assert "vdpad" not in agent.node.run("ps", "-e", "-o", "args")


def test_no_dead_socket_stays(agent: Cluster) -> None:
    assert not agent.pods("app.kubernetes.io/instance=vdpa-agent", namespace=NAMESPACE)
    assert not [path for path in agent.node.path("/run/vdpa").rglob("*") if path.is_socket()]
