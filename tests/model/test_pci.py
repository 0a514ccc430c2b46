"""PCI addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.errors import AddressError
from vdpa_agent.model.pci import PciAddress, function_number, parse_pci_address, shown


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("0000:82:00.2", "0000:82:00.2"),
        ("82:00.2", "0000:82:00.2"),
        ("0000:AF:1F.7", "0000:af:1f.7"),
        ("10000:00:02.0", "10000:00:02.0"),
        ("00000000:82:00.2", "0000:82:00.2"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert parse_pci_address(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0000:82:00",
        "0000:82:00.8",
        "0000:82:20.0",
        "000:82:00.2",
        "000000000:82:00.2",
        " 0000:82:00.2",
        "0000:82:00.2\n",
        "0000:82:00.٢",
        "vdpa-0",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(AddressError, match="is not a PCI address"):
        parse_pci_address(text)


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        address = parse_pci_address(text)
    except AddressError:
        return
    assert parse_pci_address(address) == address


def test_what_a_peer_sends_is_shown_short_and_printable() -> None:
    assert shown("a\x1b[31m\n" + "x" * 10_000) == "'a\\x1b[31m\\n" + "x" * 57 + "...'"


def test_functions_of_a_bus_are_numbered_one_after_the_other() -> None:
    addresses = [PciAddress(f"0000:82:{device:02x}.{function}") for device in range(32) for function in range(8)]
    assert [function_number(address) for address in addresses] == list(range(256))
