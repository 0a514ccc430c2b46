"""Which Python the project is tested with."""

import subprocess
from pathlib import Path

import pytest

_DISTRIBUTION = "/usr/bin/python3"


def _find(*words: str, path: str = "/usr/bin:/bin") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["scripts/find-python", *words], capture_output=True, text=True, check=False, env={"PATH": path}
    )


def _fake(directory: Path, *, exit_code: int) -> str:
    """A program that looks like a Python of a pyenv: too old, or not there for this directory."""
    program = directory / "python3"
    program.write_text(f"#!/bin/sh\nexit {exit_code}\n")
    program.chmod(0o755)
    return str(program)


def test_distribution_comes_before_the_path(tmp_path: Path) -> None:
    _fake(tmp_path, exit_code=1)
    found = _find(path=f"{tmp_path}:/usr/bin:/bin")
    assert found.stdout.splitlines()[0] == _DISTRIBUTION


def test_named_one_is_taken(tmp_path: Path) -> None:
    link = tmp_path / "mine"
    link.symlink_to(_DISTRIBUTION)
    assert _find(str(link)).stdout.splitlines()[0] == str(link)


@pytest.mark.parametrize("exit_code", [1, 127])
def test_named_one_that_does_not_do_is_refused_by_name(tmp_path: Path, exit_code: int) -> None:
    program = _fake(tmp_path, exit_code=exit_code)
    found = _find(program)
    assert (found.returncode, found.stdout) == (1, "")
    assert f"PYTHON={program} is no Python 3.11 or newer" in found.stderr
