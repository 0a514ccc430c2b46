from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class GetSocketpathRequest(_message.Message):
    __slots__ = ("pciAddress",)
    PCIADDRESS_FIELD_NUMBER: _ClassVar[int]
    pciAddress: str
    def __init__(self, pciAddress: _Optional[str] = ...) -> None: ...

class GetSocketpathResponse(_message.Message):
    __slots__ = ("socketpath",)
    SOCKETPATH_FIELD_NUMBER: _ClassVar[int]
    socketpath: str
    def __init__(self, socketpath: _Optional[str] = ...) -> None: ...
