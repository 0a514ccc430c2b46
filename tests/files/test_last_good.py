"""Last good contents, on virtual time."""

from pathlib import Path

import pytest

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.last_good import Content, LastGood, Unreadable
from vdpa_agent.latest import Latest
from vdpa_agent.model.loaded import Loaded


def _decode(content: bytes) -> str:
    if content == b"bad":
        message = "line 1: bad"
        raise FileRefused(message)
    return content.decode()


class _Watched:
    """A LastGood that is shown contents at given times."""

    def __init__(self, *, drops: bool = False, keeps_when_absent: bool = False) -> None:
        self.latest: Latest[Loaded[str]] = Latest(Loaded())
        self._file = LastGood(
            Path("/x"),
            self.latest,
            _decode,
            drops=(lambda old, new: not set(old) <= set(new)) if drops else None,
            keeps_when_absent=keeps_when_absent,
        )

    def look(self, content: Content, now: float) -> float | None:
        return self._file.look(content, now, absence_grace_s=2.0)


@pytest.fixture
def watched() -> _Watched:
    return _Watched()


def test_a_good_content_counts_at_once(watched: _Watched) -> None:
    assert watched.look(b"a", 0) is None
    assert watched.latest.value == Loaded("a")


def test_a_refused_content_is_told_of_only_when_it_stays_and_the_last_good_goes_on(watched: _Watched) -> None:
    watched.look(b"a", 0)
    assert watched.look(b"bad", 1) == pytest.approx(0.1)
    assert watched.latest.value == Loaded("a")
    assert watched.look(b"bad", 1.2) is None
    assert watched.latest.value == Loaded("a", "line 1: bad")
    watched.look(b"b", 2)
    assert watched.latest.value == Loaded("b")


def test_a_torn_write_that_completes_is_never_told_of(watched: _Watched) -> None:
    watched.look(b"a", 0)
    watched.look(b"bad", 1)
    watched.look(b"b", 1.05)
    assert watched.latest.value == Loaded("b")


def test_an_absent_file_keeps_its_last_good_content_for_the_grace(watched: _Watched) -> None:
    watched.look(b"a", 0)
    assert watched.look(None, 1) == pytest.approx(2)
    assert watched.look(None, 2.5) == pytest.approx(0.5)
    assert watched.latest.value.value == "a"
    assert watched.look(None, 3) is None
    assert watched.latest.value == Loaded(None, "the file is not there")


def test_a_file_that_comes_back_in_the_grace_was_never_gone(watched: _Watched) -> None:
    watched.look(b"a", 0)
    watched.look(None, 1)
    assert watched.look(b"a", 2) is None
    assert watched.look(None, 4) == pytest.approx(2)
    assert watched.latest.value == Loaded("a")


def test_a_file_that_never_was_is_told_of_at_once(watched: _Watched) -> None:
    assert watched.look(None, 0) is None
    assert watched.latest.value == Loaded(None, "the file is not there")


def test_some_last_good_contents_outlive_their_file() -> None:
    watched = _Watched(keeps_when_absent=True)
    watched.look(b"a", 0)
    watched.look(None, 1)
    watched.look(None, 9)
    assert watched.latest.value == Loaded("a", "the file is not there")


def test_a_content_that_drops_something_must_settle() -> None:
    watched = _Watched(drops=True)
    watched.look(b"ab", 0)
    assert watched.look(b"", 1) == pytest.approx(0.1)
    assert watched.look(b"abc", 1.01) is None
    assert watched.latest.value == Loaded("abc")
    watched.look(b"c", 2)
    assert watched.latest.value == Loaded("abc")
    watched.look(b"c", 2.2)
    assert watched.latest.value == Loaded("c")


def test_an_unreadable_file_is_a_refusal(watched: _Watched) -> None:
    watched.look(b"a", 0)
    watched.look(Unreadable("permission denied"), 1)
    watched.look(Unreadable("permission denied"), 2)
    assert watched.latest.value == Loaded("a", "permission denied")
