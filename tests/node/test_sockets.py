"""The kernel's verdict on sockets: of other network namespaces, of strangers, of what is no socket at all."""

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.processes import eventually
from vdpa_agent.errors import SocketDirUnusable
from vdpa_agent.node.sockets import dead_sockets, lost_sockets, make_directory, remove_stale_sockets


def bound(path: Path, kind: int = socket.SOCK_STREAM) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    return made


def test_verdicts(tmp_path: Path) -> None:
    names = ("listens", "only-bound", "datagram", "stale", "file", "gone")
    paths = {name: str(tmp_path / name) for name in names}
    with bound(tmp_path / "listens") as listens, bound(tmp_path / "only-bound"):
        listens.listen()
        with bound(tmp_path / "datagram", socket.SOCK_DGRAM):
            bound(tmp_path / "stale").close()
            (tmp_path / "file").touch()
            (tmp_path / "link").symlink_to("listens")
            dead = dead_sockets([*paths.values(), str(tmp_path / "link"), "/nul\0", "/" + "x" * 200])
    assert dead == {
        paths["stale"]: f"nobody listens on {paths['stale']}",
        paths["file"]: f"nobody listens on {paths['file']}",
        paths["gone"]: f"the socket file {paths['gone']} is gone",
        "/nul\0": "the socket file /nul\0 is gone",
    }


def test_a_listener_notices_nothing(tmp_path: Path) -> None:
    with bound(tmp_path / "s") as listens:
        listens.listen()
        listens.settimeout(0)
        for _ in range(100):
            assert dead_sockets([str(tmp_path / "s")]) == {}
        with pytest.raises(BlockingIOError):
            listens.accept()


def test_another_network_namespace_is_alive_and_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "vdpa-0"
    code = f"import socket; s = socket.socket(1); s.bind({str(path)!r}); s.listen(); input()"
    with subprocess.Popen(["unshare", "-rn", "python3", "-c", code], stdin=subprocess.PIPE) as other:
        eventually("the other's socket", path.exists)
        assert dead_sockets([str(path)]) == {}
        assert remove_stale_sockets(tmp_path) == []
        assert path.exists()
        other.communicate(b"\n")
    assert remove_stale_sockets(tmp_path) == [str(path)]
    assert not path.exists()


def test_names_of_strangers_change_no_verdict(tmp_path: Path) -> None:
    dead = str(tmp_path / "dead")
    bound(Path(dead)).close()
    forged = f"x\n0000: 00000002 00000000 00010000 0001 01 1 {dead}".encode()
    with socket.socket(socket.AF_UNIX) as abstract, socket.socket(socket.AF_UNIX) as odd:
        abstract.bind(b"\0" + forged[:107])
        abstract.listen()
        odd.bind(b"\0x\na b c ZZ e f g h")
        odd.listen()
        assert dead in dead_sockets([dead])


def test_only_stale_sockets_of_ours_are_removed(tmp_path: Path) -> None:
    for name in (b"vdpa-1", b"vdpa-\xff\xfe", b"other"):
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(bytes(tmp_path) + b"/" + name)
    (tmp_path / "vdpa-file").touch()
    (tmp_path / "vdpa-link").symlink_to("other")
    with bound(tmp_path / "vdpa-2"):
        removed = remove_stale_sockets(tmp_path)
    assert sorted(removed) == [f"{tmp_path}/vdpa-1", f"{tmp_path}/vdpa-\udcff\udcfe"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "vdpa-2", "vdpa-file", "vdpa-link"]
    assert remove_stale_sockets(tmp_path / "absent") == []


def test_a_socket_of_another_file_is_lost_though_it_is_alive(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    with bound(paths[0]), bound(paths[1]), bound(paths[2]):
        files = {str(path): (path.stat().st_dev, path.stat().st_ino) for path in paths}
        assert lost_sockets(files) == {}
        assert lost_sockets(dict.fromkeys(files)) == {}
        swapped = {**files, str(paths[0]): files[str(paths[1])]}
        assert lost_sockets(swapped) == {str(paths[0]): f"another process replaced the socket file {paths[0]}"}
        paths[1].rename(tmp_path / "elsewhere")
        paths[1].symlink_to("elsewhere")
        paths[2].unlink()
        assert lost_sockets(files) == {
            str(paths[1]): f"another process replaced the socket file {paths[1]}",
            str(paths[2]): f"the socket file {paths[2]} is gone",
        }


def test_a_link_in_place_of_the_directory_is_not_followed(tmp_path: Path) -> None:
    beyond, link = tmp_path / "beyond", tmp_path / "vhost"
    beyond.mkdir()
    bound(beyond / "vdpa-0").close()
    link.symlink_to("beyond")
    assert remove_stale_sockets(link) == []
    assert (beyond / "vdpa-0").exists()
    with pytest.raises(SocketDirUnusable, match=r"it is a symbolic link; put a directory there"):
        make_directory(link)
    assert remove_stale_sockets(beyond) == [str(beyond / "vdpa-0")]


def test_what_stands_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, kind in (("file", "a regular file"), ("fifo", "a FIFO")):
        with pytest.raises(SocketDirUnusable, match=f"^--socket-dir .*/{name}: it is {kind}; put a directory there"):
            make_directory(tmp_path / name)
    below = tmp_path / "file" / "below"
    # The directory is named once, and what is in its way only where that is another one.
    reason = f"--socket-dir {below}: not a directory; the agent needs a directory that it can write to"
    with pytest.raises(SocketDirUnusable, match=f"^{re.escape(reason)}$"):
        make_directory(below)
