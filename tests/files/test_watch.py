"""What the kernel notes of directories, and when they are others than those that are watched."""

import select
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from vdpa_agent.files.watch import Watch


def _open_files() -> list[str]:
    files = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what the directory was read by
            files.append(str(descriptor.readlink()))
    return files


def _rings(watch: Watch) -> bool:
    return bool(select.select([watch.queue], [], [], 0)[0])


def test_changes_ring_and_what_readers_do_does_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Watch({tmp_path}) as watch:
        assert not _rings(watch)
        for change in (
            lambda: path.write_text("1"),
            lambda: path.chmod(0o600),
            lambda: path.rename(tmp_path / "other"),
            (tmp_path / "other").unlink,
        ):
            change()
            assert _rings(watch)
            assert watch.drain()
            assert not watch.drain()
        path.write_text("1")
        watch.drain()
        path.read_text()
        assert not _rings(watch)


def test_a_directory_that_was_removed_and_made_again_is_another_one(tmp_path: Path) -> None:
    """Its number may be given again at once, as ext4 does: only what is held keeps it."""
    directory = tmp_path / "run"
    directory.mkdir()
    with Watch({directory}) as watch:
        assert watch.is_current()
        for _ in range(10):
            shutil.rmtree(directory)
            directory.mkdir()
            assert _rings(watch)
            assert not watch.is_current()


def test_what_is_watched_is_held_open(tmp_path: Path) -> None:
    """The same, on a file system that does not give numbers again at once."""
    with Watch({tmp_path}):
        held = _open_files()
    assert {str(tmp_path), str(tmp_path.parent)} <= set(held)


@pytest.mark.parametrize("below", ["run", "not/yet/run"])
def test_a_directory_that_is_absent_rings_when_it_or_its_ancestor_comes(tmp_path: Path, below: str) -> None:
    with Watch({tmp_path / below}) as watch:
        (tmp_path / Path(below).parts[0]).mkdir()
        assert _rings(watch)
        assert not watch.is_current()


def test_a_replaced_directory_is_another_one(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    (tmp_path / "fresh").mkdir()
    with Watch({directory}) as watch:
        directory.rename(tmp_path / "gone")
        (tmp_path / "fresh").rename(directory)
        assert _rings(watch)
        assert not watch.is_current()


def test_it_leaves_no_descriptor_open(tmp_path: Path) -> None:
    before = len(_open_files())
    with Watch({tmp_path}):
        assert len(_open_files()) > before
    assert len(_open_files()) == before
    Watch({tmp_path})  # nobody waits for it any more
    assert len(_open_files()) == before
