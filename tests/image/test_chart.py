"""The pods of the chart, run by podman from the rendered manifests on a directory that stands for the node."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.pod import playable, pod_of
from tests.chart.render import objects, of_kind
from tests.image.containers import AGENT, RUN_DIRECTORY, USER, Container, ask, counts, front_end, podman
from tests.processes import PATIENCE_S, eventually

TWO = ("0000:82:00.2", "0000:82:00.3")


@contextmanager
def played(directory: Path, *manifests: dict[str, Any]) -> Iterator[Container]:
    """The container of the last manifest, a pod, whose name is made unique; everything is gone at the end."""
    *others, pod = manifests
    pod["metadata"]["name"] += f"-{secrets.token_hex(4)}"
    path = directory / f"{pod['metadata']['name']}.yaml"
    path.write_text(yaml.safe_dump_all([*others, pod]))
    (container,) = pod["spec"]["containers"]
    try:
        podman("kube", "play", "--network=none", str(path))
        yield Container(f"{pod['metadata']['name']}-{container['name']}")
    finally:
        podman("pod", "rm", "--force", "--time=0", "--ignore", pod["metadata"]["name"])


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def run_directory(node: Path) -> Path:
    return Path(f"{node}{RUN_DIRECTORY}")


def probed(agent: Container, container: dict[str, Any]) -> list[str]:
    """The status codes of the probes of a rendered container, asked as a kubelet does, from the network of the pod."""
    (port,) = (port["containerPort"] for port in container["ports"] if port["name"] == "http")
    codes = []
    for name in ("livenessProbe", "readinessProbe"):
        url = f"http://127.0.0.1:{port}{container[name]['httpGet']['path']}"
        curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "10", url]
        asked = ["nsenter", f"--net=/proc/{agent.pid()}/ns/net", *curl]
        codes.append(subprocess.run(asked, check=True, capture_output=True, text=True, timeout=PATIENCE_S).stdout)
    return codes


@pytest.mark.parametrize(
    ("user", "arguments"),
    [(0, f"--set=config.socketGroup={USER}"), (USER, f"--set=runAsUser={USER},runAsGroup={USER}")],
    ids=["root without capabilities", "another user"],
)
def test_the_rendered_pod_serves_packets_to_another_container(run_dir: Path, user: int, arguments: str) -> None:
    run = run_directory(run_dir)
    if user != 0:
        run.mkdir(parents=True)
        os.chown(run, user, user)
    # There is no kubelet here.
    things = objects(arguments, "--set=resourceConfig=null", case="simulated.yaml")
    (daemon_set,) = of_kind("DaemonSet", things)
    pod = pod_of(daemon_set, image=AGENT, node=run_dir)
    with played(run_dir, *of_kind("ConfigMap", things), pod) as agent:
        eventually("its gRPC socket", (run / "vdpa.sock").is_socket)
        sockets = [ask(run, address) for address in TWO]
        assert sockets == [f"{RUN_DIRECTORY}/vhost/vdpa-{number}" for number in range(2)]
        assert ask(run, "0000:87:00.5") == ""
        assert (run / "vhost" / "vdpa-0").stat().st_gid == USER

        assert probed(agent, daemon_set["spec"]["template"]["spec"]["containers"][0]) == ["200", "200"]

        process = status(agent.pid())
        assert process["Uid"].split() == [str(user)] * 4
        assert {process[name] for name in ("CapEff", "CapPrm", "CapBnd")} == {"0" * 16}
        assert process["NoNewPrivs"] == "1"
        assert process["Seccomp"] == "2"

        with front_end(run, sockets[1], "--rate=20000", "--packets=5000") as front:
            passed = counts(front)
        assert (passed["received"], passed["lost"], passed["corrupt"]) == (5000, 0, 0)

        # The pod of `helm test` on the same node.
        (test,) = of_kind("Pod", things)
        with played(run_dir, playable(test, AGENT, run_dir)) as asked:
            assert asked.wait_end() == 0
            assert podman("logs", asked.name).split()[-2:] == [TWO[0], sockets[0]]

        podman("stop", agent.name)
        assert agent.wait_end() == 0
    assert not (run / "vdpa.sock").exists()
    assert list((run / "vhost").iterdir()) == []
