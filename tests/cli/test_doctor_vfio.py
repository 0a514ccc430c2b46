"""What doctor finds of VFIO: its module, and its files as the daemon sees them."""

import os
from pathlib import Path
from typing import Final

import pytest

from tests.cli.nodes import NOBODY, OTHER, Node
from tests.processes import built, running
from tests.trees import VF

IN_A_MOUNT_NAMESPACE: Final = """
set -e
mkdir -p "$1/dev/vfio"
touch "$1/dev/null"
mount --bind /dev/null "$1/dev/null"
mkdir -p "$1/sys/devices/system/cpu"
mount --rbind /sys/devices/system/cpu "$1/sys/devices/system/cpu"
mount --rbind "$1/dev" /dev
mount --rbind "$1/sys" /sys
shift
exec "$@"
"""
"""Runs a command where /dev and /sys are what a directory has below it."""
WITHOUT_CAPABILITIES: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")


def test_the_module_of_vfio(node: Node) -> None:
    node.vf(driver="")
    found = node.doctor()
    modprobe = "modprobe vfio-pci  # at each boot: echo vfio-pci > /etc/modules-load.d/vfio-pci.conf"
    assert found.of("vfio", "doubt") == [
        f"the module vfio-pci is not loaded, so nothing can be bound to it => {modprobe}"
    ]
    node.vf(OTHER)
    assert node.doctor().of("vfio") == ["the module vfio-pci is loaded"]
    assert node.doctor("--simulate").of("vfio") == []


def test_mlx5_wants_no_vfio(node: Node) -> None:
    node.vf(driver="mlx5_core")
    for name, value in {"vendor": "0x15b3", "device": "0x101e"}.items():
        (node.tree.root / "bus/pci/devices" / VF / name).write_text(value)
    found = node.doctor()
    assert (found.code, found.of("vfio")) == (0, [])


class Host(Node):
    """A node whose sysfs is at /sys, with a /dev beside it, as a process sees them in a mount namespace of its own."""

    def files(self, container: int | None, group: int | None) -> None:
        """Makes VFIO's files with these modes; None: there is no such file."""
        directory = self.directory / "dev/vfio"
        directory.mkdir(parents=True, exist_ok=True)
        for name, mode in {"vfio": container, "41": group}.items():
            (directory / name).unlink(missing_ok=True)
            if mode is not None:
                (directory / name).touch()
                (directory / name).chmod(mode)

    def namespace(self, *command: str) -> tuple[str, ...]:
        return ("unshare", "--mount", "sh", "-c", IN_A_MOUNT_NAMESPACE, "sh", str(self.directory), *command)


@pytest.fixture
def host(run_dir: Path) -> Host:
    run_dir.chmod(0o755)
    return Host(run_dir)


NO_FILE: Final = (
    "is not there => give the container /dev/vfio, as hostDevices of the chart; without a container: udevadm trigger"
)
RULE: Final = 'chown nobody /dev/vfio/41  # for good by udev: SUBSYSTEM=="vfio", OWNER="nobody"'


@pytest.mark.parametrize(
    ("container", "group", "told"),
    [
        (0o666, 0o666, []),
        (None, None, [f"/dev/vfio/vfio {NO_FILE}"]),
        (0o666, None, [f"/dev/vfio/41 {NO_FILE}"]),
        (
            0o600,
            0o666,
            ["nobody may not read and write /dev/vfio/vfio, mode 0600 of root:root => chmod 0666 /dev/vfio/vfio"],
        ),
        (0o666, 0o600, [f"nobody may not read and write /dev/vfio/41, mode 0600 of root:root => {RULE}"]),
        (0o666, 0o644, [f"nobody may not read and write /dev/vfio/41, mode 0644 of root:root => {RULE}"]),
    ],
)
def test_the_files_of_vfio(host: Host, container: int | None, group: int | None, told: list[str]) -> None:
    host.vf()
    host.files(container, group)
    assert host.doctor("--sysfs=/sys", under=host.namespace(*NOBODY)).of(VF, "blocks") == told
    # A copy of sysfs says nothing of /dev.
    assert host.doctor(under=host.namespace(*NOBODY)).of(VF, "blocks") == []


def test_who_may_use_the_files_of_vfio(host: Host) -> None:
    host.vf()
    host.files(0o666, 0o660)
    group = host.directory / "dev/vfio/41"

    def blocked(*under: str) -> bool:
        return bool(host.doctor("--sysfs=/sys", under=host.namespace(*under)).of(VF, "blocks"))

    in_group = ("setpriv", "--reuid=65534", "--regid=65534", "--groups=4711", "--bounding-set=-all", "--inh-caps=-all")
    assert not blocked()
    assert blocked(*in_group)
    os.chown(group, 1, 4711)
    assert not blocked(*in_group)
    assert not blocked()
    assert blocked(*WITHOUT_CAPABILITIES)  # root, as in a pod
    os.chown(group, 0, 4711)
    assert not blocked(*WITHOUT_CAPABILITIES)
    group.chmod(0o060)
    assert blocked(*WITHOUT_CAPABILITIES)  # the owner's bits count for the owner


def test_the_daemon_of_a_running_agent_must_open_the_files_of_vfio(host: Host) -> None:
    host.vf()
    host.files(0o666, 0o600)
    group = host.directory / "dev/vfio/41"
    os.chown(group, 1, 1)
    vdpad = built("native/vdpad/vdpad", "native")
    in_a_pod = host.namespace(*WITHOUT_CAPABILITIES)
    # doctor may do more than the daemon, and sees no file of VFIO's itself.
    elsewhere = host.namespace("sh", "-c", 'mount -t tmpfs none /dev/vfio && exec "$@"', "sh")
    with running(host.directory, "--memory=none", f"--vdpad={vdpad}", under=in_a_pod) as agent:
        agent.wait_logged("device_failed", device=VF)

        def told() -> list[str]:
            found = host.doctor("--sysfs=/sys", under=elsewhere).of(VF, "blocks")
            return [check for check in found if "/dev/vfio" in check]

        (wrong,) = told()
        assert wrong.startswith("root may not read and write /dev/vfio/41, mode 0600 of daemon:daemon => chown root ")
        os.chown(group, 0, 0)
        assert told() == []
        group.unlink()
        assert told() == [f"/dev/vfio/41 {NO_FILE}"]
