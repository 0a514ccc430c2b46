"""Fixtures that all tests share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fuzz", max_examples=4_500, deadline=None, print_blob=True)  # `make fuzz`: ten minutes
# How long an example takes says more of what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short directory: sockets in pytest's own would exceed the 107 bytes of a unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="va-") as directory:
        yield Path(directory)
