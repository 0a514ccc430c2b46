"""Opening the gRPC socket."""

import asyncio
import os
import socket
import stat
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from vdpa_agent.config import ServeConfig
from vdpa_agent.errors import AlreadyRunning, ListenError
from vdpa_agent.latest import Latest
from vdpa_agent.model.health import Standing
from vdpa_agent.serve.listener import listening

pytestmark = pytest.mark.anyio


def _listening(config: ServeConfig, standing: Latest[Standing] | None = None) -> AbstractAsyncContextManager[Any]:
    return listening(config, [], standing or Latest(Standing()))


async def test_the_socket_has_its_mode_and_is_gone_at_the_end(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "deep" / "s.sock", listen_mode=0o600)
    async with _listening(config):
        assert stat.S_IMODE(config.listen.stat().st_mode) == 0o600
        assert config.listen.is_socket()
    assert not config.listen.exists()


async def test_a_stale_socket_is_replaced(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(config.listen))
    async with _listening(config):
        _, writer = await asyncio.open_unix_connection(config.listen)
        writer.close()


async def test_a_second_one_names_the_holder_and_disturbs_nothing(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    async with _listening(config):
        inode = config.listen.stat().st_ino
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}, holds {config.listen}"):
            async with _listening(config):
                pytest.fail("two hold one socket")
        assert config.listen.stat().st_ino == inode


async def test_what_is_no_socket_is_not_replaced(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    config.listen.write_text("precious")
    with pytest.raises(ListenError, match="a regular file is there, not a socket; move it away"):
        async with _listening(config):
            pytest.fail("it listens")
    assert config.listen.read_text() == "precious"


async def test_the_socket_of_a_successor_is_left_alone(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    async with _listening(config):
        config.listen.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(config.listen))
    assert config.listen.exists()


async def test_an_impossible_place_is_an_error_with_a_remedy(run_dir: Path) -> None:
    (run_dir / "file").touch()
    config = ServeConfig(listen=run_dir / "file" / "s.sock")
    with pytest.raises(ListenError, match="needs a directory that it can write to"):
        async with _listening(config):
            pytest.fail("it listens")


async def test_clients_that_stay_connected_do_not_delay_the_end(run_dir: Path) -> None:
    config = ServeConfig(listen=run_dir / "s.sock")
    async with asyncio.timeout(5):
        async with _listening(config):
            connections = [await asyncio.open_unix_connection(config.listen) for _ in range(20)]
            await asyncio.sleep(0)  # let the server accept some of them
        for reader, writer in connections:
            while await reader.read(4096):
                pass
            writer.close()
