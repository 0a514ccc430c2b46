"""Last good contents, on virtual time."""

from collections import Counter
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vdpa_agent.errors import FileRefused
from vdpa_agent.files.disk import Content, Unreadable
from vdpa_agent.files.last_good import Caution, LastGood
from vdpa_agent.latest import Latest
from vdpa_agent.model.destructive import Destructive, DestructiveSteps
from vdpa_agent.model.loaded import ABSENT, Loaded


def _decode(content: bytes) -> str:
    if content == b"bad":
        message = "line 1: bad"
        raise FileRefused(message)
    return content.decode()


def _lost(old: str, new: str) -> int:
    return len(set(old) - set(new))


def _joined(old: str, new: str) -> str:
    return "".join(dict.fromkeys(old + new))


class _Watched:
    """A LastGood that is shown contents at given times."""

    def __init__(self, *, careful: bool = False, keeps_when_absent: bool = False) -> None:
        self.latest: Latest[Loaded[str]] = Latest(Loaded())
        self.steps: DestructiveSteps = Counter()
        self.file = LastGood(
            Path("/x"),
            self.latest,
            _decode,
            caution=Caution(30.0, _lost, _joined, self.steps) if careful else None,
            keeps_when_absent=keeps_when_absent,
        )

    def look(self, content: Content, now: float) -> float | None:
        return self.file.look(content, now)


@pytest.fixture
def watched() -> _Watched:
    return _Watched()


@pytest.fixture
def careful() -> _Watched:
    watched = _Watched(careful=True, keeps_when_absent=True)
    watched.look(b"abcd", 0)
    return watched


def test_a_good_content_counts_at_once(watched: _Watched) -> None:
    assert watched.look(b"a", 0) is None
    assert watched.latest.value == Loaded("a")


def test_a_refused_content_is_reported_only_when_it_stays_and_the_last_good_goes_on(watched: _Watched) -> None:
    watched.look(b"a", 0)
    assert watched.look(b"bad", 1) == pytest.approx(0.1)
    assert watched.latest.value == Loaded("a")
    assert watched.look(b"bad", 1.2) is None
    assert watched.latest.value == Loaded("a", "line 1: bad", refused=True)
    watched.look(b"b", 2)
    assert watched.latest.value == Loaded("b")


def test_a_torn_write_that_completes_is_never_reported(watched: _Watched) -> None:
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
    assert watched.latest.value == Loaded(None, ABSENT)


def test_a_file_that_comes_back_in_the_grace_was_never_gone(watched: _Watched) -> None:
    watched.look(b"a", 0)
    watched.look(None, 1)
    assert watched.look(b"a", 2) is None
    assert watched.look(None, 4) == pytest.approx(2)
    assert watched.latest.value == Loaded("a")


def test_a_file_that_never_was_is_absent_at_once_and_not_refused(watched: _Watched) -> None:
    assert watched.look(None, 0) is None
    assert watched.latest.value == Loaded(None, ABSENT, refused=False)


def test_some_last_good_contents_outlive_their_file() -> None:
    watched = _Watched(keeps_when_absent=True)
    watched.look(b"a", 0)
    watched.look(None, 1)
    watched.look(None, 9)
    assert watched.latest.value == Loaded("a", ABSENT)


def test_an_unreadable_file_is_a_refusal(watched: _Watched) -> None:
    watched.look(b"a", 0)
    watched.look(Unreadable("permission denied"), 1)
    watched.look(Unreadable("permission denied"), 2)
    assert watched.latest.value == Loaded("a", "permission denied", refused=True)


def test_a_fallback_counts_if_the_first_content_is_refused(watched: _Watched) -> None:
    watched.look(b"bad", 0)
    watched.file.fall_back("ab")
    assert watched.latest.value.value is None
    watched.look(b"bad", 1)
    assert watched.file.lacks_a_good_one
    watched.file.fall_back("ab")
    assert watched.latest.value == Loaded("ab", "line 1: bad", refused=True)
    watched.file.fall_back("cd")
    assert watched.latest.value.value == "ab"


@pytest.mark.parametrize("content", [None, b"", b"c"])
def test_a_fallback_does_not_count_where_the_file_is_absent_or_good(watched: _Watched, content: bytes | None) -> None:
    watched.look(content, 0)
    assert not watched.file.lacks_a_good_one
    watched.file.fall_back("ab")
    assert watched.latest.value.value == (None if content is None else content.decode())


def test_what_a_fallback_loses_is_a_loss_too() -> None:
    watched = _Watched(careful=True)
    watched.look(b"bad", 0)
    watched.look(b"bad", 1)
    watched.file.fall_back("abcd")
    assert watched.look(b"", 2) == pytest.approx(0.1)
    assert watched.look(b"", 3) == pytest.approx(29)


