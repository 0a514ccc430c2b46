"""How the mapping of a dead daemon goes, and what comes in its place is kept."""

import os
import threading
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.files.conftest import NoDescriptors
from tests.files.test_disk import ODD, SECRET, Trap, odd
from tests.hung import hung
from tests.processes import mapping_text, write_atomically
from vdpa_agent.config import FilesConfig
from vdpa_agent.files.formats import decode_mapping
from vdpa_agent.files.mapping_file import MappingFile
from vdpa_agent.model.pci import PciAddress

pytestmark = pytest.mark.anyio

MAPPING = mapping_text({"0000:82:00.2": "/v/vdpa-0"})


@pytest.fixture
def config(run_dir: Path) -> FilesConfig:
    (run_dir / "run").mkdir()
    return FilesConfig(socket_list=run_dir / "run" / "socketList.dat", pci_list=run_dir / "run" / "pciList.dat")


@pytest.fixture
def aside(config: FilesConfig) -> Path:
    """Where the mapping is while it is judged."""
    return config.socket_list.with_name(".socketList.dat.retired")


def _names(config: FilesConfig) -> list[str]:
    return sorted(path.name for path in config.socket_list.parent.iterdir())


async def test_a_mapping_is_removed(config: FilesConfig) -> None:
    config.socket_list.write_text(MAPPING)
    with capture_logs() as logs:
        await MappingFile(config, takes_requests=True).retire()
        await MappingFile(config, takes_requests=True).retire()
    assert _names(config) == []
    assert logs == []


async def test_a_list_is_kept_as_the_device_list(config: FilesConfig) -> None:
    config.socket_list.write_text("0000:82:00.4\n")
    await MappingFile(config, takes_requests=True).retire()
    assert _names(config) == ["pciList.dat"]
    assert config.pci_list.read_text() == "0000:82:00.4\n"


async def test_a_malformed_list_is_put_aside(config: FilesConfig) -> None:
    config.socket_list.write_text("ens1\n")
    await MappingFile(config, takes_requests=True).retire()
    assert _names(config) == ["socketList.dat.refused"]


async def test_a_list_that_a_killed_agent_left_aside_is_found_again(config: FilesConfig, aside: Path) -> None:
    aside.write_text("0000:82:00.4\n")
    await MappingFile(config, takes_requests=True).retire()
    assert _names(config) == ["pciList.dat"]


async def test_a_list_that_is_older_than_the_device_list_is_superseded(config: FilesConfig, aside: Path) -> None:
    aside.write_text("0000:82:00.4\n")
    os.utime(aside, (1, 1))
    config.pci_list.write_text("0000:82:00.7\n")
    await MappingFile(config, takes_requests=True).retire()
    assert _names(config) == ["pciList.dat"]
    assert config.pci_list.read_text() == "0000:82:00.7\n"


@odd
async def test_whatever_is_left_aside_does_not_matter(config: FilesConfig, aside: Path, trap: Trap) -> None:
    secret = config.socket_list.parent.with_name("outside") / "secret"
    secret.parent.mkdir()
    secret.write_bytes(SECRET)
    trap(aside, secret)
    config.socket_list.write_text("0000:82:00.4\n")
    with capture_logs() as logs:
        await MappingFile(config, takes_requests=True).retire()
    assert [log for log in logs if log["log_level"] != "info"] == []
    assert set(_names(config)) - {"sub"} == {"pciList.dat"}
    assert secret.read_bytes() == SECRET


@odd
async def test_what_is_no_file_is_neither_moved_nor_removed_and_logged_once(config: FilesConfig, trap: Trap) -> None:
    secret = config.socket_list.parent.with_name("outside") / "secret"
    secret.parent.mkdir()
    secret.write_bytes(SECRET)
    trap(config.socket_list, secret)
    before = config.socket_list.lstat()
    file = MappingFile(config, takes_requests=True)
    with capture_logs() as logs:
        await file.retire()
        await file.retire()
    assert [(log["event"], log["reason"]) for log in logs] == [("mapping_not_retired", ODD[trap])]
    assert config.socket_list.lstat() == before
    assert secret.read_bytes() == SECRET


async def test_a_directory_with_something_in_it_is_named(config: FilesConfig, aside: Path) -> None:
    aside.mkdir()
    (aside / "precious").touch()
    config.socket_list.write_text(MAPPING)
    file = MappingFile(config, takes_requests=True)
    with capture_logs() as logs:
        await file.retire()
        await file.retire()
    assert [log["reason"] for log in logs] == [".socketList.dat.retired is a directory with something in it; remove it"]
    assert (aside / "precious").exists()


