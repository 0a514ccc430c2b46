"""The two list formats, the mapping's from the contract files that the C tests read too."""

import json
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.formats import Form, decode_device_list, decode_mapping, decode_mapping_file, form_of

CONTRACT: Final = Path(__file__).parent.parent / "contract" / "mapping"


def _ids(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("valid/*.dat")), ids=_ids)
def test_valid_mapping(path: Path) -> None:
    lines = [f"{address} {socket}\n" for address, socket in decode_mapping(path.read_bytes())]
    assert "".join(lines) == path.with_suffix(".expected").read_text()


@pytest.mark.parametrize("path", sorted(CONTRACT.glob("invalid/*.dat")), ids=_ids)
def test_refused_mapping(path: Path) -> None:
    with pytest.raises(FileRefused):
        decode_mapping(path.read_bytes())


def test_the_contract_is_there() -> None:
    assert len(list(CONTRACT.glob("valid/*.dat"))) >= 8
    assert len(list(CONTRACT.glob("invalid/*.dat"))) >= 12


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            [{"pciAddress": "0000:82:00.2", "dpdkIndex": 0}],
            "entry 1: socketpath of '0000:82:00.2' is absent .*dpdkIndex",
        ),
        (
            [{"pciAddress": "82:0.2", "socketpath": "/a"}],
            "entry 1: '82:0.2' is not a PCI address",
        ),
        (
            [{"pciAddress": "82:00.2", "socketpath": "/a"}, {"pciAddress": "0000:82:00.2", "socketpath": "/b"}],
            "entry 2: pciAddress 0000:82:00.2 occurs twice",
        ),
        ([{"pciAddress": "82:00.2", "socketpath": "/" + "x" * 107}], "entry 1: socketpath '.*' has 108 bytes"),
        ([{"pciAddress": "82:00.2", "socketpath": "a"}], "entry 1: socketpath 'a' is not absolute"),
        ([{"pciAddress": "82:00.2", "socketpath": "/a\nb"}], "entry 1: socketpath .* control character"),
    ],
)
def test_a_refusal_names_the_entry_and_the_value(entries: list[object], said: str) -> None:
    with pytest.raises(FileRefused, match=said):
        decode_mapping(json.dumps(entries).encode())


def test_a_path_of_107_bytes_is_good() -> None:
    path = "/" + "ü" * 53
    assert len(path.encode()) == 107
    content = json.dumps([{"pciAddress": "82:00.2", "socketpath": path}]).encode()
    assert [socket for _, socket in decode_mapping(content)] == [path]


def test_device_list() -> None:
    content = b"\xef\xbb\xbf# VFs of ens1\r\n0000:82:00.2\r\n\n  82:00.3 # second\n0000:82:00.2\n0000:AF:00.0"
    assert decode_device_list(content) == (("0000:82:00.2", "0000:82:00.3", "0000:af:00.0"), 1)


def test_an_empty_device_list_is_a_list_of_nothing() -> None:
    assert decode_device_list(b"") == ((), 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"0000:82:00.2\n\nens1f0\n", "line 3: 'ens1f0' is not a PCI address"),
        (b"0000:82:00.2 0000:82:00.3\n", "line 1: "),
        (b"0000:82:00.2\n\xff\n", "line 2: byte 0xff is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "larger than 1048576 bytes"),
        (b"".join(b"%04x:00:00.0\n" % domain for domain in range(4097)), "line 4097: more than 4096 addresses"),
        (b"\x00", "line 1: "),
    ],
)
def test_refused_device_list(content: bytes, said: str) -> None:
    with pytest.raises(FileRefused, match=said):
        decode_device_list(content)


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (b"", Form.NOTHING),
        (b" \n\t", Form.NOTHING),
        (b"\n [", Form.JSON),
        (b"{", Form.JSON),
        (b"0000:82:00.2", Form.LINES),
        (b"# x", Form.LINES),
        (b" null\n", Form.JSON),
        (b"\xef\xbb\xbffalse", Form.JSON),
        (b'"text"', Form.JSON),
        (b"nullx", Form.LINES),
        (b"\xef\xbb\xbf82:00.2", Form.LINES),
        (b"\xff", Form.LINES),
    ],
)
def test_form(content: bytes, form: Form) -> None:
    assert form_of(content) is form


def test_the_null_of_go_is_told_what_a_mapping_of_nothing_is() -> None:
    with pytest.raises(FileRefused, match=r"one JSON value; a mapping of nothing is \[\]"):
        decode_mapping_file(b"null\n")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["pciAddress", "socketpath"]), inner),
)


_ADDRESS = (
    st.sampled_from(["0000:82:00.2", "82:00.3", "AF:1f.7", "0000:82:00.8", "82:0.2", "\u0660000:82:00.2", ""])
    | st.text()
)
_ENTRIES = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "pciAddress": _ADDRESS,
            "socketpath": st.sampled_from(["/v/a", "/v/b", "v", "/\n", "/" + "x" * 107, "/\ud800"])
            | st.text()
            | st.none(),
        },
    )
)
_LINES = st.lists(
    st.sampled_from([b"0000:82:00.2", b" 82:00.3 # x", b"#", b"\r", b"\xef\xbb\xbf", b"\xff"]) | st.binary()
)


@given(st.binary() | (_ENTRIES | _JSON).map(lambda value: json.dumps(value).encode()) | _LINES.map(b"\n".join))
def test_any_content_is_read_or_refused(content: bytes) -> None:
    for decode in (decode_mapping, decode_device_list):
        refusal = ""
        try:
            decode(content)
        except FileRefused as error:
            refusal = str(error)
        assert "\n" not in refusal
        assert len(refusal) < 400


@given(st.integers(0, 300))
def test_deep_nesting_is_refused(depth: int) -> None:
    with pytest.raises(FileRefused):
        decode_mapping(b"[" * (depth * 1000 + 1))
