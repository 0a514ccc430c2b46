"""What a test does with a cluster: kubectl, helm, its node's power, and what happened when something failed."""

import json
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from tests.cluster.node import Node
from tests.cluster.services import BIN, NAME
from tests.processes import PATIENCE_S, ROOT, built, eventually

CHART: Final = ROOT / "charts/vdpa-agent"
NAMESPACE: Final = "kube-system"
"""Where the chart is installed."""
AGENTS: Final = "app.kubernetes.io/component=agent"
VFS: Final = ("0000:82:00.2", "0000:82:00.3")
"""The simulated VFs of an installation, unless a test says otherwise."""
SIMULATED: Final = f"--set=config.simulate=true,deviceList={{{','.join(VFS)}}}"
IMAGES: Final = ("pause", "vdpa-agent", "vdpa-front")
READY_S: Final = 180.0
"""How long a node may take to be ready on a machine that has much else to do."""

Object = dict[str, Any]


class Cluster:
    """A cluster of one node. Each call returns what was printed, or fails with it."""

    def __init__(self, node: Node) -> None:
        """Takes a node, which may be on or off."""
        self.node = node

    # ---- the API

    def kubectl(self, *arguments: str, stdin: str | None = None, expect: int = 0, timeout_s: float = READY_S) -> str:
        """Runs kubectl; returns its standard output, and standard error where a failure is expected."""
        return self._run([str(BIN / "kubectl"), *arguments], stdin=stdin, expect=expect, timeout_s=timeout_s)

    def apply(self, *manifests: str | Object, namespace: str = "default") -> None:
        """Applies manifests, as YAML or as objects."""
        text = "\n---\n".join(m if isinstance(m, str) else yaml.safe_dump(m) for m in manifests)
        self.kubectl("apply", f"--namespace={namespace}", "--filename=-", stdin=text)

    def wait(self, what: str, condition: str = "condition=Ready", *, namespace: str = "default") -> None:
        """Waits until an object, such as `pod/front`, is there and has a condition in kubectl's words."""
        found = ("get", what, f"--namespace={namespace}", "--ignore-not-found", "--output=name")
        if condition != "delete":
            eventually(f"{what} of {namespace}", lambda: self.kubectl(*found), timeout_s=READY_S)
        self.kubectl("wait", what, f"--for={condition}", f"--namespace={namespace}", f"--timeout={READY_S:.0f}s")

    def get(self, *what: str, namespace: str = "default") -> Object:
        """An object, or a list of them, such as `("pods", "--selector=app=front")`."""
        got: Object = json.loads(self.kubectl("get", *what, f"--namespace={namespace}", "--output=json"))
        return got

    def pods(self, selector: str, *, namespace: str = "default") -> list[Object]:
        """The pods that a selector takes, without those that are being deleted."""
        items: list[Object] = self.get("pods", f"--selector={selector}", namespace=namespace)["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def logs(self, pod: str, *arguments: str, namespace: str = "default") -> str:
        """What a pod's container printed."""
        return self.kubectl("logs", pod, f"--namespace={namespace}", *arguments)

    def events(self, pod: str, *, namespace: str = "default") -> str:
        """What Kubernetes says of a pod."""
        return self.kubectl("events", f"--for=pod/{pod}", f"--namespace={namespace}")

    # ---- the chart

    def helm(self, *arguments: str, expect: int = 0) -> str:
        """Runs helm; returns its standard output, and standard error where a failure is expected."""
        return self._run([str(built("chart/bin/helm", "chart-tools")), *arguments], expect=expect, timeout_s=READY_S)

    def install(self, *values: str, release: str = "vdpa-agent", wait: bool = True) -> None:
        """Installs the chart, or upgrades to it; by default waits until its agent is ready.

        Helm's own `--wait` takes a DaemonSet with OnDelete, the chart's default, for ready at once.
        """
        self.helm("upgrade", "--install", release, str(CHART), f"--namespace={NAMESPACE}", SIMULATED, *values)
        if wait:
            self.wait_served()

    def wait_served(self) -> None:
        """Waits until there is an agent's pod, and all of them are ready."""
        eventually("a ready agent", self._served, timeout_s=READY_S)

    def _served(self) -> bool:
        pods = self.pods(AGENTS, namespace=NAMESPACE)
        return bool(pods) and all(
            any(said["type"] == "Ready" and said["status"] == "True" for said in pod["status"].get("conditions", []))
            for pod in pods
        )

    def uninstall(self, release: str = "vdpa-agent") -> None:
        """Removes a release, and waits until its pods are gone."""
        self.helm("uninstall", release, f"--namespace={NAMESPACE}", "--wait", "--ignore-not-found")
        eventually(
            "end of the agents", lambda: not self.get("pods", f"--selector={AGENTS}", namespace=NAMESPACE)["items"]
        )

    def replace_agent(self) -> str:
        """Deletes the agent's pod, and waits for the next one to be ready; returns its name."""
        old = self.agent()
        self.kubectl("delete", "pod", old, f"--namespace={NAMESPACE}")
        self.wait_served()
        new = self.agent()
        assert new != old
        return new

    def agent(self) -> str:
        """The name of the newest agent's pod."""
        pods = self.pods(AGENTS, namespace=NAMESPACE)
        assert pods, "there is no agent's pod"
        return str(max(pods, key=lambda pod: pod["metadata"]["creationTimestamp"])["metadata"]["name"])

    def ask(self, *arguments: str, expect: int = 0) -> str:
        """Runs `vdpa-agent` in the agent's pod."""
        command = ("exec", f"--namespace={NAMESPACE}", self.agent(), "--", "vdpa-agent", *arguments)
        return self.kubectl(*command, expect=expect)

    # ---- the node

    def boot(self) -> None:
        """Switches the node on; returns when pods can run on it."""
        self.node.boot()
        for name in IMAGES:
            self.node.import_image(built(f"cluster/images/{name}.tar", "cluster-tools"))
        ready = '{.status.conditions[?(@.type=="Ready")].status}'
        since = self._heartbeat()
        eventually("a ready node", lambda: self._heartbeat() != since, timeout_s=READY_S)
        self.wait(f"node/{NAME}", f"jsonpath={ready}=True")
        self.wait("serviceaccount/default", "jsonpath={.metadata.name}=default")
        self.wait("serviceaccount/default", "jsonpath={.metadata.name}=default", namespace=NAMESPACE)

    def power_cut(self) -> None:
        """Ends all that runs on the node at once; its disk stays, and with it what the API server knows."""
        self.node.cut_power()

    def restart_kubelet(self) -> None:
        """Ends the kubelet and starts it again; returns when the node is ready by the new one's word.

        A kubelet says that before it has read its pods from the API server: until then it knows no log of theirs.
        """
        since = self._heartbeat()
        self.node.restart_kubelet()
        eventually("a word of the new kubelet", lambda: self._heartbeat() != since, timeout_s=READY_S)
        self.wait(f"node/{NAME}")
        running = self.get("pods", "--all-namespaces", "--field-selector=status.phase=Running")["items"]
        for where in (pod["metadata"] for pod in running if "deletionTimestamp" not in pod["metadata"]):
            eventually(f"the log of {where['name']}", partial(self._has_log, where), timeout_s=READY_S)

    def report(self) -> str:
        """What there is and what happened, for a test that failed."""
        if self.node.pid is None:
            return "the node is off"
        asked: list[list[str]] = [
            ["get", "pods", "--all-namespaces", "--output=wide"],
            ["events", "--all-namespaces"],
            ["logs", f"--namespace={NAMESPACE}", f"--selector={AGENTS}", "--tail=40"],
        ]
        parts = [f"$ kubectl {' '.join(a)}\n{_try([str(BIN / 'kubectl'), *a], self.node.kubeconfig)}" for a in asked]
        parts += [f"--- {name}\n{self.node.log_tail(name)}" for name in ("kubelet", "containerd", "kube-apiserver")]
        return "\n".join(parts)

    def _has_log(self, where: Object) -> bool:
        command = [str(BIN / "kubectl"), "logs", where["name"], f"--namespace={where['namespace']}", "--limit-bytes=1"]
        return _answers(command, self.node.kubeconfig).returncode == 0

    def _heartbeat(self) -> str:
        """When the node's kubelet last said how it is, by the API server's word; empty if it never did."""
        path = '{.status.conditions[?(@.type=="Ready")].lastHeartbeatTime}'
        return self.kubectl("get", "node", NAME, "--ignore-not-found", f"--output=jsonpath={path}")

    def _run(self, command: list[str], *, expect: int, timeout_s: float, stdin: str | None = None) -> str:
        ended = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            timeout=timeout_s + PATIENCE_S,
            env=_environment(self.node.kubeconfig),
        )
        words = f"{Path(command[0]).name} {' '.join(command[1:])}"
        assert ended.returncode == expect, f"{words}: {ended.returncode}: {ended.stderr}{ended.stdout}"
        return ended.stdout if expect == 0 else ended.stdout + ended.stderr


def _environment(kubeconfig: Path) -> dict[str, str]:
    """No setting of a person's own gets in."""
    return {"KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def _answers(command: list[str], kubeconfig: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE_S, env=_environment(kubeconfig)
    )


def _try(command: list[str], kubeconfig: Path) -> str:
    try:
        ended = _answers(command, kubeconfig)
    except subprocess.TimeoutExpired:
        return "no answer"
    return ended.stdout + ended.stderr
