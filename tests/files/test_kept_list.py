"""The last good device list on disk."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.files.test_disk import ODD, SECRET, Trap, odd
from vdpa_agent.config import FilesConfig
from vdpa_agent.files.kept_list import kept_device_list
from vdpa_agent.model.pci import PciAddress

pytestmark = pytest.mark.anyio

DEVICES = (PciAddress("0000:82:00.3"), PciAddress("0000:82:00.2"))


@pytest.fixture
def config(run_dir: Path) -> FilesConfig:
    (run_dir / "run").mkdir()
    return FilesConfig(socket_list=run_dir / "run" / "socketList.dat", pci_list=run_dir / "pciList.dat")


@pytest.fixture
def path(config: FilesConfig) -> Path:
    return config.socket_list.with_name(".pciList.last")


@pytest.mark.parametrize("devices", [DEVICES, ()])
async def test_what_is_kept_is_read_in_its_order_by_the_next_agent(
    config: FilesConfig, path: Path, devices: tuple[PciAddress, ...]
) -> None:
    await kept_device_list(config).keep(devices)
    assert path.stat().st_mode & 0o777 == 0o600
    assert await kept_device_list(config).read() == devices


async def test_nothing_is_written_where_it_is_so_already(config: FilesConfig, path: Path) -> None:
    kept = kept_device_list(config)
    await kept.keep(DEVICES)
    before = path.stat()
    await kept.keep(DEVICES)
    assert path.stat().st_ino == before.st_ino
    path.write_text("0000:82:00.7\n")
    await kept.keep(DEVICES)
    assert await kept.read() == DEVICES


async def test_without_a_kept_list_there_is_none(config: FilesConfig) -> None:
    with capture_logs() as logs:
        assert await kept_device_list(config).read() is None
    assert logs == []


async def test_one_that_makes_no_sense_is_none(config: FilesConfig, path: Path) -> None:
    path.write_text("garbage")
    with capture_logs() as logs:
        assert await kept_device_list(config).read() is None
    assert [(log["event"], log["reason"].partition(";")[0]) for log in logs] == [
        ("kept_list_unreadable", "line 1: 'garbage' is not a PCI address such as 0000:82:00.2")
    ]


@odd
async def test_what_is_no_file_is_neither_read_nor_written_and_logged_once(
    config: FilesConfig, path: Path, trap: Trap
) -> None:
    secret = path.parent.with_name("outside") / "secret"
    secret.parent.mkdir()
    secret.write_bytes(SECRET)
    trap(path, secret)
    kept = kept_device_list(config)
    with capture_logs() as logs:
        assert await kept.read() is None
        await kept.keep(DEVICES)
        await kept.keep(DEVICES)
    assert [log["event"] for log in logs] == ["kept_list_unreadable", "device_list_not_kept"]
    assert logs[0]["reason"] == ODD[trap]
    assert secret.read_bytes() == SECRET


async def test_a_failure_is_logged_again_after_it_worked(config: FilesConfig, path: Path) -> None:
    kept = kept_device_list(config)
    with capture_logs() as logs:
        for _ in range(2):
            path.mkdir()
            await kept.keep(DEVICES)
            path.rmdir()
            await kept.keep(DEVICES)
            path.unlink()
    assert [log["event"] for log in logs] == ["device_list_not_kept"] * 2
