"""argv and environment in, exit codes and text out."""

import io
import os
import sys
from collections.abc import Sequence

from vdpa_agent.cli.output import complain, discard, flush, writing
from vdpa_agent.cli.parser import build_parser
from vdpa_agent.errors import AgentError, OutputLost


def main(argv: Sequence[str] | None = None) -> int:
    """The `vdpa-agent` command; returns its exit code.

    Args:
        argv: the arguments without the program's name; None: those of the process.

    Raises:
        SystemExit: argparse is done: help and version were asked for, or an argument is wrong.
    """
    try:
        try:
            return _command(sys.argv[1:] if argv is None else argv)
        finally:
            flush()
    except OutputLost as error:
        discard(sys.stdout)
        # The reader of a pipe may go when it has enough.
        if not isinstance(error.__cause__, BrokenPipeError):
            complain(f"vdpa-agent: {error}")
        return error.exit_code
    except AgentError as error:
        complain(f"vdpa-agent: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def _command(words: Sequence[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of another encoding than UTF-8 lacks letters; that is no reason not to print the others.
            stream.reconfigure(errors="backslashreplace")
    command = next((word for word in words if not word.startswith("-")), "")
    parser = build_parser(os.environ, None if command == "completion" else command)  # noqa: TID251 - read here alone
    with writing():  # what --help and --version print
        options = parser.parse_args(words)
    return int(options.command(options))
