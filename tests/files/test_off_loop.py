"""File work that does not end, or cannot begin."""

import asyncio
import errno
import threading
from pathlib import Path
from typing import Final

import pytest

from tests.hung import hung
from vdpa_agent.errors import FileRefused
from vdpa_agent.files.off_loop import OffLoop, Once

pytestmark = pytest.mark.anyio

PLACE: Final = Path("/run/file")


async def test_a_hung_file_system_is_refused_in_words_and_then_at_once_until_it_answers(tmp_path: Path) -> None:
    off_loop = OffLoop("test")
    path = tmp_path / "hung" / "file"
    path.parent.mkdir()
    with hung(path.parent):
        for _ in range(3):
            with pytest.raises(FileRefused, match=f"{path}: the file system does not answer within 3 s"):
                await off_loop.do(path.exists, path)
    async with asyncio.timeout(5):
        while True:
            try:
                assert not await off_loop.do(path.exists, path)
            except FileRefused:
                await asyncio.sleep(0.01)
            else:
                break


async def test_jobs_that_are_wanted_at_once_are_done_one_after_the_other() -> None:
    off_loop = OffLoop("test")
    running: list[int] = []

    def job() -> int:
        running.append(1)
        seen = len(running)
        threading.Event().wait(0.01)
        running.pop()
        return seen

    assert await asyncio.gather(*(off_loop.do(job, PLACE) for _ in range(5))) == [1] * 5


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EMFILE, "too many open files; raise the agent's limit of open files (ulimit -n)"),
        (errno.ENOSPC, "no space left on device; free some space"),
        (errno.EACCES, "permission denied; give the agent write permission"),
        (errno.EIO, "input/output error; see to the disk"),
    ],
)
async def test_a_failed_call_is_given_in_words_with_the_remedy(number: int, words: str) -> None:
    def job() -> None:
        raise OSError(number, "")

    with pytest.raises(FileRefused) as refusal:
        await OffLoop("test").do(job, PLACE)
    assert str(refusal.value) == words


def test_a_reason_is_new_once_until_it_works_again() -> None:
    once = Once()
    assert [once.is_new(reason) for reason in ("a", "a", "b", "a")] == [True, False, True, False]
    assert once.forget()
    assert not once.forget()
    assert once.is_new("a")


def test_reasons_without_number_are_not_remembered_for_ever() -> None:
    once = Once()
    for number in range(1000):
        assert once.is_new(str(number))
    assert len(once._known) <= 64
