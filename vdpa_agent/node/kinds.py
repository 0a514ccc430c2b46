"""What something on disk is, in words."""

import os
import stat
from collections.abc import Callable
from typing import Final

_KINDS: Final[tuple[tuple[Callable[[int], bool], str], ...]] = (
    (stat.S_ISREG, "a regular file"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
)


def kind_of(found: os.stat_result) -> str:
    """What was found by `lstat`, with its article."""
    return next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "a device")
