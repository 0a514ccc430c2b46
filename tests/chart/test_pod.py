"""What the pod of the chart is allowed, given and asked."""

from typing import Any

import pytest

from tests.chart.render import ALL, container, daemon_set, objects, of_kind, pod_spec
from vdpa_agent.cli.parser import build_parser
from vdpa_agent.files.resource_config import decode_resource_config

UNPRIVILEGED = [case for case in ALL if case not in {"privileged.yaml", "pools.yaml", "sriov-config-map.yaml"}]


@pytest.mark.parametrize("case", UNPRIVILEGED)
def test_the_default_mode_has_no_privilege(case: str) -> None:
    spec = pod_spec(case=case)
    context = spec["containers"][0]["securityContext"]
    assert context["privileged"] is False
    assert context["allowPrivilegeEscalation"] is False
    assert context["readOnlyRootFilesystem"] is True
    assert context["capabilities"]["drop"] == ["ALL"]
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert spec["automountServiceAccountToken"] is False


def added(*arguments: str, case: str = "default.yaml") -> Any:
    return container(*arguments, case=case)["securityContext"]["capabilities"].get("add", [])


def test_each_capability_comes_with_what_needs_it() -> None:
    none = "resourceConfig=null"
    assert added() == ["IPC_LOCK", "DAC_OVERRIDE"]
    assert added(f"--set={none}") == ["IPC_LOCK"]
    assert added("--set=config.simulate=true") == ["DAC_OVERRIDE"]
    assert added("--set=config.exampleData=true") == []
    assert added("--set=config.daemon=none") == []
    # They would not reach a process of another user than root.
    assert added("--set=runAsUser=1000,devicePlugin.enabled=false") == []
    assert added(f"--set={none},config.simulate=true,config.socketOwner=107") == ["CHOWN", "FOWNER"]
    assert added(f"--set={none},config.simulate=true,extraCapabilities={{NET_RAW}}") == ["NET_RAW"]
    assert added(f"--set={none},config.simulate=true,config.vhostMode=client") == ["DAC_OVERRIDE"]
    server = '--set-json=resourceConfig={"resourceList":[{"resourceName":"net","vhostMode":"server"}]}'
    assert added(server) == ["IPC_LOCK"]
    assert added("--set=resourceConfigMap=pools", server) == ["IPC_LOCK", "DAC_OVERRIDE"]


def test_a_socket_group_is_a_group_of_the_process_and_needs_no_capability() -> None:
    arguments = "--set=resourceConfig=null,config.simulate=true,config.socketGroup=107,supplementalGroups={5}"
    assert pod_spec(arguments)["securityContext"] == {"supplementalGroups": [5, 107]}
    assert added(arguments) == []


def test_the_privileged_mode_mounts_the_device_files() -> None:
    spec = pod_spec(case="privileged.yaml")
    assert spec["containers"][0]["securityContext"]["privileged"] is True
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    unprivileged = {volume["hostPath"]["path"] for volume in pod_spec()["volumes"] if "hostPath" in volume}
    assert paths == {*unprivileged, "/dev/vfio"}


@pytest.mark.parametrize("case", ALL)
def test_the_run_directory_is_mounted_whole_under_its_own_path(case: str) -> None:
    for thing in of_kind("DaemonSet", objects(case=case)):
        spec = thing["spec"]["template"]["spec"]
        (run,) = (volume for volume in spec["volumes"] if volume["name"] == "run")
        assert run["hostPath"]["type"] == "DirectoryOrCreate"
        (mount,) = (mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "run")
        assert mount == {"name": "run", "mountPath": run["hostPath"]["path"]}


@pytest.mark.parametrize("case", ALL)
def test_the_agent_understands_its_arguments(case: str) -> None:
    for thing in of_kind("DaemonSet", objects(case=case)):
        (agent,) = thing["spec"]["template"]["spec"]["containers"]
        options = build_parser({}).parse_args(agent["args"])
        environment = {entry["name"]: entry["value"] for entry in agent["env"]}
        assert str(options.listen) == environment["VDPA_AGENT_ADDRESS"]


@pytest.mark.parametrize("case", ALL)
def test_the_kubelet_waits_longer_than_the_daemon_may_take(case: str) -> None:
    for thing in of_kind("DaemonSet", objects(case=case)):
        spec = thing["spec"]["template"]["spec"]
        grace = build_parser({}).parse_args(spec["containers"][0]["args"]).stop_grace
        assert spec["terminationGracePeriodSeconds"] >= grace + 5


def test_the_grace_that_the_chart_reckons_with_is_the_agents() -> None:
    default = build_parser({}).parse_args(["run"]).stop_grace
    assert pod_spec()["terminationGracePeriodSeconds"] == default + 10


