"""What is in the image, and what is not."""

import json
import os
import re
import stat
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.image.conftest import FOUR
from tests.image.containers import AGENT, FRONT, LOCKED, USER, container, podman
from tests.processes import ROOT, eventually, write_list
from vdpa_agent import __version__

UNCHECKED = 0b01
"""PEP 552: by hash, never compared with the source."""


def inside(root: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Each file of an image: its path in the image, its path here, what it is."""
    for path in root.rglob("*"):
        yield f"/{path.relative_to(root)}", path, path.lstat()


def sbom(files: Path, name: str) -> dict[str, str]:
    """The names and versions of an SBOM's components."""
    content: dict[str, Any] = json.loads((files / "usr/share/sbom" / name).read_text())
    assert (content["bomFormat"], content["specVersion"]) == ("CycloneDX", "1.6")
    return {component["name"]: component["version"] for component in content["components"]}


def test_no_file_can_be_changed_by_the_user_or_changes_the_user(files: Path) -> None:
    for name, _, status in inside(files):
        if stat.S_ISLNK(status.st_mode):
            continue
        assert not status.st_mode & (stat.S_ISUID | stat.S_ISGID), name
        if name == "/tmp":
            continue
        assert not status.st_mode & stat.S_IWOTH, name
        assert (status.st_uid, status.st_gid) == ((USER, USER) if name == "/run/vdpa" else (0, 0)), name


def test_no_shell_no_package_manager_no_compiler(files: Path) -> None:
    programs = {name for name, path, status in inside(files) if "/bin/" in name and stat.S_ISREG(status.st_mode)}
    assert {name for name in programs if not name.startswith("/opt/")} == {
        "/usr/bin/python3.13",
        "/usr/local/bin/vdpad",
    }
    assert "/opt/vdpa-agent/bin/vdpa-agent" in programs
    assert not list(files.rglob("*/pip/__init__.py")) + list(files.rglob("*/ensurepip/__init__.py"))


def test_every_program_and_library_finds_its_libraries(files: Path) -> None:
    (loader,) = files.glob("usr/lib/*/ld-linux*.so.*")
    seen = 0
    for name, path, status in inside(files):
        if not stat.S_ISREG(status.st_mode) or path.read_bytes()[:4] != b"\x7fELF":
            continue
        command = ["chroot", str(files), f"/{loader.relative_to(files)}", "--list", name]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert listed.returncode == 0, f"{name}: {listed.stderr}{listed.stdout}"
        assert "not found" not in listed.stdout, f"{name}: {listed.stdout}"
        seen += 1
    assert seen > 50


def test_what_http2_is_spoken_with_is_there(files: Path) -> None:
    # No other library names it, so the loader would not miss it.
    (library,) = files.glob("usr/lib/*/libnghttp2.so.14")
    assert library.resolve().is_file()


def test_all_python_is_compiled(files: Path) -> None:
    sources = [*files.glob("opt/vdpa-agent/lib/**/*.py"), *files.glob("usr/lib/python3.13/**/*.py")]
    assert len(sources) > 500
    for source in sources:
        (compiled,) = (source.parent / "__pycache__").glob(f"{source.stem}.cpython-313.pyc")
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == UNCHECKED, source


IMPORT_ALL = """
import importlib, pkgutil, sys
from google.protobuf.internal import api_implementation
import multidict._multidict, vdpa_agent, watchfiles._rust_notify
for module in pkgutil.walk_packages(vdpa_agent.__path__, "vdpa_agent."):
    # Tracing is an extra, and not in the image.
    if module.name not in ("vdpa_agent.__main__", "vdpa_agent.serve.tracing"):
        importlib.import_module(module.name)
print(api_implementation.Type(), *sorted(name for name in sys.modules if name.startswith("vdpa_agent.")))
"""


def test_every_module_imports_and_what_is_fast_is_used() -> None:
    program = ("--entrypoint=/opt/vdpa-agent/bin/python", AGENT, "-c", IMPORT_ALL)
    words = podman("run", "--rm", "--network=none", "--read-only", *program).split()
    assert words[0] == "upb"
    assert {"vdpa_agent.agent", "vdpa_agent.cli.client", "vdpa_agent.serve.pb.vdpadpdk_grpc"} <= set(words)


def test_the_daemon_has_the_drivers_of_real_nics(shared: Path) -> None:
    """Without --simulate: what it has mapped is what DPDK has loaded as its drivers."""
    write_list(shared / "pciList.dat", FOUR[:1])
    with container(AGENT, shared, "run", "--log-format=json") as agent:
        eventually("the daemon", lambda: agent.named("daemon_running"))
        (daemon,) = Path(f"/proc/{agent.pid()}/task/{agent.pid()}/children").read_text().split()
        maps = Path(f"/proc/{daemon}/maps").read_text()
    for driver in ("vdpa_ifc", "vdpa_mlx5", "vdpa_nfp", "vdpa_sfc", "bus_pci", "bus_auxiliary"):
        assert f"librte_{driver}.so" in maps
    assert "libmlx5.so" in maps


def test_labels_and_settings() -> None:
    image: dict[str, Any] = json.loads(podman("image", "inspect", AGENT))[0]
    config = image["Config"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = {name.removeprefix("org.opencontainers.image."): value for name, value in config["Labels"].items()}
    in_clone = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    head = in_clone.stdout.strip() or "unknown"
    assert (labels["title"], labels["version"], labels["licenses"]) == ("vdpa-agent", __version__, project["license"])
    assert labels["revision"].removesuffix("-dirty") == head
    assert {"description", "created", "base.name"} <= set(labels)
    assert (config["User"], config["StopSignal"]) == (f"{USER}:{USER}", "SIGTERM")
    assert (config["Entrypoint"], config["Cmd"]) == (["vdpa-agent"], ["run"])
    assert podman("run", "--rm", "--network=none", AGENT, "--version").split() == ["vdpa-agent", __version__]


def test_the_sboms_name_all_that_is_there(files: Path) -> None:
    installed = {}
    for paragraph in (files / "var/lib/dpkg/status").read_text().strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        installed[fields["Package"]] = fields["Version"]
    listed = sbom(files, "debian.cdx.json")
    assert {name: listed.get(name) for name in installed} == installed

    packages = {}
    for metadata in files.glob("opt/vdpa-agent/lib/python3.13/site-packages/*.dist-info/METADATA"):
        fields = dict(
            line.split(": ", 1) for line in metadata.read_text().partition("\n\n")[0].splitlines() if ": " in line
        )
        packages[fields["Name"]] = fields["Version"]
    assert sbom(files, "python.cdx.json") == packages
    assert packages["vdpa-agent"] == __version__
    locked = (ROOT / "requirements/runtime.txt").read_text()
    del packages["vdpa-agent"]
    assert {f"{name.replace('_', '-').lower()}=={version}" for name, version in packages.items()} <= set(locked.split())


def test_the_page_is_true(files: Path) -> None:
    page = (ROOT / "docs/image.md").read_text()
    assert set(LOCKED) <= set(page.split())
    (documented_mb,) = re.findall(r"^It is (\d+) MB", page, re.MULTILINE)
    size = sum(status.st_size for _, _, status in inside(files) if stat.S_ISREG(status.st_mode))
    assert abs(size / 1e6 - int(documented_mb)) < 3, f"{size} bytes"


def test_the_front_end_is_small_and_has_no_python() -> None:
    image: dict[str, Any] = json.loads(podman("image", "inspect", FRONT))[0]
    assert image["Config"]["User"] == f"{USER}:{USER}"
    assert image["Size"] < 10_000_000
