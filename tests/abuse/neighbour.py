"""A client that behaves: asks at a steady pace and times its answers, warm and cold, until its input ends.

usage: python -m tests.abuse.neighbour SOCKET
"""

import json
import select
import sys
import time
from typing import Final

from tests.abuse.wire import KNOWN_SOCKET, Wire

PACE_S: Final = 0.005
COLD_EVERY: Final = 20
"""Of so many calls, one has a connection of its own."""


LEAST_CALLS: Final = 100
"""An attack that is over at once is measured with its aftermath."""


def main(listen: str) -> None:
    """Prints `ready` after the first answer, then the figures as JSON."""
    took_ms: list[float] = []
    errors: list[str] = []
    wire, stream = Wire(listen), 1
    stops = False
    while not (stops and len(took_ms) >= LEAST_CALLS):
        began = time.perf_counter()
        if len(took_ms) % COLD_EVERY == COLD_EVERY - 1:
            cold = Wire(listen)
            answer = cold.ask(1)
            cold.close()
        else:
            answer = wire.ask(stream)
            stream += 2
        took_ms.append((time.perf_counter() - began) * 1000)
        if answer.headers.get("grpc-status") != "0" or not answer.data.endswith(KNOWN_SOCKET):
            errors.append(f"{answer} goaway={wire.goaway}")
            if wire.closed:
                wire, stream = Wire(listen), 1
        if len(took_ms) == 1:
            print("ready", flush=True)  # noqa: T201
        stops = bool(select.select([sys.stdin], [], [], PACE_S)[0])
    took_ms.sort()
    figures = {
        "calls": len(took_ms),
        "p50_ms": took_ms[len(took_ms) // 2],
        "p99_ms": took_ms[int(len(took_ms) * 0.99)],
        "max_ms": took_ms[-1],
        "errors": errors,
    }
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1])