@pytest.mark.parametrize(("size", "memory"), [("none", "none"), ("2Mi", "hugepages"), ("1Gi", "hugepages")])
def test_hugepages_are_taken_only_where_the_pod_has_some(size: str, memory: str) -> None:
    arguments = f"--set=hugepages.size={size},hugepages.amount=1Gi"
    agent = container(arguments)
    assert f"--memory={memory}" in agent["args"]
    limits = {name: value for name, value in agent["resources"]["limits"].items() if name.startswith("hugepages")}
    assert limits == ({} if size == "none" else {f"hugepages-{size}": "1Gi"})
    mounted = [mount["mountPath"] for mount in agent["volumeMounts"] if mount["name"] == "hugepages"]
    assert mounted == ([] if size == "none" else ["/dev/hugepages"])


def test_a_value_wins_over_what_is_derived() -> None:
    args = container("--set=config.memory=auto,config.listen=/run/x.sock,config.logFormat=null")["args"]
    assert "--memory=auto" in args
    assert "--listen=/run/x.sock" in args
    assert not [argument for argument in args if argument.startswith("--log-format")]


def test_numbers_are_written_out() -> None:
    agent = container(
        "--set-json=config.socketGroup=1000650000",
        "--set-json=config.drainTimeout=86400",
        "--set-json=config.holdTimeout=1.5",
    )
    assert {"--socket-group=1000650000", "--drain-timeout=86400", "--hold-timeout=1.5"} <= set(agent["args"])


def test_the_last_lines_of_a_failed_agent_are_its_message() -> None:
    assert container()["terminationMessagePolicy"] == "FallbackToLogsOnError"


def strategy(*arguments: str) -> Any:
    return daemon_set(*arguments)["spec"]["updateStrategy"]


def test_an_upgrade_ends_no_traffic_by_itself() -> None:
    assert strategy() == {"type": "OnDelete"}
    assert strategy("--set=config.vhostMode=client") == {"type": "RollingUpdate"}
    assert strategy("--set=config.daemon=none") == {"type": "RollingUpdate"}
    assert strategy("--set=updateStrategy.type=RollingUpdate") == {"type": "RollingUpdate"}


def test_a_digest_wins_over_a_tag() -> None:
    digest = "sha256:" + "a" * 64
    assert container("--set-string=image.repository=r/i,image.tag=1")["image"] == "r/i:1"
    assert container(f"--set-string=image.repository=r/i,image.tag=1,image.digest={digest}")["image"] == f"r/i@{digest}"


def test_pools_are_daemon_sets_that_differ_in_what_they_say() -> None:
    things = objects(case="pools.yaml")
    sets = {thing["metadata"]["name"]: thing["spec"] for thing in of_kind("DaemonSet", things)}
    assert set(sets) == {"vdpa-agent-intel", "vdpa-agent-nvidia", "vdpa-agent-tests"}
    selectors = [str(spec["selector"]) for spec in sets.values()]
    assert len(set(selectors)) == len(sets)
    for spec in sets.values():
        assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
        assert "--log-level=debug" in spec["template"]["spec"]["containers"][0]["args"]
    nodes = {name: spec["template"]["spec"]["nodeSelector"]["pool"] for name, spec in sets.items()}
    assert nodes == {"vdpa-agent-intel": "intel", "vdpa-agent-nvidia": "nvidia", "vdpa-agent-tests": "tests"}
    assert "--simulate" in sets["vdpa-agent-tests"]["template"]["spec"]["containers"][0]["args"]
    assert "--simulate" not in sets["vdpa-agent-intel"]["template"]["spec"]["containers"][0]["args"]
    assert len(of_kind("SecurityContextConstraints", things)) == len(sets)


def test_the_device_list_is_a_file_of_the_pod() -> None:
    things = objects(case="simulated.yaml")
    (devices,) = (thing for thing in of_kind("ConfigMap", things) if thing["metadata"]["name"].endswith("-devices"))
    assert devices["data"] == {"pciList.dat": "0000:82:00.2\n0000:82:00.3\n"}
    assert "--pci-list=/etc/vdpa-agent/pciList.dat" in container(case="simulated.yaml")["args"]


def mounts(*arguments: str, case: str = "default.yaml") -> dict[str, Any]:
    """Where in the container each volume is, with the volume."""
    spec = pod_spec(*arguments, case=case)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("case", ["default.yaml", "simulated.yaml"])
def test_the_agent_takes_the_pools_of_the_values(case: str) -> None:
    (pools,) = (thing for thing in of_kind("ConfigMap", objects(case=case)) if "config.json" in thing["data"])
    config = decode_resource_config(pools["data"]["config.json"].encode(), simulate=case == "simulated.yaml")
    (pool,) = config.pools
    assert (pool.resource, pool.vhost_mode) == ("vdpa.io/net", "client")
    assert "--resource-config=/etc/vdpa-agent-pools/config.json" in container(case=case)["args"]
    assert mounts(case=case)["/etc/vdpa-agent-pools"]["configMap"] == {"name": pools["metadata"]["name"]}


