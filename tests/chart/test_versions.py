"""Each version of Kubernetes gets what it accepts."""

import subprocess
from typing import Any, Final

import pytest
import yaml

from scripts.chart import ACCEPTED_BY, DEPLOY, PLAIN, tool
from tests.chart import schemas
from tests.chart.render import ALL, daemon_set, objects, of_kind, pod_spec

VERSIONS: Final = ("1.10.0", "1.13.0", "1.15.0", "1.16.0", "1.19.0", "1.25.0", "1.31.0", "1.37.0")
BY_OPERATORS: Final = {"PodMonitor", "PrometheusRule"}
WITHOUT_SCHEMA: Final = {"SecurityContextConstraints"}


def problems(kube_version: str, thing: dict[str, Any]) -> list[str]:
    if thing["kind"] in BY_OPERATORS:
        done = subprocess.run(
            [tool("monitoring")], check=False, input=yaml.safe_dump(thing), capture_output=True, text=True, timeout=30
        )
        return [done.stderr] if done.returncode else []
    return [] if thing["kind"] in WITHOUT_SCHEMA else schemas.problems(kube_version, thing)


@pytest.mark.parametrize("kube_version", VERSIONS)
@pytest.mark.parametrize("case", ALL)
def test_every_object_is_valid(case: str, kube_version: str) -> None:
    for thing in objects(case=case, kube_version=kube_version):
        assert problems(kube_version, thing) == [], thing["kind"]


def test_an_unknown_field_is_found_in_every_version() -> None:
    for version in VERSIONS:
        thing = daemon_set(kube_version=version)
        thing["spec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
        assert any("livenessProb" in problem for problem in problems(version, thing)), version


@pytest.mark.parametrize("name", PLAIN)
def test_the_plain_manifests_are_valid(name: str) -> None:
    for thing in yaml.safe_load_all((DEPLOY / name).read_text()):
        for version in ACCEPTED_BY[PLAIN[name][1]]:
            assert problems(version, thing) == []


@pytest.mark.parametrize("path", sorted((DEPLOY / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path: Any) -> None:
    for thing in yaml.safe_load_all(path.read_text()):
        if thing["kind"] != "NetworkAttachmentDefinition":
            assert problems("1.37.0", thing) == []


def test_seccomp_is_an_annotation_before_1_19() -> None:
    old = daemon_set(kube_version="1.18.0")["spec"]["template"]
    annotation = "container.seccomp.security.alpha.kubernetes.io/vdpa-agent"
    assert old["metadata"]["annotations"][annotation] == "runtime/default"
    assert "seccompProfile" not in old["spec"]["containers"][0]["securityContext"]
    new = daemon_set(kube_version="1.19.0")["spec"]["template"]
    assert annotation not in new["metadata"]["annotations"]
    assert new["spec"]["containers"][0]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}


def test_before_1_16_the_daemon_set_is_a_beta() -> None:
    assert daemon_set(kube_version="1.15.9")["apiVersion"] == "extensions/v1beta1"
    assert daemon_set(kube_version="1.16.0")["apiVersion"] == "apps/v1"


def test_versions_of_vendors_count_as_what_they_are() -> None:
    assert daemon_set(kube_version="v1.16.15-eks-ad4801")["apiVersion"] == "apps/v1"
    assert "seccompProfile" in str(daemon_set(kube_version="v1.19.0-gke.1"))


def test_before_1_17_system_priority_is_for_kube_system_only() -> None:
    assert "priorityClassName" not in pod_spec(kube_version="1.16.0")
    assert pod_spec("--namespace", "kube-system", kube_version="1.16.0")["priorityClassName"] == "system-node-critical"
    assert pod_spec(kube_version="1.17.0")["priorityClassName"] == "system-node-critical"


def test_every_object_says_its_namespace() -> None:
    for case in ALL:
        for thing in objects(case=case):
            if thing["kind"] not in WITHOUT_SCHEMA:
                assert thing["metadata"]["namespace"] == "network"
    assert of_kind("DaemonSet", objects(case="pools.yaml"))
