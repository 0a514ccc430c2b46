"""The real agent with its daemon, and a kubelet that a test can restart and ask: pods get their devices."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.kubelet.fake_kubelet import HEALTHY, UNHEALTHY, Kubelet, Plugin, kubelet
from tests.processes import WITH_HTTP, AgentProcess, eventually, front_end, running, write_atomically
from tests.trees import PF, Tree
from vdpa_agent.model.pci import PciAddress

A, B = "ffff:00:00.0", "ffff:00:00.1"
NET = "vdpa.io/net"
ALONE = ("--rate=2000", "--interval=0.1")


def configure(run_dir: Path, *pools: dict[str, Any]) -> str:
    path = run_dir / "config.json"
    given = pools or ({"resourceName": "net", "simulated": 2},)
    write_atomically(path, json.dumps({"resourceList": given}))
    return f"--resource-config={path}"


@pytest.fixture
def node(run_dir: Path) -> Iterator[Kubelet]:
    with kubelet(run_dir / "kubelet") as one:
        yield one


@pytest.fixture
def arguments(run_dir: Path, options: tuple[str, ...], node: Kubelet) -> tuple[str, ...]:
    return (*options, configure(run_dir), f"--kubelet-dir={node.root}", "--hold-timeout=8")


def registered(node: Kubelet, resource: str = NET, *, count: int = 1) -> Plugin:
    eventually(f"{resource} is registered {count} times", lambda: node.registrations.count(resource) >= count)
    return node.plugins[resource]


def offers(plugin: Plugin, devices: dict[str, str]) -> None:
    eventually(f"the list {devices}", lambda: plugin.lists and plugin.lists[-1] == devices)


def refused(plugin: Plugin, *addresses: str) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refusal:
        plugin.allocate(*addresses)
    return refusal.value.code(), refusal.value.details() or ""


def test_a_pod_gets_its_device_and_packets(run_dir: Path, arguments: tuple[str, ...], node: Kubelet) -> None:
    with running(run_dir, *arguments) as agent:
        plugin = registered(node)
        assert (plugin.request.version, plugin.request.resource_name) == ("v1beta1", NET)
        assert plugin.request.options.get_preferred_allocation_available
        assert plugin.options == plugin.request.options
        offers(plugin, {A: HEALTHY, B: HEALTHY})
        container = plugin.allocate(A)
        (mount,) = container.mounts
        assert (mount.container_path, mount.host_path, mount.read_only) == (
            f"/run/vdpa/{A}",
            str(run_dir / "devices" / A),
            True,
        )
        path = f"/run/vdpa/{A}/vhost.sock"
        info = json.loads(container.envs.pop("PCIDEVICE_VDPA_IO_NET_INFO"))
        assert info == {A: {"generic": {"deviceID": A}, "vhost-user": {"mode": "client", "path": path}}}
        assert dict(container.envs) == {
            "PCIDEVICE_VDPA_IO_NET": A,
            "VDPA_NET_SOCKET": path,
            "VDPA_NET_0_SOCKET": path,
        }
        assert dict(container.annotations) == {"vdpa.io/vdpa.io_net": A}
        with front_end(f"{mount.host_path}/vhost.sock", *ALONE) as front:
            front.wait_passing()
            assert front.stop()["lost"] == 0
        agent.wait_logged("devices_given", resource=NET, devices=[A])
        assert refused(plugin, "0000:82:00.2") == (
            grpc.StatusCode.NOT_FOUND,
            "0000:82:00.2 is not a device of vdpa.io/net",
        )
        assert refused(plugin, A, A)[0] is grpc.StatusCode.INVALID_ARGUMENT
        two = plugin.allocate(A, B)
        assert two.envs["PCIDEVICE_VDPA_IO_NET"] == f"{A},{B}"
        assert two.envs["VDPA_NET_1_SOCKET"] == f"/run/vdpa/{B}/vhost.sock"
        assert len(two.mounts) == 2
    assert not [path for path in node.directory.iterdir() if path.name != "kubelet.sock"]


def test_the_kubelet_knows_again_after_its_restarts(run_dir: Path, arguments: tuple[str, ...], node: Kubelet) -> None:
    with running(run_dir, *arguments) as agent:
        offers(registered(node), {A: HEALTHY, B: HEALTHY})
        node.restart()
        offers(registered(node, count=2), {A: HEALTHY, B: HEALTHY})
        node.make_directory_anew()
        plugin = registered(node, count=3)
        offers(plugin, {A: HEALTHY, B: HEALTHY})
        assert plugin.allocate(B).envs["PCIDEVICE_VDPA_IO_NET"] == B
        # It leaves this plugin alone, and does not say so.
        plugin.forget()
        offers(registered(node, count=4), {A: HEALTHY, B: HEALTHY})
        # Somebody takes the plugin's socket away.
        (node.directory / plugin.request.endpoint).unlink()
        offers(registered(node, count=5), {A: HEALTHY, B: HEALTHY})
        assert len(agent.log.named("daemon_started")) == 1


def test_a_kubelets_directory_that_was_removed_under_its_mount_takes_a_new_container(
    run_dir: Path, options: tuple[str, ...], node: Kubelet
) -> None:
    mounted = run_dir / "mounted"
    (mounted / "device-plugins").mkdir(parents=True)
    # As a container has it: the directory alone, in a mount namespace of its own.
    script = f'mount --bind {node.directory} {mounted}/device-plugins && exec "$@"'
    under = ("unshare", "--mount", "--propagation=private", "sh", "-ec", script, "container")
    arguments = (*options, configure(run_dir), f"--kubelet-dir={mounted}", WITH_HTTP)
    with running(run_dir, *arguments, under=under) as agent:
        registered(node)
        assert agent.get("/livez")[0] == 200
        node.make_directory_anew()
        eventually("the end of its life", lambda: agent.get("/livez")[0] == 503)
        assert f"the kubelet's directory {mounted}/device-plugins was removed" in agent.get("/livez?verbose")[1]
        agent.wait_logged("kubelet_not_found", reason="it was removed", remedy="only a new container can fix that")
    with running(run_dir, *arguments, under=under) as agent:
        registered(node, count=2)
        assert agent.get("/livez")[0] == 200


def test_an_agent_waits_for_a_kubelet(run_dir: Path, options: tuple[str, ...]) -> None:
    one = Kubelet(run_dir / "kubelet")
    with running(run_dir, *options, configure(run_dir), f"--kubelet-dir={one.root}") as agent:
        agent.wait_logged("kubelet_not_found", reason="no such file or directory")
        one.refuses = "the device plugin's resource name is not what I want"
        one.start()
        try:
            agent.wait_logged("kubelet_not_registered", reason=f"UNKNOWN: {one.refuses}")
            one.refuses = ""
            offers(registered(one), {A: HEALTHY, B: HEALTHY})
        finally:
            one.stop()


def test_a_restart_of_the_daemon_is_no_news_and_a_pod_waits_for_it(
    run_dir: Path, arguments: tuple[str, ...], node: Kubelet
) -> None:
    with running(run_dir, *arguments) as agent:
        plugin = registered(node)
        offers(plugin, {A: HEALTHY, B: HEALTHY})
        for life in range(3):
            os.kill(agent.daemon_pid(), signal.SIGKILL)
            agent.wait_logged("daemon_ended", count=life + 1)
            container = plugin.allocate(A)
            assert container.envs["PCIDEVICE_VDPA_IO_NET"] == A
            assert agent.ask(A), life
            assert (run_dir / "devices" / A / "vhost.sock").samefile(run_dir / "vhost" / "vdpa-0")
            agent.wait_logged("daemon_started", count=life + 2)
        assert plugin.lists == [{A: HEALTHY, B: HEALTHY}]


def test_devices_are_offered_while_they_start_and_no_longer_when_they_fail(
    run_dir: Path, arguments: tuple[str, ...], node: Kubelet
) -> None:
    with running(run_dir, *arguments, f"--devargs={B}=nonsense=1", "--hold-timeout=2") as agent:
        plugin = registered(node)
        eventually("a list", lambda: plugin.lists)
        assert plugin.lists[0] == {A: HEALTHY, B: HEALTHY}
        code, reason = refused(plugin, B)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert reason.startswith(f"{B} is failed: DPDK refused")
        agent.wait_logged("device_not_given", resource=NET, devices=[B])
        offers(plugin, {A: HEALTHY, B: UNHEALTHY})
        assert refused(plugin, A, B)[0] is grpc.StatusCode.UNAVAILABLE
        assert plugin.allocate(A).envs["PCIDEVICE_VDPA_IO_NET"] == A


def test_a_device_that_a_front_end_still_uses_is_not_given(
    run_dir: Path, arguments: tuple[str, ...], node: Kubelet
) -> None:
    with running(run_dir, *arguments, "--hold-timeout=2") as agent:
        plugin = registered(node)
        host_path = plugin.allocate(A).mounts[0].host_path
        with front_end(f"{host_path}/vhost.sock", *ALONE) as front:
            front.wait_passing()
            agent.wait_logged("front_end_connected", device=A)
            assert refused(plugin, A) == (grpc.StatusCode.UNAVAILABLE, f"a front end is still connected to {A}")
            front.stop()
        assert plugin.allocate(A).mounts


def test_in_client_mode_each_pod_gets_a_writable_directory_of_its_own(
    run_dir: Path, arguments: tuple[str, ...], node: Kubelet
) -> None:
    configure(run_dir, {"resourceName": "net", "simulated": 2, "vhostMode": "client"})
    with running(run_dir, *arguments) as agent:
        plugin = registered(node)
        (mount,) = plugin.allocate(A).mounts
        assert not mount.read_only
        socket = Path(mount.host_path) / "vhost.sock"
        with front_end(str(socket), "--server", "--connect-timeout=30", *ALONE) as front:
            front.wait_passing()
            front.stop()
        (Path(mount.host_path) / "left behind").write_text("x")
        mounted = os.open(mount.host_path, os.O_PATH)  # as the pod before may still have it
        try:
            agent.wait_logged("front_end_left", device=A)
            info = json.loads(plugin.allocate(A).envs["PCIDEVICE_VDPA_IO_NET_INFO"])
            assert info[A]["vhost-user"]["mode"] == "server"
            assert not os.path.samestat(os.fstat(mounted), Path(mount.host_path).stat())
            assert not list(Path(mount.host_path).iterdir())
        finally:
            os.close(mounted)


def test_pools_come_and_go(run_dir: Path, arguments: tuple[str, ...], node: Kubelet) -> None:
    with running(run_dir, *arguments) as agent:
        plugin = registered(node)
        other = {"resourceName": "other", "resourcePrefix": "example.com", "simulated": 1}
        configure(run_dir, {"resourceName": "net", "simulated": 1}, other)
        offers(plugin, {A: HEALTHY})
        offers(registered(node, "example.com/other"), {"ffff:01:00.0": HEALTHY})
        configure(run_dir, {"resourceName": "net", "simulated": 1})
        offers(node.plugins["example.com/other"], {})
        assert refused(node.plugins["example.com/other"], "ffff:01:00.0")[0] is grpc.StatusCode.NOT_FOUND
        configure(run_dir, {"resourceName": "net", "simulated": 1}, other)
        offers(node.plugins["example.com/other"], {"ffff:01:00.0": HEALTHY})
        agent.wait_logged("kubelet_registered", resource="example.com/other")
        assert plugin.lists == [{A: HEALTHY, B: HEALTHY}, {A: HEALTHY}]  # the other pool is no news here


def test_the_kubelet_gets_to_know_the_topology(run_dir: Path, arguments: tuple[str, ...], node: Kubelet) -> None:
    tree = Tree(run_dir / "sys")
    pfs = (PF, PciAddress("0000:82:00.1"), PciAddress("0000:03:00.0"))
    vfs: dict[str, str] = {}
    for number, pf in enumerate(pfs):
        tree.device(pf, "8086:1592", driver="ice", node=number // 2)
        for index in range(3):
            address = PciAddress(f"0000:9{number}:00.{index}")
            tree.vf(pf, index, address, node=number // 2)
            vfs[address] = HEALTHY
    configure(
        run_dir,
        {"resourceName": "net", "selectors": {"drivers": ["vfio-pci"], "rootDevices": list(pfs)}},
        {"resourceName": "hidden", "selectors": {"rootDevices": ["0000:77:00.0"]}, "excludeTopology": True},
    )
    with running(run_dir, *arguments, f"--sysfs={tree.root}"):
        plugin = registered(node)
        offers(plugin, vfs)
        assert plugin.nodes == {address: [0 if address < "0000:92" else 1] for address in vfs}
        chosen = plugin.preferred(list(vfs), 4)
        assert {address[:7] for address in chosen} == {"0000:90", "0000:91"}
        assert [address[:7] for address in sorted(chosen)].count("0000:90") == 2
        assert plugin.preferred(list(vfs), 2, ("0000:92:00.1",)) == ["0000:92:00.1", "0000:92:00.0"]


def test_multus_finds_the_socket_of_what_the_kubelet_gave(
    run_dir: Path, arguments: tuple[str, ...], node: Kubelet
) -> None:
    directory = run_dir / "devinfo" / "dp"
    with running(run_dir, *arguments, f"--device-info-dir={directory}") as agent:
        plugin = registered(node)
        plugin.allocate(A)
        # As it is written when the kubelet has its answer: Multus reads it next.
        said = json.loads((directory / f"vdpa.io-net-{A}-device.json").read_text())
        path = f"/run/vdpa/{A}/vhost.sock"
        assert said == {"type": "vhost-user", "version": "1.1.0", "vhost-user": {"mode": "client", "path": path}}
        os.kill(agent.daemon_pid(), signal.SIGKILL)
        agent.wait_logged("daemon_started", count=2)
        assert (directory / f"vdpa.io-net-{A}-device.json").exists()
    assert not list(directory.iterdir())


def test_it_shows_which_pod_has_which_device(run_dir: Path, arguments: tuple[str, ...], node: Kubelet) -> None:
    with running(run_dir, *arguments, WITH_HTTP) as agent:
        plugin = registered(node)
        offers(plugin, {A: HEALTHY, B: HEALTHY})
        assert "POD" in command(agent, "list", "-o", "wide")
        plugin.allocate(A)
        # A device of another plugin's resource, with an address that is none of ours, is nobody's business.
        node.pods = [
            ("apps", "web-0", "dpdk", NET, (A,)),
            ("apps", "db-0", "main", "intel.com/sriov", ("0000:aa:00.1",)),
        ]
        labels = {"namespace": "apps", "pod": "web-0", "container": "dpdk", "resource": NET, "pciAddr": A}
        eventually("its pod", lambda: agent.metric("vdpa_agent_device_pod", **labels) == 1)
        assert "db-0" not in agent.get("/metrics")[1]
        (line,) = (line for line in command(agent, "list", "-o", "wide").splitlines() if line.startswith(A))
        assert "  apps/web-0/dpdk  " in line
        (line,) = (line for line in command(agent, "top", "--once").splitlines() if line.startswith(A))
        assert "  apps/web-0/dpdk  " in line
        known = {device["pci_address"]: device for device in json.loads(command(agent, "list", "-o", "json"))}
        assert known[A]["owner"] == {"namespace": "apps", "pod": "web-0", "container": "dpdk"}
        assert not known[B].get("owner")
        node.pods = []
        eventually("nobody has it", lambda: agent.metric("vdpa_agent_device_pod", **labels) is None)


def command(agent: AgentProcess, *words: str) -> str:
    """What a command of ours prints."""
    asked = [sys.executable, "-m", "vdpa_agent", *words, f"--address={agent.listen}"]
    return subprocess.run(asked, check=True, capture_output=True, text=True, timeout=60).stdout


def test_an_agent_that_speaks_with_the_kubelet_carries_no_openssl(
    run_dir: Path, arguments: tuple[str, ...], node: Kubelet
) -> None:
    with running(run_dir, *arguments) as agent:
        registered(node)
        maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
        assert "libnghttp2" in maps
        assert "libssl" not in maps
        assert "libcrypto" not in maps
