"""Pods get their VFs by their limits alone: the agent finds the VFs, the real kubelet hands them out."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import pytest

from tests.cluster.cluster import AGENTS, NAMESPACE, READY_S, Cluster, Object
from tests.cluster.pods import NET, SUCCEEDED, counts, deployment, limited, python, received, wait_more
from tests.cluster.services import NAME
from tests.processes import eventually
from tests.trees import Tree
from vdpa_agent.model.pci import PciAddress

A, B = "ffff:00:00.0", "ffff:00:00.1"
LASTING: Final = ("--rate=1000", "--interval=0.2")
ENVIRONMENT: Final = "import os; print(os.environ['PCIDEVICE_VDPA_IO_NET'], flush=True)"
LOOK: Final = """
import json, os
seen = {directory: sorted(names) for directory, _, names in os.walk("/run/vdpa")}
own = {name: value for name, value in os.environ.items() if name.startswith(("PCIDEVICE", "VDPA"))}
writable = os.access(os.path.dirname(own["VDPA_NET_SOCKET"]), os.W_OK)
print(json.dumps({"seen": seen, "environment": own, "writable": writable}))
"""
"""Prints what a container has of its VF, and of others."""


def pools(*entries: Object) -> str:
    """The option that gives the chart these pools."""
    return f"--set-json=resourceConfig={json.dumps({'resourceList': entries})}"


CLIENT: Final = {"resourceName": "net", "vhostMode": "client", "simulated": 2}


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Cluster:
    """An agent with a pool of two simulated VFs, in vhost mode client."""
    cluster.install(pools(CLIENT))
    return cluster


@pytest.fixture
def restricted(cluster: Cluster, namespace: str) -> str:
    """A namespace whose Pod Security level is `restricted`."""
    cluster.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    return namespace


@pytest.fixture(autouse=True)
def _two_vfs(agent: Cluster) -> Iterator[None]:
    """Both VFs can be given before each test, and no pod of the test before has one."""
    eventually("two VFs", lambda: allocatable(agent) == 2, timeout_s=READY_S)
    yield
    agent.kubectl("delete", "deployments,pods", "--all-namespaces", "--selector=app", "--grace-period=5")


def allocatable(cluster: Cluster, resource: str = NET) -> int:
    """How many VFs the node has for pods, by the API server's word."""
    return int(cluster.get("node", NAME)["status"]["allocatable"].get(resource, -1))


def phase(cluster: Cluster, pod: str, namespace: str) -> Any:
    return cluster.get("pod", pod, namespace=namespace)["status"]["phase"]


def start(cluster: Cluster, namespace: str, *names: str) -> None:
    """Starts front ends that pass packets until they are ended."""
    for name in names:
        cluster.apply(limited(name, *LASTING), namespace=namespace)
    for name in names:
        cluster.wait(f"pod/{name}", namespace=namespace)
        wait_more(cluster, name, namespace)


def restarts(cluster: Cluster, pod: str, namespace: str) -> int:
    (state,) = cluster.get("pod", pod, namespace=namespace)["status"]["containerStatuses"]
    return int(state["restartCount"])


def test_the_notes_of_an_install_name_the_next_command(agent: Cluster) -> None:
    notes = agent.helm("get", "notes", "vdpa-agent", f"--namespace={NAMESPACE}")
    assert f'limits: {{"{NET}": 1}}' in notes
    (command,) = re.findall(r"^ +kubectl (get nodes .*)$", notes, re.MULTILINE)
    assert agent.kubectl(*shlex.split(command)).split() == ["NODE", "VFS", NAME, "2"]


def test_a_pod_with_limits_alone_passes_packets(agent: Cluster, restricted: str) -> None:
    agent.apply(limited("front", "--packets=1000"), namespace=restricted)
    agent.wait("pod/front", SUCCEEDED, namespace=restricted)
    done = counts(agent, "front", restricted)
    assert (done["sent"], done["received"]) == (1000, 1000)


