"""The binding to libnghttp2: its functions, found once, and what they are given; wrong use of it ends the process."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from ctypes import POINTER, byref, c_int, c_int32, c_size_t, c_ssize_t, c_uint8, c_uint32, c_uint64, c_void_p, py_object
from enum import IntEnum
from functools import cache
from typing import Any, Final

from vdpa_agent.errors import LibraryMissing
from vdpa_agent.model.text import printable

LIBRARY: Final = "libnghttp2.so.14"

_REMEDY: Final = (
    "install libnghttp2 1.57 or later, or a distribution's older one with its security fixes: on Debian and Ubuntu the"
    " package libnghttp2-14"
)

_NEEDED: Final = ("nghttp2_option_set_stream_reset_rate_limit", "nghttp2_option_set_max_continuations")
"""Functions that older libraries lack. They came with the fixes for rapid resets and for endless header blocks."""

_VERSION_CHARACTERS: Final = 32

Headers = list[tuple[bytes, bytes]]


class ErrorCode(IntEnum):
    """How a stream or a connection ends: RFC 9113, 7."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    SETTINGS_TIMEOUT = 4
    REFUSED_STREAM = 7
    CANCEL = 8
    ENHANCE_YOUR_CALM = 11


class Setting(IntEnum):
    """What an end announces: RFC 9113, 6.5.2."""

    MAX_CONCURRENT_STREAMS = 3
    MAX_HEADER_LIST_SIZE = 6


class Failure(IntEnum):
    """What functions of the library return, and callbacks too: nghttp2.h, nghttp2_error."""

    DEFERRED = -508
    TEMPORAL_CALLBACK_FAILURE = -521
    REFUSED_STREAM = -533
    CALLBACK_FAILURE = -902


DATA_EOF: Final = 1
DATA_NO_END_STREAM: Final = 2
"""What a callback says of the data that it gave: nghttp2.h, nghttp2_data_flag."""

_NO_COPY: Final = 2 | 4
"""Name and value stay where they are: nghttp2.h, nghttp2_nv_flag."""

# The GIL is kept during each call: none of them waits for anything, and most call back into Python.
_Int = ctypes.PYFUNCTYPE(c_int, c_void_p, c_void_p, py_object)
_CALLBACKS: Final[dict[str, Any]] = {
    "on_begin_headers": _Int,
    "on_header": ctypes.PYFUNCTYPE(
        c_int, c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint8, py_object
    ),
    "on_frame_recv": _Int,
    "on_invalid_frame_recv": ctypes.PYFUNCTYPE(c_int, c_void_p, c_void_p, c_int, py_object),
    "on_data_chunk_recv": ctypes.PYFUNCTYPE(c_int, c_void_p, c_uint8, c_int32, c_void_p, c_size_t, py_object),
    "on_stream_close": ctypes.PYFUNCTYPE(c_int, c_void_p, c_int32, c_uint32, py_object),
}
"""The kinds of callbacks, which all get the session first and the object that it was made with last."""

_Read = ctypes.PYFUNCTYPE(c_ssize_t, c_void_p, c_int32, c_void_p, c_size_t, POINTER(c_uint32), c_void_p, py_object)


