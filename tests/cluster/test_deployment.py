"""docs/deployment.md and deploy/examples as they stand, on a real cluster."""

import json
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.cluster.cluster import NAMESPACE, READY_S, Cluster
from tests.cluster.pods import NET, SUCCEEDED, counts
from tests.cluster.services import NAME
from tests.processes import ROOT, eventually

EXAMPLES: Final = ROOT / "deploy" / "examples"
SIMULATED: Final = f"--values={ROOT}/deploy/values/simulated.yaml"


def commands() -> list[list[str]]:
    """The commands of the page's first section, one a line."""
    page = (ROOT / "docs/deployment.md").read_text()
    (block,) = re.findall(r"<!-- tests/cluster/test_deployment\.py runs these\. -->\n```\n(.*?)```", page, re.DOTALL)
    return [shlex.split(line) for line in block.splitlines()]


def run(cluster: Cluster, command: list[str]) -> str:
    program, *words = [str(ROOT / word) if (ROOT / word).exists() else word for word in command]
    return {"helm": cluster.helm, "kubectl": cluster.kubectl}[program](*words)


def test_two_pods_exchange_packets_by_the_commands_of_the_page(cluster: Cluster) -> None:
    said = {}
    for command in commands():
        words = " ".join(command)
        if words.startswith("kubectl get nodes"):  # "within some ten seconds"
            eventually("four VFs", partial(shows_four, cluster, command), timeout_s=READY_S)
        said[words] = run(cluster, command)
    (log,) = (text for words, text in said.items() if words.startswith("kubectl logs"))
    done = json.loads(log.splitlines()[-1])
    assert (done["event"], done["sent"], done["received"]) == ("done", 5000, 5000)
    (listed,) = (text for words, text in said.items() if words.endswith("list -o wide"))
    assert re.search(r"  default/echo-\S+/front  ", listed), listed
    assert f'limits: {{"{NET}": 1}}' in said[" ".join(commands()[0])]


def shows_four(cluster: Cluster, command: list[str]) -> bool:
    return run(cluster, command).split()[-2:] == [NAME, "4"]


@pytest.fixture(scope="module")
def agent(cluster: Cluster) -> Cluster:
    """An agent with the values of the page, after its commands have run."""
    cluster.helm(
        "upgrade", "--install", "vdpa-agent", str(ROOT / "charts/vdpa-agent"), f"--namespace={NAMESPACE}", SIMULATED
    )
    cluster.wait_served()
    eventually(
        "four VFs", lambda: cluster.get("node", NAME)["status"]["allocatable"].get(NET) == "4", timeout_s=READY_S
    )
    return cluster


def test_the_application_of_the_examples_gets_its_vf_by_its_limits(agent: Cluster, namespace: str) -> None:
    agent.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    pod = yaml.safe_load((EXAMPLES / "limits-pod.yaml").read_text())
    (container,) = pod["spec"]["containers"]
    # testpmd is in no image of ours, and not every machine has hugepages: all else is the example's.
    assert container.pop("command") == ["dpdk-testpmd"]
    container["image"] = "vdpa-front:0.1.0"
    (device,) = [argument for argument in container["args"] if argument.startswith("--vdev=")]
    path, server = device.partition("path=")[2].split(",")
    assert server == "server=1"
    # A switch gives nothing back.
    container["args"] = [
        f"--path={path}",
        "--server",
        "--memory=none",
        "--mode=listen",
        "--seconds=1",
        "--connect-timeout=60",
    ]
    del container["resources"]["limits"]["hugepages-2Mi"]
    pod["spec"]["volumes"] = [volume for volume in pod["spec"]["volumes"] if volume["name"] != "hugepages"]
    container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "hugepages"]
    agent.apply(pod, namespace=namespace)
    agent.wait("pod/limits", SUCCEEDED, namespace=namespace)
    assert counts(agent, "limits", namespace)["sent"] == 0


def test_a_virtual_machine_finds_its_socket_by_what_multus_would_say(agent: Cluster, tmp_path: Path) -> None:
    """Multus is not here: the network-status is made of the file that it would copy, and QEMU says what it was told."""
    directory = agent.node.path("/run/k8s.cni.cncf.io/devinfo/dp")
    info = json.loads(min(directory.iterdir()).read_text())
    status = [
        {"name": "cluster-default", "interface": "eth0", "ips": ["10.45.0.9"], "default": True},
        {"name": "default/vlan100", "interface": "net1", "mac": "02:00:00:00:01:00", "device-info": info},
    ]
    (tmp_path / "network-status").write_text(json.dumps(status))
    pod = yaml.safe_load((EXAMPLES / "virtual-machine-pod.yaml").read_text())
    (volume,) = pod["spec"]["volumes"]
    (item,) = volume["downwardAPI"]["items"]
    assert item["fieldRef"]["fieldPath"] == "metadata.annotations['k8s.v1.cni.cncf.io/network-status']"
    (container,) = pod["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    (script,) = container["args"]
    script = script.replace(f"{mount['mountPath']}/{item['path']}", str(tmp_path / "network-status"))
    script = script.replace("exec qemu-system-x86_64", "exec printf '%s\\n'")
    ended = subprocess.run([*container["command"], script], check=True, capture_output=True, text=True, timeout=60)
    told = ended.stdout.splitlines()
    assert f"socket,id=vf,path={info['vhost-user']['path']},server=on,wait=off" in told
    assert "virtio-net-pci,netdev=net,mac=02:00:00:00:01:00" in told


def test_the_network_of_the_examples_is_of_a_resource_that_the_node_has(agent: Cluster) -> None:
    network = yaml.safe_load((EXAMPLES / "network-attachment.yaml").read_text())
    resource = network["metadata"]["annotations"]["k8s.v1.cni.cncf.io/resourceName"]
    assert resource in agent.get("node", NAME)["status"]["allocatable"]
    config = json.loads(network["spec"]["config"])
    assert (config["type"], config["name"]) == ("sriov", network["metadata"]["name"])
