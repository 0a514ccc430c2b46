"""Assembles what supervises the daemon, or one daemon for each device."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from vdpa_agent.config import DaemonConfig, DaemonMode, Isolation
from vdpa_agent.daemon.command import Command
from vdpa_agent.daemon.devices import Devices
from vdpa_agent.daemon.directory import SocketDirectory
from vdpa_agent.daemon.fleet import Fleet, Supervision
from vdpa_agent.daemon.names import Names, NameStore
from vdpa_agent.daemon.output import MappingOutput, WriteMapping
from vdpa_agent.daemon.program import Program
from vdpa_agent.daemon.reaper import Reaper
from vdpa_agent.daemon.repair import MappingRepair
from vdpa_agent.daemon.supervisor import Supervisor
from vdpa_agent.daemon.vdpad import Vdpad
from vdpa_agent.latest import Latest
from vdpa_agent.model.daemon import Cause, DaemonStatus, VhostMode
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.health import Role
from vdpa_agent.model.loaded import Loaded
from vdpa_agent.model.mapping import Mapping as SocketMapping
from vdpa_agent.model.pci import DeviceList, PciAddress
from vdpa_agent.model.pools import Pools
from vdpa_agent.node.worker import Stuck

STARTS_AT_ONCE: Final = 4
"""How many daemons of single devices start at the same time: a start keeps a CPU busy for a tenth of a second."""

Daemons = Latest[Mapping[PciAddress, DaemonStatus]]


def supervision_of(
    config: DaemonConfig,
    *,
    socket_list: Path,
    role: Latest[Role],
    wanted: Latest[Loaded[DeviceList]],
    pools: Latest[Loaded[Pools]],
    mapping: Latest[Loaded[SocketMapping]],
    directory: SocketDirectory,
    names: NameStore,
    retire_mapping: Callable[[], Awaitable[None]],
    write_mapping: WriteMapping,
    reaper: Reaper,
    steps: DestructiveSteps,
    spread: Callable[[], float] = lambda: random.uniform(-1, 1),  # noqa: S311 - jitter, not a secret
) -> tuple[Supervision, Daemons]:
    """What runs the daemon or the daemons, and the daemons of single devices: none where one serves all.

    Args:
        config: how to run daemons.
        socket_list: the mapping file.
        role: whether the agent manages a daemon at all.
        wanted: the devices to run, as the list says.
        pools: the pools, which may choose the vhost mode of their devices.
        mapping: what the mapping file says.
        directory: that of the sockets.
        names: keeps the socket names over restarts of the agent.
        retire_mapping: takes the mapping file away.
        write_mapping: replaces it, where no daemon does.
        reaper: learns of each daemon, so that it leaves its end alone, and ends what it leaves.
        steps: where destructive steps are counted.
        spread: where in its jitter a backoff is, -1 to 1.
    """
    restarts: Counter[Cause] = Counter()
    given = Names(config.socket_naming, wanted=wanted, store=names, steps=steps)
    repair = MappingRepair(mapping, retire=retire_mapping, steps=steps)
    starts = asyncio.Semaphore(STARTS_AT_ONCE)

    def supervise(
        its: Latest[Loaded[DeviceList]], alone: PciAddress | None = None, changed: Callable[[], None] | None = None
    ) -> Supervisor:
        """What runs one daemon, of all devices or of one alone."""
        program: Program
        if config.mode is DaemonMode.COMMAND:
            program = Command(config, socket_list, its, mapping, directory)
        else:
            devices = Devices(
                config,
                wanted=its,
                names=given,
                pools=pools,
                directory=directory,
                repair=None if alone else repair,
                spread=spread,
                changed=changed,
            )
            list_of_all = None if alone else socket_list
            program = Vdpad(
                config, devices=devices, directory=directory, names=given, socket_list=list_of_all, alone=alone
            )
        return Supervisor(
            config,
            program,
            role=role,
            wanted=its,
            retire_mapping=_nothing if alone else retire_mapping,
            reaper=reaper,
            restarts=restarts,
            starts=starts if alone else None,
            device=alone or "",
            changed=changed,
            spread=spread,
        )

    if config.isolation is not Isolation.DEVICE or config.mode is DaemonMode.NONE:
        return supervise(wanted), Latest(MappingProxyType({}))

    async def begin() -> None:
        await retire_mapping()
        if config.vhost_mode is VhostMode.SERVER:
            with suppress(Stuck):  # each start looks at its own socket again
                await directory.remove_stale()

    fleet = Fleet(
        lambda address, its, changed: supervise(its, address, changed),
        role=role,
        wanted=wanted,
        output=MappingOutput(write_mapping, retire=retire_mapping, repair=repair),
        begin=begin,
        restarts=restarts,
    )
    return fleet, fleet.daemons


async def _nothing() -> None:
    """The mapping is not a single daemon's."""
