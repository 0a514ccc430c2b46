"""The chart, rendered by helm."""

import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from scripts.chart import CASES, CHART, CURRENT, tool

ALL: Final = [path.name for path in sorted(CASES.glob("*.yaml"))]


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs helm, whatever becomes of it."""
    return subprocess.run([tool("helm"), *map(str, arguments)], check=False, capture_output=True, text=True, timeout=60)


def template(
    *arguments: str | Path, case: str = "default.yaml", chart: Path = CHART, kube_version: str = CURRENT
) -> subprocess.CompletedProcess[str]:
    """Runs `helm template` with the values of a case and further arguments."""
    settings = ("--namespace", "network", "--kube-version", kube_version, "--values", CASES / case)
    return helm("template", "vdpa-agent", chart, *settings, *arguments)


def objects(*arguments: str | Path, case: str = "default.yaml", kube_version: str = CURRENT) -> list[dict[str, Any]]:
    """The objects that are rendered."""
    done = template(*arguments, case=case, kube_version=kube_version)
    assert done.returncode == 0, done.stderr
    return [thing for thing in yaml.safe_load_all(done.stdout) if thing]


def refusal(*arguments: str | Path, case: str = "default.yaml", chart: Path = CHART) -> str:
    """What helm says instead of rendering."""
    done = template(*arguments, case=case, chart=chart)
    assert done.returncode != 0, done.stdout
    return done.stderr


def of_kind(kind: str, things: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [thing for thing in things if thing["kind"] == kind]


def daemon_set(*arguments: str | Path, case: str = "default.yaml", kube_version: str = CURRENT) -> dict[str, Any]:
    """The one DaemonSet that is rendered."""
    (found,) = of_kind("DaemonSet", objects(*arguments, case=case, kube_version=kube_version))
    return found


def pod_spec(*arguments: str | Path, case: str = "default.yaml", kube_version: str = CURRENT) -> Any:
    """The pod of the one DaemonSet."""
    return daemon_set(*arguments, case=case, kube_version=kube_version)["spec"]["template"]["spec"]


def container(*arguments: str | Path, case: str = "default.yaml", kube_version: str = CURRENT) -> Any:
    """Its one container."""
    (found,) = pod_spec(*arguments, case=case, kube_version=kube_version)["containers"]
    return found
