"""The names file: both forms, this boot and another, and all that may stand there instead."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.files.test_disk import ODD, SECRET, Trap, odd
from vdpa_agent.errors import FileRefused
from vdpa_agent.files.names import KeptNames, NamesFile, _decode
from vdpa_agent.model.pci import PciAddress

pytestmark = pytest.mark.anyio

A, B = PciAddress("0000:82:00.2"), PciAddress("0000:82:00.3")
NAMES = {B: "vdpa-7", A: "vdpa-0"}


@pytest.fixture
def path(run_dir: Path) -> Path:
    (run_dir / "run").mkdir()
    return run_dir / "run" / "socketNames.json"


def _file(path: Path, boot: str = "this") -> NamesFile:
    """The file as an agent of a boot sees it."""
    boot_id = path.parent.with_name(f"boot-{boot}")
    boot_id.write_text(f"{boot}\n")
    return NamesFile(path.with_name("socketList.dat"), boot_id=boot_id)


async def test_names_are_read_in_their_order_in_this_boot_and_another(path: Path) -> None:
    assert await _file(path).write(NAMES)
    this, other = await _file(path).read(), await _file(path, "other").read()
    assert (this, other) == (KeptNames(NAMES, this_boot=True), KeptNames(NAMES, this_boot=False))
    assert list(this.names) == list(other.names) == [B, A]


async def test_the_kernels_own_boot_counts(path: Path) -> None:
    await NamesFile(path).write(NAMES)
    assert await NamesFile(path).read() == KeptNames(NAMES, this_boot=True)
    assert json.loads(path.read_text())["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()


async def test_a_kernel_without_a_boot_id_has_one_boot(path: Path) -> None:
    file = NamesFile(path, boot_id=path.with_name("nowhere"))
    await file.write(NAMES)
    assert await file.read() == KeptNames(NAMES, this_boot=True)


async def test_the_older_form_is_read_and_counts_as_this_boot(path: Path) -> None:
    path.write_text('{"82:00.3": "vdpa-7", "0000:82:00.2": "vdpa-0"}')
    assert await _file(path).read() == KeptNames(NAMES, this_boot=True)
    assert not await _file(path).is_current(NAMES)


async def test_without_a_file_there_are_no_names(path: Path) -> None:
    with capture_logs() as logs:
        assert await _file(path).read() == KeptNames({}, this_boot=False)
    assert logs == []


async def test_it_is_current_until_somebody_else_changes_it(path: Path) -> None:
    file = _file(path)
    assert not await file.is_current(NAMES)
    await file.write(NAMES)
    assert await file.is_current(NAMES)
    assert not await file.is_current({A: "vdpa-0"})
    path.write_text(path.read_text().replace("vdpa-7", "vdpa-8"))
    assert not await file.is_current(NAMES)
    path.unlink()
    assert not await file.is_current(NAMES)
    assert await file.write(NAMES)
    assert await file.is_current(NAMES)
    assert not await _file(path, "other").is_current(NAMES)


REFUSED = {
    '{"0000:82:00.2": "../x"}': "entry 1: '../x' is not a name such as vdpa-0",
    '{"0000:82:00.2": "vdpa-1\\n"}': r"entry 1: 'vdpa-1\n' is not a name such as vdpa-0",
    '{"0000:82:00.2": "vdpa-01"}': "entry 1: 'vdpa-01' is not a name such as vdpa-0",
    '{"0000:82:00.2": "vdpa-00"}': "entry 1: 'vdpa-00' is not a name such as vdpa-0",
    '{"0000:82:00.2": "vdpa-1000000"}': "entry 1: 'vdpa-1000000' is not a name such as vdpa-0",
    '{"0000:82:00.2": "vdpa-\u0661"}': r"entry 1: 'vdpa-\u0661' is not a name such as vdpa-0",
    '{"0000:82:00.2": "vdpa-"}': "entry 1: 'vdpa-' is not a name such as vdpa-0",
    '{"0000:82:00.2": 7}': "entry 1: the name of 0000:82:00.2 is not a string",
    '{"0000:82:00.2": 1e999}': "entry 1: the name of 0000:82:00.2 is not a string",
    '{"0000:82:00.2": ["vdpa-1"]}': "entry 1: the name of 0000:82:00.2 is not a string",
    '{"0000:82:00.2": ' + "[" * 900 + "]" * 900 + "}": "entry 1: the name of 0000:82:00.2 is not a string",
    '{"ens1": "vdpa-1"}': "entry 1: 'ens1' is not a PCI address such as 0000:82:00.2",
    '{"0000:82:00.2": "vdpa-1", "0000:82:00.3": "vdpa-1"}': "entry 2: vdpa-1 occurs twice",
    '{"0000:82:00.2": "vdpa-1", "82:00.2": "vdpa-2"}': "entry 2: 0000:82:00.2 occurs twice",
    '{"0000:82:00.2": "vdpa-1", "0000:82:00.2": "vdpa-2"}': "entry 2: 0000:82:00.2 occurs twice",
    '{"boot_id": "b", "names": {"0000:82:00.2": "vdpa-01"}}': "entry 1: 'vdpa-01' is not a name such as vdpa-0",
    '{"boot_id": "b", "names": []}': "it is not an object of addresses and names",
    '{"boot_id": 7, "names": {}}': "it is not an object of addresses and names",
    '{"boot_id": ["b"], "names": {}}': "it is not an object of addresses and names",
    "[]": "it is not an object of addresses and names",
    "7": "it is not an object of addresses and names",
    "": "not JSON: Expecting value",
    '{"0000:82:00.2": ': "not JSON: Expecting value",
    '{"0000:82:00.2": ' + "9" * 10000 + "}": "not JSON: ",
    "[" * 100_000: "it is nested too deeply",
    '{"a":' * 100_000: "it is nested too deeply",
    " " * (1024 * 1024 + 1): "it is larger than 1048576 bytes",
}


@pytest.mark.parametrize("content", REFUSED, ids=lambda content: content[:60])
async def test_what_makes_no_sense_is_refused_as_a_whole_and_logged_once(path: Path, content: str) -> None:
    path.write_text(content)
    file = _file(path)
    with capture_logs() as logs:
        for _ in range(2):
            assert await file.read() == KeptNames({}, this_boot=False)
    assert [log["event"] for log in logs] == ["names_unreadable"]
    assert REFUSED[content] in logs[0]["reason"]
    assert await file.write(NAMES)
    assert await file.read() == KeptNames(NAMES, this_boot=True)


async def test_bytes_that_are_not_utf_8_are_named(path: Path) -> None:
    path.write_bytes(b'{"0000:82:00.2": "\xed\xa0\x80"}')
    with capture_logs() as logs:
        await _file(path).read()
    assert [log["reason"] for log in logs] == ["byte 0xed at offset 18 is not UTF-8"]


async def test_a_huge_file_is_not_read_whole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)
    with capture_logs() as logs:
        assert await _file(path).read() == KeptNames({}, this_boot=False)
    assert [log["reason"] for log in logs] == ["it is larger than 1048576 bytes"]


@odd
async def test_what_is_no_file_is_neither_read_nor_replaced_and_logged_once(path: Path, trap: Trap) -> None:
    secret = path.parent.with_name("outside") / "secret"
    secret.parent.mkdir()
    secret.write_bytes(SECRET)
    trap(path, secret)
    file = _file(path)
    with capture_logs() as logs:
        for _ in range(2):
            assert await file.read() == KeptNames({}, this_boot=False)
            assert not await file.is_current(NAMES)
            assert not await file.write(NAMES)
    assert [log["event"] for log in logs] == ["names_unreadable", "names_not_written"]
    assert logs[0]["reason"] == ODD[trap]
    assert secret.read_bytes() == SECRET


@odd
async def test_what_an_earlier_write_seems_to_have_left_is_not_written_through(path: Path, trap: Trap) -> None:
    secret = path.parent.with_name("outside") / "secret"
    secret.parent.mkdir()
    secret.write_bytes(SECRET)
    trap(path.with_name(".socketNames.json.new"), secret)
    assert await _file(path).write(NAMES)
    assert secret.read_bytes() == SECRET
    assert [entry.name for entry in secret.parent.iterdir()] == ["secret"]


async def test_names_that_would_not_be_read_again_are_not_written(path: Path) -> None:
    file = _file(path)
    await file.write(NAMES)
    many = {PciAddress(f"{number:08x}:00:00.0"): f"vdpa-{number}" for number in range(40_000)}
    with capture_logs() as logs:
        assert not await file.write(many)
    assert [log["event"] for log in logs] == ["names_not_written"]
    assert await file.is_current(NAMES)


@given(st.binary(max_size=200) | st.text(max_size=100).map(lambda text: json.dumps({text: text}).encode()))
def test_no_content_is_a_surprise(content: bytes) -> None:
    try:
        names, boot_id = _decode(content)
    except FileRefused:
        return
    assert isinstance(names, dict)
    assert boot_id is None or isinstance(boot_id, str)
