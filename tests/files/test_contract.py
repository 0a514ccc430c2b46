"""Python and C read the same of a mapping, and Python reads what C writes."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.processes import built
from vdpa_agent.errors import FileRefused
from vdpa_agent.files.formats import decode_mapping

CONTRACT: Final = Path(__file__).parent.parent / "contract" / "mapping"


def _read_by_c(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    program = built("native-sanitized/tests/vdpad/mapping-check", "native-sanitized")
    return subprocess.run([program, *arguments], capture_output=True, check=False)


def _read_by_python(content: bytes) -> bytes | None:
    try:
        return "".join(f"{address} {path}\n" for address, path in decode_mapping(content)).encode()
    except FileRefused:
        return None


def _agree(path: Path) -> None:
    by_c = _read_by_c(str(path))
    assert by_c.stderr == b""
    expected = _read_by_python(path.read_bytes())
    if expected is None:
        assert by_c.stdout.startswith(b"refused: ")
        assert by_c.returncode == 1
    else:
        assert (by_c.stdout, by_c.returncode) == (expected, 0)


def test_every_contract_file() -> None:
    for path in CONTRACT.glob("*/*.dat"):
        _agree(path)


_VALUES = st.sampled_from(
    ["0000:82:00.2", "82:00.3", "0000:AF:1f.7", "10000:00:02.0", "0:0", "/v/vdpa-0", "/" + "x" * 106, "/" + "x" * 107]
)
_ENTRIES = st.lists(
    st.dictionaries(
        st.sampled_from(["pciAddress", "socketpath", "dpdkIndex"]), _VALUES | st.text() | st.integers() | st.none()
    ),
    max_size=4,
)


@settings(max_examples=150)
@given(_ENTRIES, st.integers(0, 400), st.binary(max_size=3), st.booleans())
def test_any_damage_to_a_mapping(entries: Sequence[object], place: int, damage: bytes, escaped: bool) -> None:  # noqa: FBT001
    content = bytearray(json.dumps(entries, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
    content[place : place + len(damage)] = damage
    path = Path(f"/dev/shm/vdpa-agent-contract-{id(content)}")
    path.write_bytes(content)
    try:
        _agree(path)
    finally:
        path.unlink()


def test_what_c_writes(tmp_path: Path) -> None:
    path = tmp_path / "socketList.dat"
    sockets = {"0000:82:00.2": "/v/vdpa-0", "10000:af:1f.7": '/v/with "quote" and \\ ü'}
    written = _read_by_c("--write", str(path), *[word for pair in sockets.items() for word in pair])
    assert (written.returncode, written.stderr) == (0, b"")
    assert dict(decode_mapping(path.read_bytes())) == sockets
