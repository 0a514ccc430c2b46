"""What the Pod Security levels hold against the pods, each finding with its reason."""

import json
import subprocess
from typing import Final

import pytest

from scripts.chart import DEPLOY, tool
from tests.chart.render import ALL, template

RUN: Final = "hostPath volumes"
"""The run directory is the node's: there the agent meets CNI plugins and pods. So are sysfs and kubelet."""
ROOT: Final = {"runAsNonRoot != true", "runAsUser=0"}
"""The run directory is root's; `runAsUser` names another user where it was made for one."""
LOCK: Final = {"non-default capabilities"}
"""IPC_LOCK: VFIO pins the memory of front ends. Not added where there is no hardware."""

OTHERS: Final = {"unrestricted capabilities"}
"""DAC_OVERRIDE: in vhost mode client the sockets are those of front ends, of whatever user. Baseline allows it."""

EXPECTED: Final = {
    "serve-only.yaml": ({RUN}, ROOT),
    "simulated.yaml": ({RUN}, ROOT | OTHERS),
    "non-root.yaml": ({RUN}, set()),
    "default.yaml": ({RUN, *LOCK}, ROOT),
    "device-plugin.yaml": ({RUN, *LOCK}, ROOT),
    "privileged.yaml": (
        {RUN, "privileged"},
        ROOT | {"allowPrivilegeEscalation != false", "unrestricted capabilities", "seccompProfile"},
    ),
}
"""Of each case what the level baseline refuses, and what restricted refuses beyond that."""
SAME: Final = {
    "restricted volume types": RUN,
    "unrestricted capabilities": "non-default capabilities",
}
"""What restricted calls by another name than baseline."""


def judged(manifests: str) -> list[dict[str, str]]:
    done = subprocess.run(
        [tool("pod-security")], check=True, input=manifests, capture_output=True, text=True, timeout=30
    )
    return list(json.loads(done.stdout))


def findings(case: str) -> list[dict[str, str]]:
    return judged(template("--skip-tests", case=case).stdout)


def refused(manifests: str) -> tuple[set[str], set[str]]:
    """What baseline refuses, and what restricted refuses beyond that."""
    found = judged(manifests)
    baseline = {finding["reason"] for finding in found if finding["level"] == "baseline"}
    restricted = {finding["reason"] for finding in found if finding["level"] == "restricted"}
    return baseline, {reason for reason in restricted if reason not in baseline and SAME.get(reason) not in baseline}


@pytest.mark.parametrize("case", EXPECTED)
def test_nothing_is_held_against_it_but_what_has_a_reason(case: str) -> None:
    assert refused(template("--skip-tests", case=case).stdout) == EXPECTED[case]


def test_what_the_policy_holds_against_the_default_mode_names_only_mounts_and_ipc_lock() -> None:
    details = {finding["detail"] for finding in findings("default.yaml") if finding["level"] == "baseline"}
    assert details == {
        'volumes "run", "sysfs", "device-plugins", "pod-resources", "device-info"',
        'container "vdpa-agent" must not include "IPC_LOCK" in securityContext.capabilities.add',
    }


def test_a_front_end_needs_nothing_but_the_directory_of_sockets() -> None:
    assert refused((DEPLOY / "examples" / "front-end-pod.yaml").read_text()) == ({RUN}, set())


@pytest.mark.parametrize("name", ["limits-pod.yaml", "two-pods.yaml", "virtual-machine-pod.yaml"])
def test_pods_that_get_their_vf_by_their_limits_pass_every_level(name: str) -> None:
    assert refused((DEPLOY / "examples" / name).read_text()) == (set(), set())


def test_the_table_of_findings(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(case, f["level"], f["reason"], f["detail"]) for case in ALL for f in findings(case)]
    assert rows
    with capsys.disabled():
        print("\n\nPod Security findings")  # noqa: T201 - the table is what this is for
        for case, level, reason, detail in rows:
            print(f"  {case:20} {level:11} {reason:34} {detail}")  # noqa: T201
