"""The library that HTTP/2 is spoken with: there, missing, and too old."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT
from vdpa_agent.rpc.nghttp2 import LIBRARY, load

REMEDY = "on Debian and Ubuntu the package libnghttp2-14"


def _run(*arguments: str, before: str = "", library_path: Path | None = None) -> tuple[int, str]:
    """Runs a command of the agent, after a command of the shell, in a mount namespace of its own."""
    command = [sys.executable, "-m", "vdpa_agent", *arguments]
    ran = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{before or ":"} && exec "$@"', "sh", *command],
        env={"LD_LIBRARY_PATH": str(library_path or ""), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=ROOT,
    )
    return ran.returncode, ran.stdout + ran.stderr


def _path() -> str:
    """Where the library is."""
    load()
    lines = Path("/proc/self/maps").read_text().splitlines()
    return next(line.split()[-1] for line in lines if LIBRARY.partition(".")[0] in line)


@pytest.fixture
def old(run_dir: Path) -> Path:
    """A directory with a library of that name that knows nothing but its version."""
    source = run_dir / "old.c"
    source.write_text(
        'static struct { int age, number; const char *version; } info = {1, 1, "1.20.0"};'
        "void *nghttp2_version(int least) { (void)least; return &info; }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", run_dir / LIBRARY, source], check=True)
    return run_dir


def test_a_library_that_is_missing_is_one_error_with_a_remedy(run_dir: Path) -> None:
    arguments = ("run", "--example-data", f"--listen={run_dir}/s", "--log-level=error")
    code, said = _run(*arguments, before=f"mount --bind /dev/null {_path()}")
    assert code == 1
    assert said.count("\n") == 1
    assert said.startswith(f"vdpa-agent: {LIBRARY} cannot be loaded: ")
    assert said.endswith(f"{REMEDY}\n")
    assert not (run_dir / "s").exists()


def test_one_that_is_too_old_likewise(run_dir: Path, old: Path) -> None:
    arguments = ("run", "--example-data", f"--listen={run_dir}/s", "--log-level=error")
    code, said = _run(*arguments, library_path=old)
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith(f"vdpa-agent: {LIBRARY} 1.20.0 is too old; install ")


BROKEN = {
    "is empty": "",
    "is a text": "INPUT(nothing)\n",
    "has no functions": "int other;",
    "has no version": "void *nghttp2_version(int least) { (void)least; return 0; }",
    "has a version without a text": (
        "static struct { int age, number; const char *version; } info = {1, 1, 0};"
        "void *nghttp2_version(int least) { (void)least; return &info; }"
    ),
    "lacks what sessions call": (
        'static struct { int age, number; const char *version; } info = {1, 1, "1.99\\x1b[2J"};'
        "void *nghttp2_version(int least) { (void)least; return &info; }"
        "void nghttp2_option_set_stream_reset_rate_limit(void) {}"
        "void nghttp2_option_set_max_continuations(void) {}"
    ),
}
"""What may have the name of the library, each made of this source or text."""


@pytest.mark.parametrize("source", BROKEN.values(), ids=BROKEN)
def test_what_is_another_library_or_none_is_one_line_with_a_remedy(run_dir: Path, source: str) -> None:
    library = run_dir / LIBRARY
    if ";" in source:
        file = run_dir / "broken.c"
        file.write_text(source)
        subprocess.run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{LIBRARY}", "-o", library, file], check=True)
    else:
        library.write_text(source)
    code, said = _run("run", "--example-data", f"--listen={run_dir}/s", "--log-level=error", library_path=run_dir)
    assert (code, said.count("\n")) == (1, 1), said
    assert said.startswith(f"vdpa-agent: {LIBRARY} ")
    assert said.endswith(f"{REMEDY}\n")
    assert said.strip().isprintable()


def test_doctor_says_so_too(run_dir: Path, old: Path) -> None:
    arguments = ("doctor", f"--address={run_dir}/s", f"--pci-list={run_dir}/p", f"--socket-list={run_dir}/m")
    _, good = _run(*arguments)
    assert re.search(rf"^ok +gRPC +{LIBRARY} {load().version}$", good, re.MULTILINE)
    code, said = _run(*arguments, library_path=old)
    assert code == 1
    assert re.search(rf"^blocks +gRPC +{LIBRARY} 1.20.0 is too old$", said, re.MULTILINE)
    assert REMEDY in said


def test_a_client_needs_none(run_dir: Path, old: Path) -> None:
    _, said = _run("get", "--timeout=1", f"--address={run_dir}/s", "0000:82:00.2", library_path=old)
    assert "nghttp2" not in said
    assert "no agent" in said or "not" in said
