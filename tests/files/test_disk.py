"""Single files where others may have put anything in their place, on a real file system."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from vdpa_agent.errors import FileRefused
from vdpa_agent.files import disk
from vdpa_agent.files.disk import Found, Unreadable
from vdpa_agent.model.mapping import FILE_MAX_BYTES

SECRET: Final = b"root:x:0:0 secret\n"
NOT_REGULAR: Final = "not a regular file; put a file in its place"
ENDLESS: Final = "a symbolic link without an end; put a file in its place"
LEADS_OUT: Final = "a symbolic link that leads out of its directory; put a file in its place"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Somebody's file outside of the directory of the tests."""
    path = tmp_path / "outside" / "secret"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where the file belongs."""
    path = tmp_path / "run" / "file"
    path.parent.mkdir()
    return path


def _fifo(place: Path, _secret: Path) -> None:
    os.mkfifo(place)


def _directory(place: Path, _secret: Path) -> None:
    place.mkdir()


def _socket(place: Path, _secret: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(place))


def _absolute_link(place: Path, secret: Path) -> None:
    place.symlink_to(secret)


def _relative_link(place: Path, _secret: Path) -> None:
    place.symlink_to("../outside/secret")


def _link_by_a_directory(place: Path, secret: Path) -> None:
    (place.parent / "sub").symlink_to(secret.parent)
    place.symlink_to("sub/secret")


def _link_up_and_down(place: Path, _secret: Path) -> None:
    place.symlink_to("./../run/../outside/secret")


def _link_to_itself(place: Path, _secret: Path) -> None:
    place.symlink_to(place.name)


def _dangling_link(place: Path, secret: Path) -> None:
    place.symlink_to(secret.parent / "made")


def _dangling_link_beneath(place: Path, _secret: Path) -> None:
    place.symlink_to("made")


def _link_to_a_device(place: Path, _secret: Path) -> None:
    place.symlink_to("/dev/zero")


def _hard_link(place: Path, secret: Path) -> None:
    place.hardlink_to(secret)


Trap = Callable[[Path, Path], None]
ODD: Final[dict[Trap, str]] = {
    _fifo: NOT_REGULAR,
    _directory: NOT_REGULAR,
    _socket: NOT_REGULAR,
    _absolute_link: LEADS_OUT,
    _relative_link: LEADS_OUT,
    _link_by_a_directory: LEADS_OUT,
    _link_up_and_down: LEADS_OUT,
    _link_to_itself: ENDLESS,
    _dangling_link: LEADS_OUT,
    _dangling_link_beneath: "a symbolic link to a file that is not there; put a file in its place",
    _link_to_a_device: LEADS_OUT,
    _hard_link: "a file with 2 names (hard links); put a copy in its place",
}
odd = pytest.mark.parametrize("trap", ODD, ids=lambda trap: trap.__name__.strip("_"))


@odd
def test_what_is_no_file_of_its_directory_is_not_read(place: Path, secret: Path, trap: Trap) -> None:
    trap(place, secret)
    assert disk.read(place) == Unreadable(ODD[trap], odd=True)


@odd
def test_what_is_no_file_of_its_directory_is_not_replaced(place: Path, secret: Path, trap: Trap) -> None:
    trap(place, secret)
    before = place.lstat()
    with pytest.raises(FileRefused):
        disk.replace(place, b"new")
    assert place.lstat() == before
    assert secret.read_bytes() == SECRET
    assert [path.name for path in secret.parent.iterdir()] == ["secret"]


@odd
def test_what_is_no_file_of_its_directory_is_not_moved_nor_moved_over(place: Path, secret: Path, trap: Trap) -> None:
    trap(place, secret)
    other = place.with_name("other")
    with pytest.raises(FileRefused):
        disk.move(place, other)
    other.write_bytes(b"other")
    with pytest.raises(FileRefused):
        disk.move(other, place)
    assert other.read_bytes() == b"other"
    assert secret.read_bytes() == SECRET


@odd
def test_a_name_is_cleared_whatever_has_it(place: Path, secret: Path, trap: Trap) -> None:
    trap(place, secret)
    disk.clear(place)
    assert not os.path.lexists(place)
    assert secret.read_bytes() == SECRET
    disk.clear(place)


def test_a_directory_with_something_in_it_is_not_cleared(place: Path) -> None:
    place.mkdir()
    (place / "precious").touch()
    with pytest.raises(FileRefused, match="file is a directory with something in it; remove it"):
        disk.clear(place)
    assert (place / "precious").exists()


def test_a_link_beneath_the_directory_is_followed(place: Path) -> None:
    fresh = place.parent / "..2026" / "deep"
    fresh.mkdir(parents=True)
    (fresh / "file").write_bytes(b"content")
    (place.parent / "..data").symlink_to("..2026")
    place.symlink_to("..data/./deep/../deep//file")
    assert disk.read(place) == b"content"


@odd
def test_where_a_link_ends_obeys_the_same_rules(place: Path, secret: Path, trap: Trap) -> None:
    (place.parent / "beneath").mkdir()
    trap(place.with_name("end"), secret)
    place.symlink_to("beneath/../end")
    assert disk.read(place) == Unreadable(ODD[trap], odd=True)


def test_a_link_to_the_directory_itself_is_not_a_file(place: Path) -> None:
    (place.parent / "sub").mkdir()
    place.symlink_to("sub/..")
    assert disk.read(place) == Unreadable(NOT_REGULAR, odd=True)


def test_a_long_row_of_links_ends(place: Path) -> None:
    for number in range(100):
        (place.parent / f"link{number}").symlink_to(f"link{number + 1}")
    (place.parent / "link100").write_bytes(b"content")
    place.symlink_to("link70")
    assert disk.read(place) == b"content"
    place.unlink()
    place.symlink_to("link0")
    assert disk.read(place) == Unreadable(ENDLESS, odd=True)


@pytest.mark.parametrize("missing", ["run/file", "nowhere/file", "run/plain/file"])
def test_what_is_absent_is_no_problem(tmp_path: Path, place: Path, missing: str) -> None:
    place.with_name("plain").touch()
    assert disk.read(tmp_path / missing) is None


def test_a_huge_file_is_read_as_far_as_decides_that_it_is(place: Path) -> None:
    with place.open("wb") as file:
        file.truncate(2**40)
    content = disk.read(place)
    assert isinstance(content, bytes)
    assert len(content) == FILE_MAX_BYTES + 1


def test_a_file_with_no_name_left_is_read_and_known_as_such(place: Path, detached_mount: Path) -> None:
    place.write_bytes(b"content")
    found = disk.find(place)
    assert isinstance(found, Found)
    assert not found.detached
    found = disk.find(detached_mount)
    assert isinstance(found, Found)
    assert (found.content, found.detached) == (b"mounted", True)


def test_a_new_file_has_its_mode_less_the_umask_and_leaves_nothing_beside_it(place: Path) -> None:
    before = os.umask(0o027)
    try:
        disk.replace(place, b"1")
        disk.replace(place, b"2", mode=0o600)
        disk.replace(place.with_name("open"), b"3")
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in place.parent.iterdir()} == {"file": 0o600, "open": 0o640}
    assert place.read_bytes() == b"2"


def test_what_a_killed_write_left_goes_with_the_next(place: Path) -> None:
    place.with_name(".file.new").write_bytes(b"half")
    disk.replace(place, b"whole")
    assert [path.name for path in place.parent.iterdir()] == ["file"]
    assert place.read_bytes() == b"whole"


def test_what_fails_leaves_nothing_beside_it(place: Path) -> None:
    name = "n" * 252  # the temporary name is too long
    with pytest.raises(OSError, match="File name too long"):
        disk.replace(place.with_name(name), b"1")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            disk.replace(place, b"more than ten bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(place.parent.iterdir()) == []


def test_a_file_that_is_another_one_now_is_not_moved(place: Path) -> None:
    place.write_bytes(b"list")
    found = disk.find(place)
    assert isinstance(found, Found)
    fresh = place.with_name("fresh")
    fresh.write_bytes(b"mapping")
    fresh.rename(place)
    with pytest.raises(FileNotFoundError):
        disk.move(place, place.with_name("target"), only=found)
    assert place.read_bytes() == b"mapping"
    found = disk.find(place)
    assert isinstance(found, Found)
    disk.move(place, place.with_name("target"), only=found)
    assert place.with_name("target").read_bytes() == b"mapping"


FLIPPER = """
import os, sys
place, secret, hard = sys.argv[1], sys.argv[2], sys.argv[3] == "hard"
print("flips", flush=True)
while True:
    (os.link if hard else os.symlink)(secret, place + ".odd")
    os.rename(place + ".odd", place)
    with open(place + ".good", "w") as file:
        file.write("good")
    os.rename(place + ".good", place)
"""


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_whoever_is_quick_gets_no_secret_read(place: Path, secret: Path, kind: str) -> None:
    """What is in the file's place becomes a link to the secret and a file again, all the time."""
    place.write_text("good")
    command = [sys.executable, "-c", FLIPPER, str(place), str(secret), kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as flipper:
        try:
            assert flipper.stdout is not None
            assert flipper.stdout.readline()
            seen = {disk.read(place) for _ in range(20_000)}
        finally:
            flipper.kill()
    assert SECRET not in seen
    assert b"good" in seen
