"""Device lists in the mapping's place."""

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vdpa_agent.config import FilesConfig
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Content
from vdpa_agent.files.lists import Lists
from vdpa_agent.files.requests import Requests

REASON = "line 2: 'ens1' is not a PCI address such as 0000:82:00.2; write one address a line"


@pytest.fixture
def config(run_dir: Path) -> FilesConfig:
    return FilesConfig(socket_list=run_dir / "socketList.dat", pci_list=run_dir / "pciList.dat")


def _take(requests: Requests, config: FilesConfig, now: float = 0.0) -> Content:
    return requests.take(disk.find(config.socket_list), now)


def test_a_request_becomes_the_device_list_at_once(config: FilesConfig) -> None:
    config.pci_list.write_text("0000:82:00.7\n")
    config.socket_list.write_text("0000:82:00.2\n")
    assert _take(Requests(config), config) is None
    assert config.pci_list.read_text() == "0000:82:00.2\n"
    assert not config.socket_list.exists()


@pytest.mark.parametrize("content", ["[]", "", " \n", "{"])
def test_what_is_no_list_stays(config: FilesConfig, content: str) -> None:
    config.socket_list.write_text(content)
    assert _take(Requests(config), config) == content.encode()
    assert config.socket_list.read_text() == content


def test_a_malformed_request_is_put_aside_if_it_stays_so(config: FilesConfig) -> None:
    requests = Requests(config)
    config.socket_list.write_text("0000:82:00.2\nens1\n")
    with capture_logs() as logs:
        assert _take(requests, config, 10.0) is not None
        assert _take(requests, config, 10.9) is not None
        assert logs == []
        assert _take(requests, config, 11.0) is None
    assert [(log["event"], log["reason"]) for log in logs] == [("device_list_refused", REASON)]
    assert config.socket_list.with_name("socketList.dat.refused").read_text() == "0000:82:00.2\nens1\n"


def test_its_time_starts_anew_with_another_content_of_the_place(config: FilesConfig) -> None:
    requests = Requests(config)
    config.socket_list.write_text("ens1\n")
    _take(requests, config, 10.0)
    config.socket_list.write_text("[]")
    _take(requests, config, 10.5)
    config.socket_list.write_text("ens1\n")
    assert _take(requests, config, 11.1) == b"ens1\n"


def test_a_request_that_cannot_be_moved_stays_and_that_is_logged_once(config: FilesConfig) -> None:
    config.pci_list.mkdir()
    config.socket_list.write_text("0000:82:00.2\n")
    requests = Requests(config)
    with capture_logs() as logs:
        for now in range(5):
            assert _take(requests, config, now) == b"0000:82:00.2\n"
    assert [(log["event"], log["reason"]) for log in logs] == [
        ("device_list_not_moved", "pciList.dat is not a regular file; remove it")
    ]
    config.pci_list.rmdir()
    assert _take(requests, config, 9) is None


def test_a_mapping_that_came_in_the_requests_place_is_not_moved(config: FilesConfig) -> None:
    config.socket_list.write_text("0000:82:00.2\n")
    found = disk.find(config.socket_list)
    fresh = config.socket_list.with_name("fresh")
    fresh.write_text("[]")
    fresh.rename(config.socket_list)
    with capture_logs() as logs:
        Requests(config).take(found, 0)
    assert config.socket_list.read_text() == "[]"
    assert not config.pci_list.exists()
    assert logs == []


@pytest.mark.anyio
async def test_the_followed_place_is_free_again_after_a_malformed_request(config: FilesConfig) -> None:
    config.pci_list.write_text("0000:82:00.7\n")
    config.socket_list.write_text("0000:82:00.2\nens1\n")
    lists = Lists(config, takes_requests=True, shrink_settle_s=30, steps=Counter())
    with capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(lists.run())
            async with asyncio.timeout(20):
                while config.socket_list.exists():
                    await asyncio.sleep(0.01)
            following.cancel()
    assert [log["reason"] for log in logs if log["event"] == "device_list_refused"] == [REASON]
    assert lists.devices.value.value == ("0000:82:00.7",)


def test_a_request_without_any_device_takes_no_vf_away(config: FilesConfig) -> None:
    requests = Requests(config)
    config.pci_list.write_text("0000:82:00.7\n")
    config.socket_list.write_text("# nothing here\n")
    with capture_logs() as logs:
        _take(requests, config, 10.0)
        assert _take(requests, config, 11.0) is None
    assert [log["event"] for log in logs] == ["device_list_refused"]
    assert config.pci_list.read_text() == "0000:82:00.7\n"
