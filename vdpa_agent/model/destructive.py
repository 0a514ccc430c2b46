"""Destructive steps: what the agent did that takes something from somebody, each kind counted."""

from collections import Counter
from enum import StrEnum


class Destructive(StrEnum):
    """A kind of step that nobody may overlook; each is logged as a warning too."""

    LIST_SHRUNK = "list_shrunk"
    """A device list came that lacks more than half of the devices in force; they go if it stays as it is."""
    STALE_SOCKET_REMOVED = "stale_socket_removed"
    """The socket file of an earlier daemon was removed."""
    DEVICE_RENUMBERED = "device_renumbered"
    """A device got another socket name than it had."""
    MAPPING_REPAIRED = "mapping_repaired"
    """The agent's own mapping file had been changed or removed by another process, and was written again."""


DestructiveSteps = Counter[Destructive]
"""How often each was taken; whoever takes a step adds one: `steps[Destructive.LIST_SHRUNK] += 1`."""
