"""Debian's Prometheus: it scrapes a running agent, loads the alert rules, and answers the dashboard's queries."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from tests.e2e.conftest import FOUR, simulated
from tests.kubelet.fake_kubelet import kubelet
from tests.processes import (
    ROOT,
    WITH_HTTP,
    AgentProcess,
    built,
    eventually,
    front_end,
    get_page,
    running,
    write_list,
)
from vdpa_agent.serve.http.metrics import DEVICE_POD, FAMILIES

FILES: Final = ROOT / "charts" / "vdpa-agent" / "files"
DASHBOARD: Final[dict[str, Any]] = json.loads((FILES / "dashboard.json").read_text())
RULES: Final = FILES / "rules.yaml"
PAGE: Final = (ROOT / "docs" / "metrics.md").read_text()

EMPTY: Final = {"Log lines dropped": "nobody drops log lines here; tests/e2e/test_metrics.py moves that counter"}
"""Panels without data, each with the reason."""


def promtool(
    *arguments: object, text: str | None = None, cwd: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    program = built("prometheus/usr/bin/promtool", "prometheus")
    return subprocess.run(
        [program, *map(str, arguments)],
        input=text,
        check=False,
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )


def alerts() -> dict[str, str]:
    """The alerts of the rules, each as the file has it."""
    found = re.findall(r"^      - alert: (\w+)\n((?:        .*\n|          .*\n)+)", RULES.read_text(), re.MULTILINE)
    return dict(found)


def test_the_rules_are_valid() -> None:
    checked = promtool("check", "rules", RULES)
    assert checked.returncode == 0, checked.stdout
    assert f"{len(alerts())} rules found" in checked.stdout


def test_the_rules_fire_when_they_should_and_only_then(run_dir: Path) -> None:
    tests = (ROOT / "tests" / "monitoring" / "rules.test.yaml").read_text()
    (run_dir / "rules.test.yaml").write_text(tests)
    (run_dir / "rules.yaml").write_text(RULES.read_text())
    tested = promtool("test", "rules", "rules.test.yaml", cwd=run_dir)
    assert tested.returncode == 0, tested.stdout
    assert set(re.findall(r"- alertname: (\w+)", tests)) == set(alerts())
    for alert, rule in alerts().items():
        # Without its trouble an alert is silent, and the tests notice.
        mute = re.sub(r"expr: .*", "expr: vector(0) > 1", rule)
        (run_dir / "rules.yaml").write_text(RULES.read_text().replace(rule, mute))
        assert promtool("test", "rules", "rules.test.yaml", cwd=run_dir).returncode != 0, alert


@pytest.mark.parametrize("alert", list(alerts()))
def test_each_alert_leads_to_its_entry_of_the_runbook(alert: str) -> None:
    url = re.search(r"runbook_url: (\S+)", alerts()[alert])
    assert url is not None
    page, _, anchor = url[1].partition("#")
    headings = re.findall(r"^### (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == alert.lower()
    assert alert in headings


@contextmanager
def prometheus(directory: Path, target: str, **scrape: Any) -> Iterator[str]:
    """A Prometheus that scrapes `target`, with further settings of that; its address."""
    (directory / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
                "rule_files": [str(RULES)],
                "scrape_configs": [{"job_name": "vdpa-agent", "static_configs": [{"targets": [target]}]} | scrape],
            }
        )
    )
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                built("prometheus/usr/bin/prometheus", "prometheus"),
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                "--web.listen-address=127.0.0.1:0",
            ],
            stdout=log,
            stderr=log,
            cwd=directory,
        )
    try:
        address = f"127.0.0.1:{eventually('a port', lambda: listening_port(process.pid))}"
        eventually("Prometheus", lambda: get_page(address, "/-/ready")[0] == 200)
        yield address
    finally:
        process.kill()
        process.wait()


def listening_port(pid: int) -> int | None:
    """The TCP port that a process listens on."""
    own = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            own.add(str(file.readlink()))
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, *_, inode = line.split()[:10]
        if state == "0A" and f"socket:[{inode}]" in own:
            return int(local.partition(":")[2], 16)
    return None


def query(address: str, expression: str) -> list[dict[str, Any]]:
    """What Prometheus answers now, without what is no number."""
    status, text = get_page(address, f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}")
    assert status == 200, text
    found = json.loads(text)["data"]["result"]
    return [sample for sample in found if math.isfinite(float(sample["value"][1]))]


def expanded(expression: str) -> str:
    """A query of the dashboard as Grafana would send it, with everything selected."""
    expression = expression.replace("$__rate_interval", "5m")
    for variable in DASHBOARD["templating"]["list"][1:]:
        expression = expression.replace(f"${variable['name']}", variable["allValue"])
    assert "$" not in expression
    return expression


def queries() -> list[tuple[str, str]]:
    """The dashboard's queries as Grafana would send them, each with the title of its panel."""
    return [
        (panel["title"], expanded(target["expr"]))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


def test_prometheus_answers_all_queries_of_the_dashboard(run_dir: Path) -> None:
    options = simulated("native", "native")
    (run_dir / "prometheus").mkdir()
    with (
        running(run_dir, *options, WITH_HTTP) as agent,
        prometheus(run_dir / "prometheus", agent.wait_logged("http_listening")["address"]) as address,
    ):
        eventually("a scrape", lambda: query(address, "vdpa_agent_ready"))
        trouble(agent)
        complaints = set(promtool("check", "metrics", text=agent.get("/metrics")[1]).stdout.splitlines())
        # The one thing that is not as promtool would like it: the label is spelled as the SR-IOV exporter spells it.
        spelling = "label names should be written in 'snake_case' not 'camelCase'"
        spelled = {family.name for family in FAMILIES if "pciAddr" in family.labels}
        assert complaints == {f"{name} {spelling}" for name in spelled - {DEVICE_POD.name}}  # no kubelet is here
        with front_end(agent.ask(FOUR[0]), "--rate=5000") as front:
            front.wait_passing()
            for title, expression in queries():
                if title not in EMPTY:
                    eventually(f"data of {title}: {expression}", partial(query, address, expression))
            names = {title for title, expression in queries() if not query(address, expression)}
        assert names == set(EMPTY)
        for variable in DASHBOARD["templating"]["list"][1:]:
            values = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert values is not None
            samples = eventually(f"values of {values[1]}", partial(query, address, expanded(values[1])))
            assert all(values[2] in sample["metric"] for sample in samples)
        eventually("an alert", lambda: query(address, 'ALERTS{alertname="VdpaPodWithoutDevice", alertstate="firing"}'))
        rules = json.loads(get_page(address, "/api/v1/rules")[1])["data"]["groups"][0]["rules"]
        assert {rule["name"] for rule in rules} == set(alerts())
        assert [rule["lastError"] for rule in rules if rule["health"] != "ok"] == []


def test_each_series_of_a_device_gets_its_pod_by_the_query_of_the_page(run_dir: Path) -> None:
    (expression,) = re.findall(
        r"^.* group_left \(namespace, pod, container\) vdpa_agent_device_pod$", PAGE, re.MULTILINE
    )
    (run_dir / "prometheus").mkdir()
    config = {"resourceList": [{"resourceName": "net", "simulated": 2}]}
    (run_dir / "config.json").write_text(json.dumps(config))
    # What the operator's PodMonitor adds to each target, among it the agent's own pod, and the chart's honorLabels.
    own = {"namespace": "kube-system", "pod": "vdpa-agent-x7k2p", "container": "vdpa-agent", "node": "node1"}
    with (
        kubelet(run_dir / "kubelet") as node,
        running(
            run_dir,
            *simulated("native", "native"),
            f"--resource-config={run_dir / 'config.json'}",
            f"--kubelet-dir={node.root}",
            WITH_HTTP,
        ) as agent,
    ):
        node.pods = [("apps", "web-0", "dpdk", "vdpa.io/net", ("ffff:00:00.1",))]
        agent.wait_metric("vdpa_agent_devices", 2, state="ready")
        target = agent.wait_logged("http_listening")["address"]
        labelled = [{"targets": [target], "labels": own}]
        with prometheus(run_dir / "prometheus", target, static_configs=labelled, honor_labels=True) as address:
            samples = eventually("the pod's series", partial(query, address, expression))
            found = {tuple(sample["metric"][name] for name in (*own, "pciAddr")) for sample in samples}
            assert found == {("apps", "web-0", "dpdk", "node1", "ffff:00:00.1")}
            # The other device is nobody's, and keeps the labels of its scrape.
            (ready,) = query(address, 'vdpa_agent_device_ready{pciAddr="ffff:00:00.0"}')
            assert ready["metric"]["pod"] == own["pod"]


def trouble(agent: AgentProcess) -> None:
    """Makes happen what only shows when something goes wrong."""
    write_list(agent.pci_list, ["nonsense"])
    agent.wait_logged("file_refused")
    write_list(agent.pci_list, FOUR)
    agent.wait_metric("vdpa_agent_ready", 1)
    os.kill(agent.daemon_pid(), signal.SIGKILL)
    agent.wait_logged("daemon_restart_waits")
    assert agent.ask(FOUR[0]) == ""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(agent.listen))
        agent.wait_metric("vdpa_agent_grpc_turned_away_total", 1, reason="preface")
    agent.wait_metric("vdpa_agent_devices", 4, state="ready")
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(agent.ask(FOUR[0]))
        stranger.sendall(bytes(12))
        agent.wait_metric("vdpa_agent_front_ends_refused_total", 1, pciAddr=FOUR[0], reason="request")
