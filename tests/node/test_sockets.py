"""The kernel's verdict on sockets: of other network namespaces, of strangers, of what is no socket at all."""

import socket
import subprocess
from pathlib import Path

import pytest

from tests.processes import eventually
from vdpa_agent.node.sockets import dead_sockets, remove_stale_sockets


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