async def test_a_hung_file_system_holds_nobody(config: FilesConfig) -> None:
    file = MappingFile(config, takes_requests=True)
    with hung(config.socket_list.parent), capture_logs() as logs:
        await file.retire()
        await file.retire()
    assert [log["event"] for log in logs] == ["mapping_not_retired"]
    assert "does not answer within 3 s" in logs[0]["reason"]


@pytest.mark.parametrize("name", ["socketList.dat", ".socketList.dat.retired"])
async def test_what_cannot_be_read_now_may_be_a_list_and_stays(
    config: FilesConfig, no_descriptors: NoDescriptors, name: str
) -> None:
    path = config.socket_list.with_name(name)
    path.write_text("0000:82:00.4\n")
    file = MappingFile(config, takes_requests=True)
    with capture_logs() as logs, no_descriptors():
        await file.retire()
    assert [log["reason"] for log in logs] == ["too many open files; raise the agent's limit of open files (ulimit -n)"]
    assert _names(config) == [name]
    await file.retire()
    assert _names(config) == ["pciList.dat"]


SOCKETS = {PciAddress("0000:82:00.2"): "/v/vdpa-0", PciAddress("0000:82:00.3"): "/v/vdpa-1"}


@pytest.mark.parametrize("before", [None, MAPPING, "[]"])
async def test_a_mapping_is_written(config: FilesConfig, before: str | None) -> None:
    if before is not None:
        config.socket_list.write_text(before)
    assert await MappingFile(config, takes_requests=True).write(SOCKETS) == ""
    assert decode_mapping(config.socket_list.read_bytes()).sockets == SOCKETS
    assert _names(config) == ["socketList.dat"]
    assert await MappingFile(config, takes_requests=True).write({}) == ""
    assert len(decode_mapping(config.socket_list.read_bytes())) == 0


@pytest.mark.parametrize("content", ["", "{}", "0000:82:00.4\n", "[1]", "[{"])
async def test_what_is_no_mapping_is_never_replaced(config: FilesConfig, content: str) -> None:
    config.socket_list.write_text(content)
    assert "is not a mapping" in await MappingFile(config, takes_requests=True).write(SOCKETS)
    assert config.socket_list.read_text() == content
    assert _names(config) == ["socketList.dat"]


@odd
async def test_what_is_no_file_is_never_replaced(config: FilesConfig, run_dir: Path, trap: Trap) -> None:
    secret = run_dir / "secret"
    secret.write_bytes(SECRET)
    trap(config.socket_list, secret)
    before = [(path.name, path.lstat().st_ino) for path in config.socket_list.parent.iterdir()]
    assert await MappingFile(config, takes_requests=True).write(SOCKETS)
    assert [(path.name, path.lstat().st_ino) for path in config.socket_list.parent.iterdir()] == before
    assert secret.read_bytes() == SECRET


async def test_a_link_to_a_mapping_is_not_replaced(config: FilesConfig) -> None:
    config.socket_list.with_name("other").write_text(MAPPING)
    config.socket_list.symlink_to("other")
    assert "not a regular file" in await MappingFile(config, takes_requests=True).write(SOCKETS)
    assert config.socket_list.is_symlink()
    assert config.socket_list.read_text() == MAPPING


async def test_no_reader_finds_a_mapping_absent_or_torn_while_it_is_written(config: FilesConfig) -> None:
    file = MappingFile(config, takes_requests=True)
    await file.write(SOCKETS)
    ended = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not ended.is_set():
            seen.append(len(decode_mapping(config.socket_list.read_bytes())))

    reading = threading.Thread(target=read)
    reading.start()
    for _ in range(200):
        assert await file.write({}) == await file.write(SOCKETS) == ""
    ended.set()
    reading.join()
    assert set(seen) <= {0, 2}
    assert seen


async def test_no_list_is_lost_that_comes_while_a_mapping_is_written(config: FilesConfig) -> None:
    """Each list is taken, whether it comes before, while or after the mapping is written."""
    file = MappingFile(config, takes_requests=True)
    for number in range(200):
        await file.write(SOCKETS)
        wanted = f"0000:{number:02x}:00.0\n"
        plugin = threading.Thread(target=write_atomically, args=(config.socket_list, wanted))
        plugin.start()
        await file.write({})
        plugin.join()
        if not config.pci_list.exists():
            assert config.socket_list.read_text() == wanted
            config.socket_list.unlink()
        else:
            assert config.pci_list.read_text() == wanted
            config.pci_list.unlink()
