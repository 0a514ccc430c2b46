"""What the chart makes of the agent's HTTP address: probes, a port, and what Prometheus and Grafana take."""

import json

import pytest
import yaml

from scripts.chart import CHART
from tests.chart.render import container, objects, of_kind, refusal
from tests.chart.test_versions import problems


@pytest.mark.parametrize("address", ["0.0.0.0:9917", "[::]:9918"])
def test_probes_are_by_http_where_the_kubelet_reaches_it(address: str) -> None:
    agent = container(f"--set=config.httpListen={address}")
    assert agent["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert agent["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert agent["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    assert agent["ports"] == [{"name": "http", "containerPort": int(address[-4:]), "protocol": "TCP"}]


@pytest.mark.parametrize("address", ["127.0.0.1:9917", "[::1]:9917", "localhost:9917", "null"])
def test_probes_are_commands_where_it_does_not(address: str) -> None:
    agent = container(f"--set=config.httpListen={address}")
    assert agent["startupProbe"]["exec"]["command"] == ["vdpa-agent", "status"]
    assert agent["livenessProbe"]["exec"]["command"] == ["vdpa-agent", "status"]
    assert agent["readinessProbe"]["exec"]["command"] == ["vdpa-agent", "health"]
    assert "ports" not in agent


def test_the_network_policy_opens_the_http_port_only() -> None:
    (policy,) = of_kind("NetworkPolicy", objects("--set=networkPolicy.enabled=true"))
    assert policy["spec"]["ingress"] == [{"ports": [{"port": 9917, "protocol": "TCP"}]}]
    assert policy["spec"]["egress"] == []
    (closed,) = of_kind("NetworkPolicy", objects("--set=networkPolicy.enabled=true,config.httpListen=null"))
    assert closed["spec"]["ingress"] == []


def test_the_pod_monitor_finds_the_port_of_every_pool() -> None:
    things = objects("--set=podMonitor.enabled=true", case="pools.yaml")
    (monitor,) = of_kind("PodMonitor", things)
    for thing in of_kind("DaemonSet", things):
        template = thing["spec"]["template"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        ports = [port["name"] for port in template["spec"]["containers"][0]["ports"]]
        assert [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]] == ports


@pytest.mark.parametrize("address", ["127.0.0.1:9917", "null"])
def test_a_pod_monitor_needs_an_address_that_others_reach(address: str) -> None:
    assert "needs config.httpListen" in refusal(f"--set=podMonitor.enabled=true,config.httpListen={address}")


def test_the_runbook_is_where_the_values_say() -> None:
    base = "https://git.example.com/vdpa-agent/blob/main/"
    things = objects(f"--set=prometheusRule.enabled=true,prometheusRule.runbookBaseUrl={base}")
    (rule,) = of_kind("PrometheusRule", things)
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert alerts
    for alert in alerts:
        expected = f"{base}docs/troubleshooting.md#{alert['alert'].lower()}"
        assert alert["annotations"]["runbook_url"] == expected


def test_the_rules_and_the_dashboard_are_those_of_the_files() -> None:
    things = objects("--set=prometheusRule.enabled=true,grafanaDashboard.enabled=true")
    (rule,) = of_kind("PrometheusRule", things)
    assert rule["spec"] == yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    assert problems("1.37.0", rule) == []
    (dashboard,) = (thing for thing in of_kind("ConfigMap", things) if "dashboard" in thing["metadata"]["name"])
    files = {name: json.loads(content) for name, content in dashboard["data"].items()}
    assert files == {"vdpa-agent.json": json.loads((CHART / "files" / "dashboard.json").read_text())}
