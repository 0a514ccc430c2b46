"""The served mapping follows the file, whatever way it is written, within a second and never torn."""

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.processes import AgentProcess, mapping_text, running, write_atomically

A, B = "0000:82:00.2", "0000:82:00.3"
OLD: Final = {A: "/v/old-a", B: "/v/old-b"}
NEW: Final = {A: "/v/new-a", B: "/v/new-b"}
RIGHT_WITHIN_S: Final = 1.0


@contextmanager
def _only_ever(agent: AgentProcess, allowed: set[str]) -> Iterator[None]:
    """Asks all the time; every answer must be one of those allowed."""
    seen: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            seen.add(agent.ask(A))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        done.set()
        asking.join()
    assert seen <= allowed


def _swap_config_map(directory: Path, content: str) -> None:
    """Replaces files as the kubelet does: a new directory, and a link to it that is renamed over the old one."""
    fresh = directory / f"..{time.monotonic_ns()}"
    fresh.mkdir()
    (fresh / "socketList.dat").write_text(content)
    (directory / "..new").symlink_to(fresh.name)
    (directory / "..new").rename(directory / "..data")
    if not (directory / "socketList.dat").is_symlink():
        (directory / "socketList.dat").symlink_to("..data/socketList.dat")


def _in_place(path: Path, content: str) -> None:
    path.write_text(content)


def _in_pieces(path: Path, content: str) -> None:
    with path.open("w") as file:
        for character in content:
            file.write(character)
            file.flush()


def _delete_and_create(path: Path, content: str) -> None:
    path.unlink()
    path.write_text(content)


def _recreate_directory(path: Path, content: str) -> None:
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    path.write_text(content)


def _replace_directory(path: Path, content: str) -> None:
    fresh = path.parent.with_name("fresh")
    fresh.mkdir()
    (fresh / path.name).write_text(content)
    path.parent.rename(path.parent.with_name(f"gone-{time.monotonic_ns()}"))
    fresh.rename(path.parent)


@pytest.mark.parametrize(
    "write",
    [write_atomically, _in_place, _in_pieces, _delete_and_create, _recreate_directory, _replace_directory],
    ids=["rename", "in-place", "in-pieces", "delete-and-create", "directory-recreated", "directory-replaced"],
)
def test_ways_to_write(run_dir: Path, write: Callable[[Path, str], None]) -> None:
    path = run_dir / "lists" / "socketList.dat"
    path.parent.mkdir()
    path.write_text(mapping_text(OLD))
    with running(run_dir, f"--socket-list={path}") as agent:
        agent.wait_answer(A, OLD[A])
        with _only_ever(agent, {OLD[A], NEW[A]}):
            write(path, mapping_text(NEW))
            agent.wait_answer(A, NEW[A], timeout_s=RIGHT_WITHIN_S)
        # Once more: the watch must have followed whatever was replaced.
        write_atomically(path, mapping_text(OLD))
        agent.wait_answer(B, OLD[B], timeout_s=RIGHT_WITHIN_S)
        # And again, when the agent does nothing but wait: it may have been about to read by itself the first time.
        time.sleep(0.1)
        write(path, mapping_text(NEW))
        agent.wait_answer(A, NEW[A], timeout_s=RIGHT_WITHIN_S)
        assert not agent.log.named("file_refused")


def test_config_map_swaps(run_dir: Path) -> None:
    directory = run_dir / "config"
    directory.mkdir()
    _swap_config_map(directory, mapping_text(OLD))
    with running(run_dir, f"--socket-list={directory / 'socketList.dat'}") as agent:
        agent.wait_answer(A, OLD[A])
        with _only_ever(agent, {OLD[A], NEW[A]}):
            for content in (NEW, OLD) * 5:
                _swap_config_map(directory, mapping_text(content))
                agent.wait_answer(A, content[A], timeout_s=RIGHT_WITHIN_S)


def test_a_torn_file_that_stays_keeps_the_last_good_mapping(run_dir: Path) -> None:
    with running(run_dir) as agent:
        write_atomically(agent.socket_list, mapping_text(OLD))
        agent.wait_answer(A, OLD[A])
        with _only_ever(agent, {OLD[A]}):
            agent.socket_list.write_text(mapping_text(NEW)[:-10])
            refusal = agent.wait_logged("file_refused")
        assert refusal["last_good_kept"] is True
        assert "not JSON" in refusal["reason"]
        assert len(agent.log.named("file_refused")) == 1
        write_atomically(agent.socket_list, mapping_text(NEW))
        agent.wait_answer(A, NEW[A], timeout_s=RIGHT_WITHIN_S)


def test_a_foreign_mapping_that_is_gone_for_good_is_served_no_more(run_dir: Path) -> None:
    with running(run_dir) as agent:
        write_atomically(agent.socket_list, mapping_text(OLD))
        agent.wait_answer(A, OLD[A])
        removed = time.monotonic()
        agent.socket_list.unlink()
        agent.wait_answer(A, "")
        assert time.monotonic() - removed > 1.9


def test_an_empty_array_is_a_mapping_of_nothing(run_dir: Path) -> None:
    with running(run_dir) as agent:
        write_atomically(agent.socket_list, mapping_text(OLD))
        agent.wait_answer(A, OLD[A])
        write_atomically(agent.socket_list, "[]")
        agent.wait_answer(A, "", timeout_s=RIGHT_WITHIN_S)
        assert not agent.log.named("file_refused")


def test_a_directory_that_comes_later_is_found(run_dir: Path) -> None:
    path = run_dir / "later" / "still" / "socketList.dat"
    with running(run_dir, f"--socket-list={path}") as agent:
        assert agent.ask(A) == ""
        path.parent.mkdir(parents=True)
        write_atomically(path, mapping_text(NEW))
        agent.wait_answer(A, NEW[A], timeout_s=2 * RIGHT_WITHIN_S)


def test_many_replacements_end_at_the_last(run_dir: Path) -> None:
    with running(run_dir) as agent:
        for number in range(500):
            write_atomically(agent.socket_list, json.dumps([{"pciAddress": A, "socketpath": f"/v/{number}"}]))
        agent.wait_answer(A, "/v/499", timeout_s=RIGHT_WITHIN_S)


def test_a_file_without_permission_is_named_with_the_remedy(run_dir: Path) -> None:
    if os.geteuid() == 0:
        # root reads everything: a directory in the file's place is as unreadable.
        (run_dir / "socketList.dat").mkdir()
        expected = "not a regular file; put a file in its place"
    else:
        (run_dir / "socketList.dat").touch(mode=0)
        expected = "permission denied; give the agent read permission"
    with running(run_dir) as agent:
        assert agent.wait_logged("file_refused")["reason"] == expected
