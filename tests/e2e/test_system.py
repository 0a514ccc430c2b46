"""What the system lacks is one line that says what mends it."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import FOUR
from tests.mounts import in_mount_namespace
from tests.processes import ROOT, running, write_list

NO_PROC = ("mount -t tmpfs x /proc", "no /proc is mounted; mount -t proc proc /proc")
MAKE_NULL = "rm -f /dev/null && mknod -m 666 /dev/null c 1 3"
NO_NULL = ("mount -t tmpfs x /dev", f"/dev/null is not there, or no device; {MAKE_NULL}")
FILE_AS_NULL = ("mount --bind /etc/hostname /dev/null", NO_NULL[1])


def _run(script: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = in_mount_namespace(script, sys.executable, "-m", "vdpa_agent", *map(str, arguments))
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("script", "said"), [NO_PROC, NO_NULL, FILE_AS_NULL])
def test_an_agent_ends_with_one_line(run_dir: Path, script: str, said: str) -> None:
    ended = _run(script, "run", f"--listen={run_dir}/s.sock", "--example-data")
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"vdpa-agent: {said}\n")
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "said"),
    [NO_PROC, NO_NULL, ("mount -t tmpfs x /sys", "no sysfs is mounted at /sys; mount -t sysfs sysfs /sys")],
)
def test_doctor_says_so(run_dir: Path, options: tuple[str, ...], script: str, said: str) -> None:
    write_list(run_dir / "pci-list", FOUR[:1])
    places = [f"--{name}={run_dir}/{name}" for name in ("socket-list", "pci-list", "socket-dir")]
    looked = _run(script, "doctor", f"--address={run_dir}/s.sock", *places, options[-1])
    problem, _, remedy = said.partition("; ")
    assert f"blocks  system         {problem}\n" in looked.stdout
    assert f"    fix: {remedy}\n" in looked.stdout
    assert (looked.returncode, looked.stderr) == (1, "")


def test_without_sysfs_the_daemon_says_so_in_one_line(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    said = "DPDK cannot start: /sys/devices/system/cpu: No such file or directory; mount -t sysfs sysfs /sys"
    with running(run_dir, *options, under=in_mount_namespace("mount -t tmpfs x /sys")) as agent:
        ended = agent.wait_logged("daemon_ended")
        assert ended["reason"] == f"exit code 1: {said}"
        assert len(agent.log.named("daemon_output")) == 1


def test_without_sysfs_nothing_is_known_of_a_device(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pci-list", FOUR[:1])
    places = [f"--{name}={run_dir}/{name}" for name in ("socket-list", "pci-list", "socket-dir")]
    looked = _run("mount -t tmpfs x /sys", "doctor", f"--address={run_dir}/s.sock", *places, options[-1])
    assert f"doubt   {FOUR[0]}   sysfs shows no PCI devices, so nothing is known of {FOUR[0]}\n" in looked.stdout
    assert "fix: mount -t sysfs sysfs /sys, or see --sysfs\n" in looked.stdout


def test_an_immutable_directory_is_not_blamed_on_a_capability(run_dir: Path, options: tuple[str, ...]) -> None:
    """Nobody asked for an owner."""
    directory = run_dir / "vhost"
    directory.mkdir()
    write_list(run_dir / "pciList.dat", FOUR[:1])
    subprocess.run(["chattr", "+i", directory], check=True)
    try:
        with running(run_dir, *options) as agent:
            reason = agent.wait_logged("device_failed")["reason"]
            made = "make its directory writable: chattr -i, if lsattr -d shows an i for it"
            assert reason == f"socket {directory}/vdpa-0 cannot be created: Operation not permitted; {made}"
            assert "chattr -i" in agent.wait_logged("socket_dir_not_locked")["reason"]
            subprocess.run(["chattr", "-i", directory], check=True)
            agent.wait_answer(FOUR[0], str(directory / "vdpa-0"))
            assert (directory / ".vdpa-agent.lock").stat().st_mode & 0o777 == 0o600
    finally:
        subprocess.run(["chattr", "-i", directory], check=True)


def test_who_may_give_sockets_to_nobody_is_still_told_the_capability(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR[:1])
    with running(
        run_dir, *options, "--socket-owner=65534", under=("setpriv", "--bounding-set=-chown", "--inh-caps=-chown")
    ) as agent:
        reason = agent.wait_logged("device_failed")["reason"]
        assert "give the capability CAP_CHOWN, or change --socket-owner and --socket-group" in reason
