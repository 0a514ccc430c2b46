"""What commands print: fit to print, and an error of ours where it cannot be written."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from vdpa_agent.errors import OutputLost
from vdpa_agent.model.text import printable


def print_line(text: str) -> None:
    """Prints one line; whatever of it is not printable is escaped.

    Raises:
        OutputLost: it cannot be written.
    """
    print_script(printable(text) + "\n")


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns as wide as their longest cell; an empty cell is shown as `-`.

    Raises:
        OutputLost: it cannot be written.
    """
    for line in table_lines(head, rows):
        print_line(line)


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, fit to print."""
    cells = [list(head), *([printable(cell) or "-" for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Prints one JSON value; without indent in one line, for a stream of them. All of it is printable ASCII.

    Raises:
        OutputLost: it cannot be written.
    """
    print_script(json.dumps(value, indent=indent) + "\n")
    flush()


def print_script(text: str) -> None:
    """Prints a text of our own as it is.

    Raises:
        OutputLost: it cannot be written.
    """
    with writing():
        if sys.stdout is None:
            raise OSError(0, "it is closed")
        sys.stdout.write(text)


def flush() -> None:
    """Writes what was printed so far.

    Raises:
        OutputLost: it cannot be written.
    """
    with writing():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextmanager
def writing() -> Iterator[None]:
    """Translates what goes wrong with standard output.

    Raises:
        OutputLost: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        message = f"standard output cannot be written: {(error.strerror or str(error)).lower()}"
        raise OutputLost(message) from error


def complain(text: str) -> None:
    """Prints a line on standard error, where that can be written."""
    complain_lines(printable(text) + "\n")


def complain_lines(text: str) -> None:
    """Prints a text of our own on standard error, where that can be written."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO | None) -> None:
    """Has what a stream still holds go nowhere: Python would complain once more when it flushes it at its end."""
    if stream is not None:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)
