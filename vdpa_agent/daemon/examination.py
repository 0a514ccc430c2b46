"""Examination: asks sysfs of a device whether the daemon need be asked for it, and with which arguments."""

import os
from pathlib import Path

import structlog

from vdpa_agent.config import DaemonConfig
from vdpa_agent.model.pci import PciAddress
from vdpa_agent.model.preflight import assess, devargs_of, takes_hugepages
from vdpa_agent.node.sysfs import read_facts, read_hugepages, read_numa

log = structlog.get_logger(__name__)


class Examination:
    """Examines devices, and logs what is doubtful of each, once."""

    def __init__(self, config: DaemonConfig) -> None:
        """Examines nothing yet.

        Args:
            config: where sysfs is, and which arguments a person gave.
        """
        self._config = config
        self._doubts: dict[PciAddress, tuple[str, ...]] = {}

    def forget(self, address: PciAddress) -> None:
        """The device is gone; if it comes again, what is doubtful is logged again."""
        self._doubts.pop(address, None)

    def examine(self, address: PciAddress) -> tuple[str, str]:
        """The device arguments of a device, and why the daemon need not even be asked for it: empty if it may."""
        config = self._config
        if config.simulate:
            return config.devargs.get(address, ""), ""
        facts = read_facts(address, config.sysfs)
        numa = read_numa(os.sched_getaffinity(0), config.sysfs)
        sizes = read_hugepages(config.sysfs, Path("/proc/self"))
        verdict = assess(facts, numa, hugepages=takes_hugepages(config.memory, numa, sizes))
        if verdict.doubts != self._doubts.get(address, ()):
            for doubt in verdict.doubts:
                log.warning("device_doubtful", device=address, reason=doubt)
        self._doubts[address] = verdict.doubts
        return devargs_of(facts, config.devargs), verdict.refusal
