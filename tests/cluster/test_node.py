"""Nothing of a node stays on the machine, also where the run that made it was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.cluster.node import ABOVE, Node, hierarchies, sweep, temporary
from tests.processes import ROOT, eventually

RUN: Final = """
import sys
from pathlib import Path
from tests.cluster.node import temporary
with temporary(Path(sys.argv[1])) as node:
    node.boot()
    print(node.disk, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_run_left_is_swept_by_the_next_and_what_runs_is_not() -> None:
    with temporary() as running:
        running.boot()
        serving = running.pid
        with subprocess.Popen(
            [sys.executable, "-c", RUN, str(ABOVE)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as run:
            assert run.stdout is not None
            killed = Node(Path(run.stdout.readline().strip()))
            os.kill(run.pid, signal.SIGKILL)
        # The kernel ends its processes; its cgroups and its disk are left.
        eventually("end of the killed node", lambda: killed.pid is None)
        name = (killed.disk / "cgroup").read_text()
        assert [path for path in hierarchies() if (path / name).exists()]
        sweep(ABOVE)
        assert not killed.disk.parent.exists()
        assert not [path for path in hierarchies() if (path / name).exists()]
        assert killed.leftovers() == []
        assert running.pid == serving is not None
    assert not running.disk.parent.exists()