def test_a_container_has_its_own_vf_and_sees_no_other(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    agent.apply(python("look", LOOK), namespace=restricted)
    agent.wait("pod/look", SUCCEEDED, namespace=restricted)
    found = json.loads(agent.logs("look", namespace=restricted))
    environment = found["environment"]
    own = environment["PCIDEVICE_VDPA_IO_NET"]
    assert own in {A, B}
    assert found["seen"] == {"/run/vdpa": [], f"/run/vdpa/{own}": []}
    assert found["writable"]
    assert environment["VDPA_NET_SOCKET"] == environment["VDPA_NET_0_SOCKET"] == f"/run/vdpa/{own}/vhost.sock"
    info = json.loads(environment["PCIDEVICE_VDPA_IO_NET_INFO"])
    assert info[own]["vhost-user"]["path"] == f"/run/vdpa/{own}/vhost.sock"
    volumes = agent.get("pod", "look", namespace=restricted)["spec"]["volumes"]
    assert not [volume for volume in volumes if "hostPath" in volume]


def test_multus_would_find_the_socket_of_the_vf(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    directory = agent.node.path("/run/k8s.cni.cncf.io/devinfo/dp")
    files = {path.name: json.loads(path.read_text()) for path in directory.iterdir()}
    assert sorted(files) == [f"vdpa.io-net-{address}-device.json" for address in (A, B)]
    for address in (A, B):
        # The container is the server: its application opens the socket.
        socket = {"mode": "server", "path": f"/run/vdpa/{address}/vhost.sock"}
        said = files[f"vdpa.io-net-{address}-device.json"]
        assert said == {"type": "vhost-user", "version": "1.1.0", "vhost-user": socket}
    agent.replace_agent()
    assert sorted(path.name for path in directory.iterdir()) == sorted(files)


def test_one_pod_may_have_both(agent: Cluster, restricted: str) -> None:
    agent.apply(python("look", LOOK, vfs=2), namespace=restricted)
    agent.wait("pod/look", SUCCEEDED, namespace=restricted)
    found = json.loads(agent.logs("look", namespace=restricted))
    assert sorted(found["environment"]["PCIDEVICE_VDPA_IO_NET"].split(",")) == [A, B]
    assert found["seen"] == {"/run/vdpa": [], f"/run/vdpa/{A}": [], f"/run/vdpa/{B}": []}


def test_a_third_pod_waits_until_a_vf_is_free(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "first", "second")
    agent.apply(limited("third", *LASTING), namespace=restricted)
    reason = eventually(
        "the scheduler's reason",
        lambda: re.search(r"FailedScheduling.*", agent.events("third", namespace=restricted)),
        timeout_s=READY_S,
    )
    assert f"Insufficient {NET}" in reason[0]
    assert phase(agent, "third", restricted) == "Pending"
    agent.kubectl("delete", "pod", "first", f"--namespace={restricted}")
    agent.wait("pod/third", namespace=restricted)
    wait_more(agent, "third", restricted)
    wait_more(agent, "second", restricted)


def test_a_restart_of_the_kubelet_takes_no_vf_from_anybody(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    serving = agent.agent()
    agent.restart_kubelet()
    eventually("its second registration", lambda: registrations(agent, serving) >= 2, timeout_s=READY_S)
    eventually("two VFs", lambda: allocatable(agent) == 2, timeout_s=READY_S)
    wait_more(agent, "front", restricted)
    assert restarts(agent, "front", restricted) == 0
    start(agent, restricted, "second")
    agent.apply(limited("third"), namespace=restricted)
    eventually("Pending", lambda: f"Insufficient {NET}" in agent.events("third", namespace=restricted))
    assert agent.agent() == serving


def registrations(cluster: Cluster, agent: str) -> int:
    return cluster.logs(agent, namespace=NAMESPACE).count('"event": "kubelet_registered"')


def test_another_agent_disturbs_nobody(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    agent.replace_agent()
    wait_more(agent, "front", restricted)
    assert restarts(agent, "front", restricted) == 0
    # The VF that is in use is known as such: the other one is given, and then there is none left.
    start(agent, restricted, "second")
    agent.apply(limited("third"), namespace=restricted)
    eventually("Pending", lambda: f"Insufficient {NET}" in agent.events("third", namespace=restricted))
    wait_more(agent, "front", restricted)


def test_the_agent_knows_which_pod_has_which_vf(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    words = f"  {restricted}/front/front  "
    (line,) = eventually("its pod", lambda: [line for line in wide(agent) if words in line], timeout_s=READY_S)
    # One that has come since learns it from the kubelet.
    agent.replace_agent()
    eventually("its pod again", lambda: line.split()[0] in owned(agent, words), timeout_s=READY_S)
    agent.kubectl("delete", "pod", "front", f"--namespace={restricted}")
    eventually("no pod", lambda: not owned(agent, words), timeout_s=READY_S)


def wide(cluster: Cluster) -> list[str]:
    return cluster.ask("list", "-o", "wide").splitlines()


def owned(cluster: Cluster, words: str) -> list[str]:
    """The VFs whose line has these words."""
    return [line.split()[0] for line in wide(cluster) if words in line]


def test_in_vhost_mode_server_a_pod_that_lost_its_back_end_shows(agent: Cluster, namespace: str) -> None:
    server = {"resourceName": "old", "vhostMode": "server", "simulated": 1}
    try:
        agent.install(pools(CLIENT, server))
        look_at_volumes(agent)
        eventually("its VF", lambda: allocatable(agent, "vdpa.io/old") == 1, timeout_s=READY_S)
        pod = limited("old", *LASTING, resource="vdpa.io/old", server=False)
        pod["spec"]["containers"][0]["args"][0] = "--path=$(VDPA_OLD_SOCKET)"
        # The socket is root's.
        pod["spec"]["securityContext"] = {"runAsUser": 0}
        agent.apply(pod, namespace=namespace)
        agent.wait("pod/old", namespace=namespace)
        wait_more(agent, "old", namespace)
        serving = agent.replace_agent()

        def warning() -> str | None:
            log = agent.logs(serving, namespace=NAMESPACE).splitlines()
            return next((line for line in log if '"pod_without_front_end"' in line), None)

        said = json.loads(eventually("the warning", warning, timeout_s=READY_S))
        assert (said["namespace"], said["pod"], said["vhost_mode"]) == (namespace, "old", "server")
        assert "start the pod again" in said["remedy"]
        assert phase(agent, "old", namespace) == "Running"  # which is all that Kubernetes says
    finally:
        agent.install(pools(CLIENT))
        look_at_volumes(agent)


def test_an_agent_that_is_killed_disturbs_nobody(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    name = agent.agent()
    on_node = agent.node.run("ps", "-e", "-o", "pid=,args=").splitlines()
    (pid,) = (line.split()[0] for line in on_node if "/vdpa-agent run " in line)
    agent.node.run("kill", "-KILL", pid)
    eventually("its second start", lambda: restarts(agent, name, NAMESPACE) > 0, timeout_s=READY_S)
    agent.wait_served()
    wait_more(agent, "front", restricted)
    assert restarts(agent, "front", restricted) == 0
    start(agent, restricted, "second")


def test_a_vf_that_fails_is_not_given(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    try:
        agent.install(pools(CLIENT), f"--set=config.devargs={{{B}=nonsense=1}}")
        agent.replace_agent()
        eventually("one VF", lambda: allocatable(agent) == 1, timeout_s=READY_S)
        status = agent.get("node", NAME)["status"]
        assert status["capacity"][NET] == "2"
        assert f"{B} is failed: DPDK refused" in agent.ask("status")
    finally:
        agent.install(pools(CLIENT))
        agent.replace_agent()
    eventually("two VFs", lambda: allocatable(agent) == 2, timeout_s=READY_S)


def test_pools_follow_their_config_map_and_a_wrong_one_is_refused_by_name(agent: Cluster, restricted: str) -> None:
    start(agent, restricted, "front")
    pod = agent.agent()
    wrong = {"resourceName": "net", "selectors": {"vendor": ["8086"]}}
    try:
        agent.install(pools(wrong))
        look_at_volumes(agent)
        status = eventually(
            "the reason", lambda: said if "'vendor'" in (said := agent.ask("status")) else None, timeout_s=READY_S
        )
        assert "entry 1: vdpa.io/net: selector 1: 'vendor' is not known here" in status
        assert allocatable(agent) == 2
        wait_more(agent, "front", restricted)
        agent.install(pools(CLIENT, {"resourceName": "more", "resourcePrefix": "example.com", "simulated": 3}))
        look_at_volumes(agent)
        eventually("the other pool", lambda: allocatable(agent, "example.com/more") == 3, timeout_s=READY_S)
        wait_more(agent, "front", restricted)
        assert agent.agent() == pod
        assert restarts(agent, pod, NAMESPACE) == restarts(agent, "front", restricted) == 0
    finally:
        agent.install(pools(CLIENT))
        look_at_volumes(agent)
    eventually("no other pool", lambda: allocatable(agent, "example.com/more") == 0, timeout_s=READY_S)


def look_at_volumes(cluster: Cluster) -> None:
    """Has the kubelet look at the agent's ConfigMaps now, and not within 60 to 90 s."""
    annotation = f"vdpa-agent/list={os.urandom(4).hex()}"
    cluster.kubectl("annotate", "pod", cluster.agent(), f"--namespace={NAMESPACE}", "--overwrite", annotation)


def test_after_a_power_cut_pods_have_their_vfs_again_without_a_hand(agent: Cluster, restricted: str) -> None:
    for name in ("first", "second"):
        agent.apply(deployment(limited(name, *LASTING)), namespace=restricted)
        passing(agent, name, restricted)
    agent.power_cut()
    agent.boot()
    for name in ("first", "second"):
        passing(agent, name, restricted)
    agent.wait_served()
    assert len(agent.pods(AGENTS, namespace=NAMESPACE)) == 1


def passing(cluster: Cluster, app: str, namespace: str) -> str:
    """The pod of a Deployment, once it passes packets: a kubelet that is starting knows no logs yet."""
    seen: dict[str, int] = {}

    def look() -> str | None:
        for pod in cluster.pods(f"app={app}", namespace=namespace):
            name = str(pod["metadata"]["name"])
            with suppress(AssertionError):
                now = received(cluster, name, namespace)
                if now > seen.setdefault(name, now):
                    return name
        return None

    return eventually(f"packets of {app}", look, timeout_s=READY_S)


def test_two_vfs_of_one_pod_are_near_each_other(agent: Cluster, restricted: str) -> None:
    tree, copy = Tree(agent.node.disk / "lib" / "sys"), "/var/lib/sys"
    vfs = {}
    for number, pf in enumerate((PciAddress("0000:81:00.0"), PciAddress("0000:c1:00.0"))):
        tree.device(pf, "8086:1592", driver="ice", node=number)
        for index in range(2):
            address = PciAddress(f"{pf[:-1]}{index + 2}")
            tree.vf(pf, index, address, node=number)
            vfs[address] = number
    near = {"resourceName": "net", "vhostMode": "client", "selectors": {"drivers": ["vfio-pci"]}}
    mount = [{"name": "copy", "hostPath": {"path": copy, "type": "Directory"}}]
    mounted = [{"name": "copy", "mountPath": copy, "readOnly": True}]
    try:
        agent.install(
            pools(near),
            f"--set=config.sysfs={copy}",
            f"--set-json=extraVolumes={json.dumps(mount)}",
            f"--set-json=extraVolumeMounts={json.dumps(mounted)}",
        )
        agent.replace_agent()
        eventually("four VFs", lambda: allocatable(agent) == 4, timeout_s=READY_S)
        for name in ("one", "two"):
            agent.apply(python(name, "import time; " + ENVIRONMENT + "; time.sleep(3600)", vfs=2), namespace=restricted)
            agent.wait(f"pod/{name}", namespace=restricted)
        given = [agent.logs(name, namespace=restricted).split()[0].split(",") for name in ("one", "two")]
        assert sorted(address for row in given for address in row) == sorted(vfs)
        assert all(len({vfs[PciAddress(address)] for address in row}) == 1 for row in given), given
    finally:
        agent.install(pools(CLIENT))
        agent.replace_agent()


def test_an_uninstall_takes_the_resource_away(agent: Cluster) -> None:
    agent.uninstall()
    directory = agent.node.path("/var/lib/kubelet/device-plugins")
    assert not [path.name for path in directory.iterdir() if path.name.startswith("vdpa-agent")]
    assert not list(agent.node.path("/run/k8s.cni.cncf.io/devinfo/dp").iterdir())
    eventually("no VF", lambda: allocatable(agent) == 0, timeout_s=READY_S)
    agent.install(pools(CLIENT))
