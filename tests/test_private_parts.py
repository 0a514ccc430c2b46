"""Nothing private of any library is used, and nothing that speaks HTTP/2 beside the one library of the server."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.processes import ROOT

SOURCES: Final = sorted(path for path in (ROOT / "vdpa_agent").rglob("*.py") if path.parent.name != "pb")

CLIENT_ALONE: Final = frozenset({"grpclib.client", "grpclib.health.v1.health_grpc"})
"""What imports a client, and with it a second HTTP/2."""


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def _own(tree: ast.AST) -> frozenset[str]:
    """The private names that a module gives to things itself: functions, classes, attributes."""
    names = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)
    }
    stored = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name))
    names |= {
        node.attr if isinstance(node, ast.Attribute) else node.id for node in stored if isinstance(node.ctx, ast.Store)
    }
    return frozenset(filter(_is_private, names))


def _found(source: str) -> Iterator[str]:
    """What a module takes that is not its own."""
    tree = ast.parse(source)
    own = _own(tree)
    named_tuples = {"_replace", "_asdict", "_fields", "_make"}  # which are public in spite of their names
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names if _is_private(alias.name))
            if any(map(_is_private, module.split("."))):
                yield module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if any(map(_is_private, alias.name.split("."))))
        elif isinstance(node, ast.Attribute) and _is_private(node.attr) and node.attr not in named_tuples:
            on_itself = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
            if not on_itself and node.attr not in own:
                yield node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"getattr", "setattr"}:
            name = node.args[1]
            if isinstance(name, ast.Constant) and _is_private(str(name.value)):
                yield str(name.value)


def _imported(source: str) -> set[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "vdpa_agent")))
def test_a_module_takes_nothing_private(path: Path) -> None:
    source = path.read_text()
    assert list(_found(source)) == []
    # Where ruff would be told to look away, this test would not see an object's origin.
    assert "SLF001" not in source


@pytest.mark.parametrize(
    "source",
    [
        "from grpclib.events import _DispatchServerEvents",
        "from grpclib._typing import ICodec",
        "import asyncio\nasyncio._get_running_loop()",
        "def f(stream):\n    return stream._h2_connection",
        "getattr(thing, '_data')",
    ],
)
def test_it_would_be_seen(source: str) -> None:
    assert list(_found(source))


def test_the_server_knows_one_http2() -> None:
    for path in SOURCES:
        imported = _imported(path.read_text())
        assert not {name for name in imported if name.partition(".")[0] in {"h2", "hpack", "hyperframe"}}, path
        if path.parent.name not in {"cli", "kubelet"}:  # which call others; an agent imports the latter if asked to
            assert not imported & CLIENT_ALONE, path
        if path.parent.name != "cli":
            assert not {name for name in imported if name.startswith(("grpclib.server", "grpclib.protocol"))}, path


def test_an_agent_carries_no_client_and_no_openssl() -> None:
    # hashlib, and what imports it, such as secrets, takes 4 MiB for as long as the agent runs.
    program = "import sys; import vdpa_agent.agent; print(*{'h2', 'grpclib.client', '_hashlib'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.split() == []
