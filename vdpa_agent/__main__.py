"""The process: runs the command, and puts in words what it lacks to do so."""

import sys


def main() -> int:
    """The `vdpa-agent` command; returns its exit code."""
    try:
        # What is imported needs memory and open files too.
        from vdpa_agent.errors import starved  # noqa: PLC0415
    except (MemoryError, OSError) as error:
        _complain(
            f"{str(error) or 'no memory is left'}; raise the limits of memory and of open files (ulimit -v, ulimit -n)"
        )
        return 1
    try:
        from vdpa_agent.cli import main as command  # noqa: PLC0415

        return command()
    except Exception as error:
        lack = starved(error)
        if lack is None:
            raise
        sys.unraisablehook = lambda _: None  # of objects that were half made, such as a loop without a descriptor
        _complain(str(lack))
        return lack.exit_code


def _complain(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"vdpa-agent: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
