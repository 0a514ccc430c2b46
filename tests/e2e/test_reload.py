"""The served mapping follows the file, whatever way it is written, within a second and never torn."""

import ctypes
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

from tests.e2e.conftest import FOUR
from tests.hung import hung
from tests.processes import WITH_HTTP, AgentProcess, mapping_text, running, write_atomically, write_list

A, B = "0000:82:00.2", "0000:82:00.3"
OLD: Final = {A: "/v/old-a", B: "/v/old-b"}
NEW: Final = {A: "/v/new-a", B: "/v/new-b"}
RIGHT_WITHIN_S: Final = 1.0
_MS_BIND: Final = 0x1000
_MNT_DETACH: Final = 2


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


def test_a_list_on_a_hung_file_system_holds_neither_answers_nor_the_end(run_dir: Path) -> None:
    hanging = run_dir / "hanging"
    hanging.mkdir()
    with hung(hanging), running(run_dir, f"--pci-list={hanging}/pciList.dat") as agent:
        write_atomically(agent.socket_list, mapping_text(OLD))
        agent.wait_answer(A, OLD[A])
        refusal = agent.wait_logged("file_refused", file=f"{hanging}/pciList.dat")
        assert refusal["reason"].startswith(f"{hanging}/pciList.dat: the file system does not answer within 3 s")
        write_atomically(agent.socket_list, mapping_text(NEW))
        agent.wait_answer(A, NEW[A])
        assert agent.stop() == 0


def test_a_run_directory_that_hangs_later_holds_neither_answers_nor_the_end(run_dir: Path) -> None:
    directory = run_dir / "lists"
    directory.mkdir()
    with running(run_dir, f"--socket-list={directory / 'socketList.dat'}") as agent:
        write_atomically(directory / "socketList.dat", mapping_text(OLD))
        agent.wait_answer(A, OLD[A])
        with hung(directory):
            agent.wait_logged("file_refused")
            assert agent.ask(A) == OLD[A]
            assert agent.stop() == 0


@pytest.mark.parametrize("limit", ["instances", "watches"])
def test_without_inotify_from_the_start_files_are_followed(run_dir: Path, limit: str) -> None:
    script = f'echo 0 >/proc/sys/user/max_inotify_{limit} && exec "$@"'
    write_atomically(run_dir / "socketList.dat", mapping_text(OLD))
    with running(run_dir, under=("unshare", "-Ur", "sh", "-c", script, "sh")) as agent:
        agent.wait_answer(A, OLD[A])
        agent.wait_logged("watch_interrupted")
        for content in (NEW, OLD, NEW):
            write_atomically(agent.socket_list, mapping_text(content))
            agent.wait_answer(A, content[A])
        assert len(agent.log.named("watch_interrupted")) == 1


def test_what_the_kernel_does_not_report_is_seen_all_the_same(run_dir: Path) -> None:
    """Something is mounted over the directory: inotify is silent about that."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory, other = run_dir / "lists", run_dir / "other"
    directory.mkdir()
    other.mkdir()
    write_atomically(directory / "socketList.dat", mapping_text(OLD))
    write_atomically(other / "socketList.dat", mapping_text(NEW))
    with running(run_dir, f"--socket-list={directory / 'socketList.dat'}") as agent:
        agent.wait_answer(A, OLD[A])
        if libc.mount(os.fsencode(other), os.fsencode(directory), None, _MS_BIND, None):
            pytest.skip(f"a bind mount needs root: {os.strerror(ctypes.get_errno())}")
        try:
            agent.wait_answer(A, NEW[A])
            write_atomically(other / "socketList.dat", mapping_text(OLD))
            agent.wait_answer(A, OLD[A], timeout_s=RIGHT_WITHIN_S)
        finally:
            libc.umount2(os.fsencode(directory), _MNT_DETACH)


def test_an_emptied_list_cuts_nobody_off_and_counts_if_it_stays_so(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options, "--drain-timeout=2", WITH_HTTP) as agent:
        for number, address in enumerate(FOUR):
            agent.wait_answer(address, str(run_dir / "vhost" / f"vdpa-{number}"))
        (run_dir / "pciList.dat").write_text("")
        warning = agent.wait_logged("device_list_shrinks")
        assert (warning["before"], warning["after"], warning["wait_s"]) == (4, 0, 2.0)
        assert all(agent.ask(address) for address in FOUR)
        agent.wait_logged("device_list_shrunk")
        for address in FOUR:
            agent.wait_answer(address, "")


def test_the_last_good_list_survives_a_restart_of_the_agent(run_dir: Path, options: tuple[str, ...]) -> None:
    write_list(run_dir / "pciList.dat", FOUR)
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
        (run_dir / "pciList.dat").write_text(f"garbage\n{FOUR[1]}\n")
        agent.wait_logged("file_refused")
    with running(run_dir, *options) as agent:
        agent.wait_answer(FOUR[3], str(run_dir / "vhost" / "vdpa-3"))
        assert agent.log.named("file_refused")[0]["reason"].startswith("line 1: 'garbage' is not a PCI address")
        assert agent.log.named("kept_list_used")
