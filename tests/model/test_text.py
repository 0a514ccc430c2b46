"""What is not fit to print, wherever it comes from."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vdpa_agent.model.text import printable, printable_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("0000:82:00.2 läuft, 完了 ✓", "0000:82:00.2 läuft, 完了 ✓"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\r\n\tb\0\x7f", r"a\r\n\tb\x00\x7f"),
        ("\x85\x9b31m", r"\x85\x9b31m"),
        ("\u200e\u200f\u061c\u202a\u202e\u2066\u2069", r"\u200e\u200f\u061c\u202a\u202e\u2066\u2069"),
        ("\u2028\u2029\u200b\ufeff\U000e0001", r"\u2028\u2029\u200b\ufeff\U000e0001"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_no_character_at_all_gets_through_that_is_not_printable() -> None:
    assert printable("".join(map(chr, range(sys.maxunicode + 1)))).isprintable()


@given(st.text(), st.integers(0, 50))
def test_any_text_is_printed_on_one_short_line(text: str, most: int) -> None:
    printed = printable(text, most)
    printed.encode()
    assert printed.isprintable()
    assert len(printed) <= most
    assert printable(text).startswith(printed)


def test_lines_stay_and_none_begins_at_the_left() -> None:
    assert printable_lines("Traceback\n\x1b[31mforged\r\n") == "  Traceback\n  \\x1b[31mforged\\r\n  "
