"""Wrong values are refused, and the message says which and why."""

import shutil
from pathlib import Path

import pytest

from scripts.chart import CHART, key, run_options
from tests.chart.render import refusal, template

WRONG = [
    ("--set=confg.simulate=true", "additional properties 'confg' not allowed"),
    ("--set=config.simulat=true", "at '/config': additional properties 'simulat' not allowed"),
    ("--set=image.name=x", "at '/image': additional properties 'name' not allowed"),
    ("--set=pools.a.nodeSelectors.b=c", "at '/pools/a': additional properties 'nodeSelectors' not allowed"),
    ("--set=pools.a.pools.b.runAsUser=1", "at '/pools/a': additional properties 'pools' not allowed"),
    ("--set=pools.a.config.simulat=true", "at '/pools/a/config': additional properties 'simulat' not allowed"),
    ("--set-string=config.simulate=yes", "at '/config/simulate': got string, want null or boolean"),
    ("--set=config.socketMode=432", "at '/config/socketMode': got number, want null or string"),
    ("--set-string=config.socketMode=0999", "at '/config/socketMode': '0999' does not match pattern"),
    ("--set-string=config.listenMode=0460", "at '/config/listenMode': '0460' does not match pattern"),
    ("--set=config.readyWhen=some", "at '/config/readyWhen': value must be one of 'running', 'all-devices'"),
    ("--set=config.daemon=maybe", "at '/config/daemon': value must be one of 'auto', 'none', 'vdpad', 'command'"),
    ("--set=config.stopGrace=0", "at '/config/stopGrace': exclusiveMinimum: got 0, want 0"),
    ("--set=config.socketDir=vhost", "at '/config/socketDir': 'vhost' does not match pattern '^/'"),
    ("--set=config.socketGroup=qemu", "at '/config/socketGroup': got string, want null or integer"),
    ("--set=securityMode=restricted", "at '/securityMode': value must be one of 'default', 'privileged'"),
    ("--set=hugepages.size=4Mi", "at '/hugepages/size': value must be one of 'none', '2Mi', '1Gi'"),
    ("--set=hugepages.amount=64M", "at '/hugepages/amount': '64M' does not match pattern"),
    ("--set=image.digest=sha256:12", "at '/image/digest': 'sha256:12' does not match pattern"),
    ("--set=prometheusRule.runbookBaseUrl=docs", "at '/prometheusRule/runbookBaseUrl': 'docs' does not match pattern"),
    ("--set=deviceList={0000:82:00.9}", "at '/deviceList/0': '0000:82:00.9' does not match pattern"),
    ("--set=hostDevices={/etc}", "at '/hostDevices/0': '/etc' does not match pattern '^/dev/'"),
    ("--set=tolerations[0].operater=Exists", "at '/tolerations/0': additional properties 'operater' not allowed"),
    ("--set=probes.start.periodSeconds=1", "at '/probes': additional properties 'start' not allowed"),
    ("--set=pools.Upper.runAsUser=1", "'Upper' does not match pattern"),
    ("--set=devicePlugin.enable=true", "at '/devicePlugin': additional properties 'enable' not allowed"),
    ("--set=resourceConfig.resources=1", "at '/resourceConfig': additional properties 'resources' not allowed"),
    (
        "--set=resourceConfig.resourceList[0].vhostMode=both",
        "at '/resourceConfig/resourceList/0/vhostMode': value must be one of 'server', 'client'",
    ),
    ("--set=runAsUser=1000", "devicePlugin.enabled needs runAsUser 0, not 1000: the kubelet's directory is root's"),
    (
        "--set=terminationGracePeriodSeconds=9",
        "too short: the kubelet would kill the agent before its daemon has ended",
    ),
    ("--set=config.stopGrace=60,terminationGracePeriodSeconds=64", "give at least 5 more than config.stopGrace"),
]


@pytest.mark.parametrize(("argument", "message"), WRONG, ids=[argument for argument, _ in WRONG])
def test_it_is_refused(argument: str, message: str) -> None:
    assert message in refusal(argument)


def _devices(count: int) -> str:
    addresses = (f"0000:{0x80 + number // 256:02x}:{number // 8 % 32:02x}.{number % 8}" for number in range(count))
    return f"--set=config.isolation=device,deviceList={{{','.join(addresses)}}}"


@pytest.mark.parametrize(("limit", "enough"), [("512Mi", 49), ("1Gi", 106), ("73Mi", 1)])
def test_too_little_memory_for_a_daemon_for_each_device(limit: str, enough: int) -> None:
    memory = f"--set=resources.limits.memory={limit}"
    assert template(memory, _devices(enough)).returncode == 0
    assert f"resources.limits.memory {limit} is too little: with config.isolation device, {enough + 1} VFs need" in (
        refusal(memory, _devices(enough + 1))
    )
    shared = _devices(enough + 1).replace("isolation=device", "isolation=shared")
    assert template(memory, shared).returncode == 0


def test_just_long_enough_is_not_refused() -> None:
    assert template("--set=config.stopGrace=60,terminationGracePeriodSeconds=65").returncode == 0


@pytest.mark.parametrize(("value", "file"), [("prometheusRule", "rules.yaml"), ("grafanaDashboard", "dashboard.json")])
def test_a_file_that_is_not_there_is_told(tmp_path: Path, value: str, file: str) -> None:
    chart = shutil.copytree(CHART, tmp_path / "chart")
    (chart / "files" / file).unlink(missing_ok=True)
    assert f"{value}.enabled needs the chart's files/{file}, which is not there" in refusal(
        f"--set={value}.enabled=true", chart=chart
    )


def test_null_is_right_for_every_single_option() -> None:
    nulls = [f"--set=config.{key(action)}=null" for action in run_options() if action.default != []]
    assert template(*nulls).returncode == 0