@pytest.mark.parametrize("content", [b"abc", b"ab", b"abx"])
def test_a_content_that_drops_up_to_half_must_only_settle(careful: _Watched, content: bytes) -> None:
    assert careful.look(content, 1) == pytest.approx(0.1)
    assert careful.latest.value == Loaded("abcd")
    assert careful.look(content, 1.11) is None
    assert careful.latest.value == Loaded(content.decode())
    assert not careful.steps


@pytest.mark.parametrize("content", [b"", b"a", b"wxyz"])
def test_a_content_that_drops_more_than_half_waits_and_what_is_new_counts_at_once(
    careful: _Watched, content: bytes
) -> None:
    meanwhile = _joined("abcd", content.decode())
    with capture_logs() as logs:
        assert careful.look(content, 1) == pytest.approx(0.1)
        assert careful.latest.value == Loaded(meanwhile)
        assert logs == []
        assert careful.look(content, 1.2) == pytest.approx(29.8)
        assert careful.latest.value.value == meanwhile
        assert "in 30 s unless it is written again" in careful.latest.value.problem
        assert not careful.latest.value.refused
        assert careful.look(content, 30.9) == pytest.approx(0.1)
        assert [(log["event"], log["before"], log["after"], log["wait_s"]) for log in logs] == [
            ("device_list_shrinks", 4, len(content), 30.0)
        ]
        assert careful.look(content, 31) is None
    assert [log["event"] for log in logs[1:]] == ["device_list_shrunk", "file_loaded"]
    assert careful.latest.value == Loaded(content.decode())
    assert careful.steps == {Destructive.LIST_SHRUNK: 1}


def test_the_problem_of_a_shrinking_list_is_in_words(careful: _Watched) -> None:
    careful.look(b"", 1)
    careful.look(b"", 2)
    assert careful.latest.value.problem == "the list was emptied: 4 devices go in 30 s unless it is written again"
    careful.look(b"a", 3)
    careful.look(b"a", 4)
    assert careful.latest.value.problem == (
        "the list lost 3 of its 4 devices: these go in 30 s unless it is written again"
    )


def test_an_emptied_list_that_is_written_again_loses_nothing(careful: _Watched) -> None:
    careful.look(b"", 1)
    careful.look(b"", 20)
    with capture_logs() as logs:
        assert careful.look(b"abcde", 29) is None
    assert careful.latest.value == Loaded("abcde")
    assert [log["event"] for log in logs] == ["file_loaded"]


def test_what_was_new_in_a_shrunk_list_goes_with_it_when_the_last_good_one_is_written_again(
    careful: _Watched,
) -> None:
    careful.look(b"x", 1)
    careful.look(b"x", 2)
    assert careful.latest.value.value == "abcdx"
    assert careful.look(b"abcd", 3) == pytest.approx(0.1)
    assert careful.look(b"abcd", 4) is None
    assert careful.latest.value == Loaded("abcd")


def test_after_a_list_has_shrunk_and_counts_a_small_loss_must_only_settle_again(careful: _Watched) -> None:
    careful.look(b"", 1)
    careful.look(b"", 2)
    careful.look(b"abcde", 3)
    assert careful.look(b"abcd", 4) == pytest.approx(0.1)
    assert careful.look(b"abcd", 5) is None
    assert careful.latest.value == Loaded("abcd")


def test_the_waiting_starts_anew_when_the_content_changes_and_is_logged_once(careful: _Watched) -> None:
    with capture_logs() as logs:
        careful.look(b"", 1)
        careful.look(b"", 2)
        careful.look(b"x", 20)
        assert careful.look(b"x", 21) == pytest.approx(29)
        assert careful.latest.value.value == "abcdx"
        assert careful.look(b"x", 40) == pytest.approx(10)
    assert [log["event"] for log in logs] == ["device_list_shrinks"]


def test_a_list_that_is_written_slowly_after_it_was_emptied_loses_nothing_on_the_way(careful: _Watched) -> None:
    now = 1.0
    for length in range(4):
        for _ in range(5):
            now += 0.1
            careful.look(b"abcd"[:length], now)
            assert careful.latest.value.value == "abcd"
    careful.look(b"abcd", now + 0.1)
    assert careful.latest.value == Loaded("abcd")


def test_a_list_written_in_place_drops_what_it_is_to_drop_soon(careful: _Watched) -> None:
    with capture_logs() as logs:
        careful.look(b"", 1)
        careful.look(b"abc", 1.01)
        assert careful.look(b"abc", 1.2) is None
    assert careful.latest.value == Loaded("abc")
    assert [log["event"] for log in logs] == ["file_loaded"]


def test_neither_absence_nor_garbage_makes_a_shrinking_list_count(careful: _Watched) -> None:
    careful.look(b"", 1)
    careful.look(b"", 2)
    careful.look(b"bad", 3)
    careful.look(b"bad", 60)
    assert careful.latest.value == Loaded("abcd", "line 1: bad", refused=True)
    careful.look(None, 61)
    careful.look(None, 90)
    assert careful.latest.value == Loaded("abcd", ABSENT)
    assert careful.look(b"", 100) == pytest.approx(0.1)
    assert careful.latest.value.value == "abcd"
