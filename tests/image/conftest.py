"""Fixtures of the image's tests: a run directory that its user may write to, an agent, the files of the image."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.image.containers import AGENT, USER, Container, container, podman
from tests.processes import eventually, write_list

FOUR = tuple(f"0000:82:00.{function}" for function in range(2, 6))


@pytest.fixture
def shared(run_dir: Path) -> Path:
    """A host directory that is the run directory of several containers."""
    assert os.geteuid() == 0, "run the tests of the image as root"
    os.chown(run_dir, USER, USER)
    return run_dir


@pytest.fixture
def agent(shared: Path) -> Iterator[Container]:
    """A container of an agent that serves four simulated VFs."""
    write_list(shared / "pciList.dat", FOUR)
    with container(AGENT, shared, "run", "--simulate", "--log-format=json") as started:
        eventually("its gRPC socket", (shared / "vdpa.sock").is_socket)
        yield started


@pytest.fixture(scope="session")
def files() -> Iterator[Path]:
    """Where the files of the agent's image can be read."""
    mounted = podman("image", "mount", AGENT).strip()
    yield Path(mounted)
    podman("image", "unmount", AGENT)
