"""Sources: everything that the metrics are made of."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vdpa_agent.model.daemon import Cause
from vdpa_agent.model.destructive import DestructiveSteps
from vdpa_agent.model.loaded import Readings
from vdpa_agent.rpc.handled import Handled
from vdpa_agent.rpc.peers import Peers
from vdpa_agent.serve.answers import Answers
from vdpa_agent.serve.devices import Ask
from vdpa_agent.serve.view import View


class Sources(NamedTuple):
    """Where the values come from; all but the statistics are at hand.

    Attributes:
        view: the snapshots.
        answers: what was asked for sockets.
        statistics: asks the daemon for the counters of a device.
        readings: how the contents of each file were judged.
        restarts: how often the daemon was started again, by cause.
        steps: how often the agent took something from somebody.
        lines_dropped: how many log lines were not written, by whose they were.
        peers: who is connected, and who was turned away.
        handled: how the gRPC calls ended.
    """

    view: View
    answers: Answers
    statistics: Ask
    readings: Mapping[str, Readings]
    restarts: Counter[Cause]
    steps: DestructiveSteps
    lines_dropped: Callable[[], Mapping[str, int]]
    peers: Peers
    handled: Handled
