"""A node as files, for what doctor says of it."""

from pathlib import Path

import pytest

from tests.cli.nodes import Node


@pytest.fixture
def node(run_dir: Path) -> Node:
    run_dir.chmod(0o755)
    return Node(run_dir)
