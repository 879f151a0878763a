from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Item(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HELLO: _ClassVar[Item]
    CALL: _ClassVar[Item]
    REPLY: _ClassVar[Item]
    END: _ClassVar[Item]
    OPEN: _ClassVar[Item]
    MESSAGE: _ClassVar[Item]
    HALF_CLOSE: _ClassVar[Item]
    CANCEL: _ClassVar[Item]
    CREDIT: _ClassVar[Item]
    METADATA: _ClassVar[Item]
    PIPELINE: _ClassVar[Item]
    GOAWAY: _ClassVar[Item]
    PART: _ClassVar[Item]
    PUTS: _ClassVar[Item]
    WRITTEN: _ClassVar[Item]

class Flag(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_FLAG: _ClassVar[Flag]
    ANY_MEMBER: _ClassVar[Flag]
    PARTS: _ClassVar[Flag]
HELLO: Item
CALL: Item
REPLY: Item
END: Item
OPEN: Item
MESSAGE: Item
HALF_CLOSE: Item
CANCEL: Item
CREDIT: Item
METADATA: Item
PIPELINE: Item
GOAWAY: Item
PART: Item
PUTS: Item
WRITTEN: Item
NO_FLAG: Flag
ANY_MEMBER: Flag
PARTS: Flag

class Frame(_message.Message):
    __slots__ = ("body",)
    BODY_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    def __init__(self, body: _Optional[bytes] = ...) -> None: ...