class _Pair(ctypes.Structure):
    """struct nghttp2_nv."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("value", ctypes.c_char_p),
        ("name_bytes", c_size_t),
        ("value_bytes", c_size_t),
        ("flags", c_uint8),
    )


class _Setting(ctypes.Structure):
    """struct nghttp2_settings_entry."""

    _fields_ = (("number", c_int32), ("value", c_uint32))


class _Provider(ctypes.Structure):
    """struct nghttp2_data_provider."""

    _fields_ = (("source", c_void_p), ("read", c_void_p))


class _Info(ctypes.Structure):
    """The part of struct nghttp2_info that every version has."""

    _fields_ = (("age", c_int), ("number", c_int), ("version", ctypes.c_char_p))


class Block:
    """Headers as the library takes them; they must outlive the session if they are not copied.

    Attributes:
        pairs: an array of `count` pairs.
    """

    __slots__ = ("count", "pairs")

    def __init__(self, headers: Headers, *, kept: bool = False) -> None:
        """Keeps the headers.

        Args:
            headers: the headers.
            kept: whether this object stays until the process ends; else the library makes copies.
        """
        flags = _NO_COPY if kept else 0
        self.count = len(headers)
        self.pairs = (_Pair * self.count)(
            *(_Pair(name, value, len(name), len(value), flags) for name, value in headers)
        )


class Settings:
    """Settings as the library takes them.

    Attributes:
        entries: an array of `count` entries.
    """

    __slots__ = ("count", "entries")

    def __init__(self, settings: dict[Setting, int]) -> None:
        self.count = len(settings)
        self.entries = (_Setting * self.count)(*(_Setting(number, value) for number, value in settings.items()))


class Provider:
    """What calls back for the data of an answer; it must outlive every session.

    Attributes:
        pointer: what the library is given.
    """

    __slots__ = ("_provider", "_read", "pointer")

    def __init__(self, read: Callable[..., int]) -> None:
        """Takes the callback: session, stream, where to, how many bytes at most, flags, source, object."""
        self._read = _Read(read)
        self._provider = _Provider(None, ctypes.cast(self._read, c_void_p))
        self.pointer = byref(self._provider)


class Callbacks:
    """The callbacks of a session, which must not raise; they must outlive every session.

    Attributes:
        pointer: what the library is given.
    """

    def __init__(self, library: "Library", callbacks: dict[str, Callable[..., int]]) -> None:
        """Takes the callbacks by their name in nghttp2.h, without `_callback`."""
        self.pointer = library.make("nghttp2_session_callbacks_new")
        self._kept = {name: _CALLBACKS[name](callback) for name, callback in callbacks.items()}
        for name, callback in self._kept.items():
            library.call(f"nghttp2_session_callbacks_set_{name}_callback", self.pointer, callback)


class Options:
    """The options of a session; they must outlive every session.

    Attributes:
        pointer: what the library is given.
    """

    def __init__(self, library: "Library", options: Mapping[str, int | tuple[int, ...]]) -> None:
        """Takes the options by their name in nghttp2.h, without `nghttp2_option_set_`, each with its values."""
        self.pointer = library.make("nghttp2_option_new")
        for name, value in options.items():
            values = value if isinstance(value, tuple) else (value,)
            library.call(f"nghttp2_option_set_{name}", self.pointer, *map(c_uint64, values))


class Library:
    """The functions that sessions call, each as in nghttp2.h; what they return below 0 is a failure.

    Attributes:
        version: of the library.
    """

    def __init__(self, library: ctypes.PyDLL) -> None:
        """Finds the functions.

        Raises:
            LibraryMissing: one is not there, or the library is another one.
        """
        self._library = library
        self.version = self._version()
        for name in _NEEDED:
            if not hasattr(library, name):
                problem = f"{LIBRARY} {self.version} is too old"
                raise LibraryMissing(problem, _REMEDY)
        of_session, block, stream = c_void_p, [c_void_p, c_size_t], c_int32
        self.server_new = self._find("session_server_new2", [POINTER(c_void_p), c_void_p, py_object, c_void_p])
        self.delete = self._find("session_del", [of_session], None)
        self.mem_recv = self._find("session_mem_recv", [of_session, c_void_p, c_size_t], c_ssize_t)
        self.mem_send = self._find("session_mem_send", [of_session, POINTER(c_void_p)], c_ssize_t)
        self.want_read = self._find("session_want_read", [of_session])
        self.terminate = self._find("session_terminate_session", [of_session, c_uint32])
        self.last_stream = self._find("session_get_last_proc_stream_id", [of_session], c_int32)
        self.resume_data = self._find("session_resume_data", [of_session, stream])
        self.consume = self._find("session_consume", [of_session, stream, c_size_t])
        self.consume_connection = self._find("session_consume_connection", [of_session, c_size_t])
        self.submit_settings = self._find("submit_settings", [of_session, c_uint8, *block])
        self.submit_response = self._find("submit_response", [of_session, stream, *block, c_void_p])
        self.submit_trailer = self._find("submit_trailer", [of_session, stream, *block])
        self.submit_rst_stream = self._find("submit_rst_stream", [of_session, c_uint8, stream, c_uint32])
        self.submit_goaway = self._find("submit_goaway", [of_session, c_uint8, stream, c_uint32, *block])

    def make(self, name: str) -> c_void_p:
        """Calls a function that makes something.

        Raises:
            MemoryError: there is none left for it.
        """
        made = c_void_p()
        if getattr(self._library, name)(byref(made)):
            raise MemoryError
        return made

    def call(self, name: str, *arguments: Any) -> None:
        """Calls a function that is needed once, and cannot fail."""
        getattr(self._library, name)(*arguments)

    def _version(self) -> str:
        """What the library says of itself, which is the least that one of this name can do.

        Raises:
            LibraryMissing: it says nothing.
        """
        info = self._find("version", [c_int], POINTER(_Info))(0)
        if not info or not info.contents.version:
            problem = f"{LIBRARY} does not say its version: it is broken, or another library"
            raise LibraryMissing(problem, _REMEDY)
        version: bytes = info.contents.version
        return printable(version.decode("ascii", "replace"), _VERSION_CHARACTERS)

    def _find(self, name: str, arguments: Sequence[Any], result: Any = c_int) -> Any:
        try:
            function = self._library[f"nghttp2_{name}"]
        except AttributeError:
            problem = f"{LIBRARY} has no nghttp2_{name}: it is broken, or another library"
            raise LibraryMissing(problem, _REMEDY) from None
        function.argtypes, function.restype = arguments, result
        return function


@cache
def load() -> Library:
    """The library.

    Raises:
        LibraryMissing: there is none, or it is too old.
    """
    try:
        return Library(ctypes.PyDLL(LIBRARY))
    except OSError as error:
        problem = f"{LIBRARY} cannot be loaded: {error}"
        raise LibraryMissing(problem, _REMEDY) from error


def give_back() -> None:
    """Gives memory that sessions had back to the kernel, where the C library can: glibc keeps it otherwise."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> ctypes.PyDLL:
    return ctypes.PyDLL(None)
