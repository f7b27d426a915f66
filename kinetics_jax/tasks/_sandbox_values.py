"""Plain Python values as bytes and back, for the pipes between this process, the sandbox and the program in it.

`decode_value` reads what a hostile program wrote: it makes numbers, texts and containers of them and nothing else, so
neither pickle nor eval comes near the judge. Loaded inside the sandbox too, hence only built-in modules.

    N T F | i hex; | f hex; | s len: utf-8 | b len: bytes | l t S Z n: items | d n: key value ... | r start stop step
"""

import os

TYPE_CHECKING = False  # `typing` takes longer to load than most programs to run
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object

EXIT_MEMORY = 86
"""Exit code of a program that let a MemoryError go; one that fakes it gains nothing by it."""

_CONTAINERS = ((tuple, b"t"), (list, b"l"), (set, b"S"), (frozenset, b"Z"))


class Opaque:
    """Stand for a value that has no plain form; equal to nothing, not even to itself.

    Attributes:
        type_name: What it was.
    """

    def __init__(self, type_name: str) -> None:
        self.type_name = type_name

    def __eq__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __repr__(self) -> str:
        return f"<{self.type_name}>"


def encode_value(value: Any) -> bytes:
    """Return the bytes of a value; what is not plain becomes `Opaque` with the name of its type.

    Subclasses of plain types (Counter, a named tuple, an enum of ints) are written as the plain type they extend.

    Raises:
        RecursionError: If the value contains itself or is nested too deeply.

    Example:
        >>> encode_value((1, "a", None))
        b't3:i1;s1:aN'
        >>> decode_value(encode_value({"a": [1.5, {2}]}))
        {'a': [1.5, {2}]}
    """
    parts: list[bytes] = []
    _write(value, parts)
    return b"".join(parts)


def _write(value: Any, parts: list[bytes]) -> None:
    if value is None or value is True or value is False:
        parts.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, int):
        parts.append(b"i%s;" % format(int(value), "x").encode())  # hex: no limit on digits, linear time
    elif isinstance(value, float):
        parts.append(b"f%s;" % float.hex(value).encode())
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        parts.append(b"s%d:%s" % (len(text), text))
    elif isinstance(value, (bytes, bytearray)):
        parts.append(b"b%d:%s" % (len(value), bytes(value)))
    elif isinstance(value, dict):
        parts.append(b"d%d:" % len(value))
        for key, item in value.items():
            _write(key, parts)
            _write(item, parts)
    elif isinstance(value, range):
        parts.append(b"r")
        for item in (value.start, value.stop, value.step):
            _write(item, parts)
    else:
        _write_container(value, parts)


def _write_container(value: Any, parts: list[bytes]) -> None:
    for kind, tag in _CONTAINERS:
        if isinstance(value, kind):
            parts.append(b"%s%d:" % (tag, len(value)))
            for item in value:
                _write(item, parts)
            return
    name = type(value).__name__.encode("utf-8", "replace")
    parts.append(b"?%d:%s" % (len(name), name))


def decode_value(data: bytes) -> Any:
    """Return the value of bytes made by `encode_value`.

    Numbers can be chosen so that a set of n of them takes n * n steps to make, in one call that nothing interrupts;
    so the members of sets and dictionaries are limited in number.

    Raises:
        ValueError: If they are not; the bytes may come from a hostile program.

    Example:
        >>> decode_value(b"l2:i-ff;")
        Traceback (most recent call last):
            ...
        ValueError: no plain value: cut short at byte 8
    """
    reader = _Reader(data)
    try:
        value = reader.read(0)
    except (OverflowError, UnicodeDecodeError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"no plain value: {error}") from None
    if reader.at != len(data):
        raise ValueError(f"no plain value: {len(data) - reader.at} bytes after its end")
    return value


_MAX_DEPTH = 100
"""Levels of nesting that are read; the interpreter's own limit is far above."""
_MAX_ITEMS = 2_000_000
"""Values that are read: a few bytes of a message become up to 216 bytes of memory (an empty set)."""
_MAX_HASHED = 1 << 13
"""Members of sets and dictionaries that are read, all of them together."""


class _Reader:
    """Walk over the bytes of a value."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at, self.items_left, self.hashed_left = data, 0, _MAX_ITEMS, _MAX_HASHED

    def read(self, depth: int) -> Any:
        self.items_left -= 1
        if self.items_left < 0:
            raise ValueError(f"no plain value: more than {_MAX_ITEMS} items")
        tag = self._take(1)
        if tag in b"NTF":
            return {b"N": None, b"T": True, b"F": False}[tag]
        if tag == b"i":
            return int(self._until(b";"), 16)
        if tag == b"f":
            return float.fromhex(self._until(b";"))
        if tag == b"b":
            return self._take(int(self._until(b":")))
        if tag in b"s?":
            text = self._take(int(self._until(b":"))).decode("utf-8", "surrogatepass")
            return text if tag == b"s" else Opaque(text)
        return self._read_container(tag, depth)

    def _read_container(self, tag: bytes, depth: int) -> Any:
        if tag not in b"ltSZdr":
            raise ValueError(f"no plain value: tag {tag!r} at byte {self.at - 1}")
        if depth >= _MAX_DEPTH:
            raise ValueError(f"no plain value: nested more than {_MAX_DEPTH} levels")
        count = 3 if tag == b"r" else int(self._until(b":"))
        if count < 0:
            raise ValueError(f"no plain value: {count} items")
        if tag in b"SZd":
            self.hashed_left -= count
            if self.hashed_left < 0:
                raise ValueError(f"no plain value: more than {_MAX_HASHED} members of sets and dictionaries")
        items = [self.read(depth + 1) for _ in range(count * 2 if tag == b"d" else count)]
        if tag == b"l":
            return items
        if tag == b"d":
            return dict(zip(items[::2], items[1::2], strict=True))
        if tag == b"r":
            return range(*items)
        return {b"t": tuple, b"S": set, b"Z": frozenset}[tag](items)

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if not self.at <= end <= len(self.data):
            raise ValueError(f"no plain value: cut short at byte {len(self.data)}")
        part = self.data[self.at : end]
        self.at = end
        return part

    def _until(self, stop: bytes) -> str:
        end = self.data.find(stop, self.at)
        if end < 0:
            raise ValueError(f"no plain value: cut short at byte {len(self.data)}")
        part = self.data[self.at : end].decode("ascii")
        self.at = end + 1
        return part


def read_exactly(file: int, size: int) -> bytes:
    """Read `size` bytes.

    Raises:
        EOFError: If the other end closes first.
    """
    parts = []
    while size:
        part = os.read(file, min(size, 1 << 20))
        if not part:
            raise EOFError("the pipe was closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def read_value(file: int, *, max_bytes: int) -> Any:
    """Read one framed value: eight bytes of length, then its bytes.

    Raises:
        EOFError: If the other end closes first.
        ValueError: If it is longer than `max_bytes` or no plain value.
    """
    size = int.from_bytes(read_exactly(file, 8), "little")
    if size > max_bytes:
        raise ValueError(f"a message of {size} bytes; at most {max_bytes} are read")
    return decode_value(read_exactly(file, size))


def write_bytes(file: int, data: bytes) -> None:
    """Write all of `data`."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def write_value(file: int, value: Any) -> None:
    """Write one framed value."""
    data = encode_value(value)
    write_bytes(file, len(data).to_bytes(8, "little") + data)
