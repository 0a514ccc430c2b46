"""argv and environment in, exit codes and text out."""

import os
import sys
from collections.abc import Sequence

from vdpa_agent.cli.parser import build_parser
from vdpa_agent.errors import AgentError


def main(argv: Sequence[str] | None = None) -> int:
    """The `vdpa-agent` command; returns its exit code.

    Args:
        argv: the arguments without the program's name; None: those of the process.
    """
    words = sys.argv[1:] if argv is None else argv
    command = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser(os.environ, None if command == "completion" else command)  # noqa: TID251 - read here alone
    options = parser.parse_args(words)
    try:
        return int(options.command(options))
    except AgentError as error:
        print(f"vdpa-agent: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except BrokenPipeError:
        # The reader of a pipe went away; Python would complain once more while it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