def test_the_pool_of_a_new_install_takes_only_what_somebody_meant_for_a_vdpa_driver() -> None:
    (pools,) = (thing for thing in of_kind("ConfigMap", objects()) if "config.json" in thing["data"])
    (pool,) = decode_resource_config(pools["data"]["config.json"].encode(), simulate=False).pools
    assert pool.selectors
    for selector in pool.selectors:
        assert selector.drivers == ("vfio-pci",)
        assert len(selector.vendors) == len(selector.devices) == 1


def test_a_config_map_that_is_there_wins_over_the_values() -> None:
    things = objects(case="sriov-config-map.yaml")
    assert not of_kind("ConfigMap", things)
    there = mounts(case="sriov-config-map.yaml")
    assert there["/etc/vdpa-agent-pools"]["configMap"] == {"name": "sriovdp-config"}
    assert there["/var/lib/k0s/kubelet/device-plugins"]["hostPath"]["path"] == "/var/lib/k0s/kubelet/device-plugins"


def test_the_device_plugin_mounts_what_the_kubelet_has_for_plugins_and_nothing_else_of_it() -> None:
    of_kubelet = {path: volume["hostPath"] for path, volume in mounts().items() if path.startswith("/var/lib")}
    assert of_kubelet == {
        "/var/lib/kubelet/device-plugins": {"path": "/var/lib/kubelet/device-plugins", "type": "Directory"},
        "/var/lib/kubelet/pod-resources": {"path": "/var/lib/kubelet/pod-resources", "type": "DirectoryOrCreate"},
    }
    assert "--kubelet-dir=/var/lib/kubelet" in container()["args"]
    off = "--set=devicePlugin.enabled=false"
    assert not [path for path in mounts(off) if path.startswith("/var/lib")]
    assert not [argument for argument in container(off)["args"] if argument.startswith("--kubelet-dir")]
    assert "--resource-config=/etc/vdpa-agent-pools/config.json" in container(off)["args"]


def test_what_multus_reads_is_written_where_it_looks() -> None:
    directory = "/var/run/k8s.cni.cncf.io/devinfo/dp"
    assert f"--device-info-dir={directory}" in container()["args"]
    assert mounts()[directory]["hostPath"] == {"path": directory, "type": "DirectoryOrCreate"}
    assert directory not in mounts("--set=devicePlugin.enabled=false")


def test_one_set_of_pods_may_do_without_the_device_plugin() -> None:
    things = of_kind("DaemonSet", objects("--set=pools.a.devicePlugin.enabled=false", "--set=pools.b.runAsUser=0"))
    with_it = {
        thing["metadata"]["name"]: any("--kubelet-dir" in argument for argument in args)
        for thing in things
        for args in [thing["spec"]["template"]["spec"]["containers"][0]["args"]]
    }
    assert with_it == {"vdpa-agent-a": False, "vdpa-agent-b": True}


@pytest.mark.parametrize(
    "arguments", ["--set=config.exampleData=true", "--set=config.daemon=none", "--set=resourceConfig=null"]
)
def test_where_nothing_can_be_handed_out_the_kubelet_is_left_alone(arguments: str) -> None:
    args = container(arguments)["args"]
    assert not [word for word in args if word.startswith(("--kubelet-dir", "--resource-config", "--sysfs"))]
    assert list(mounts(arguments)) == ["/var/run/vdpa"]


def test_vfs_are_looked_for_in_the_sysfs_of_the_node() -> None:
    assert mounts()["/host/sys"]["hostPath"] == {"path": "/sys", "type": "Directory"}
    assert "--sysfs=/host/sys" in container()["args"]
    assert "/host/sys" not in mounts("--set=config.sysfs=/copy")
    assert "--sysfs=/copy" in container("--set=config.sysfs=/copy")["args"]


def test_security_context_constraints_allow_what_the_pod_asks_and_no_more() -> None:
    things = objects(case="openshift.yaml")
    (constraints,) = of_kind("SecurityContextConstraints", things)
    assert constraints["allowedCapabilities"] == added(case="openshift.yaml")
    assert constraints["allowedCapabilities"] == ["IPC_LOCK", "CHOWN", "FOWNER", "DAC_OVERRIDE"]
    assert constraints["allowPrivilegedContainer"] is False
    assert constraints["users"] == ["system:serviceaccount:network:vdpa-agent"]
    used = {next(key for key in volume if key != "name") for volume in pod_spec(case="openshift.yaml")["volumes"]}
    assert used <= set(constraints["volumes"])


def test_helm_test_asks_for_health_and_for_a_socket() -> None:
    (pod,) = of_kind("Pod", objects(case="simulated.yaml"))
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert [step["args"] for step in pod["spec"]["initContainers"]] == [["health", "--wait=60"]]
    assert [step["args"] for step in pod["spec"]["containers"]] == [["get", "0000:82:00.2"]]
    assert pod["spec"]["volumes"] == [{"name": "run", "hostPath": {"path": "/var/run/vdpa", "type": "Directory"}}]
