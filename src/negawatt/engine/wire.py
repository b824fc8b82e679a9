"""Messages between an engine's worker process and its parent: JSON with raw arrays beside it.

A frame is an 8-byte little-endian length, a JSON document of that length, and the bytes of the
arrays that the document's ``arrays`` field describes, in order. No pickle: a damaged or hostile
peer can at worst send wrong numbers.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

LONGEST_HEADER = 256 * 2**20
_DTYPES = {"float32", "int32"}

Message = dict[str, Any]


def send(stream: IO[bytes], message: Message, arrays: Sequence[NDArray[Any]] = ()) -> None:
    """Write one frame and flush."""
    described = [{"dtype": str(array.dtype), "shape": list(array.shape)} for array in arrays]
    text = json.dumps({**message, "arrays": described}).encode()
    stream.write(struct.pack("<Q", len(text)))
    stream.write(text)
    for array in arrays:
        stream.write(np.ascontiguousarray(array).tobytes())
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Message, list[NDArray[Any]]] | None:
    """Read one frame; None when the peer closed its end between frames.

    Raises:
        ValueError: the frame is damaged.
        EOFError: the peer ended inside a frame.
    """
    head = stream.read(8)
    if not head:
        return None
    (length,) = struct.unpack("<Q", _exactly(stream, 8, head))
    if length > LONGEST_HEADER:
        raise ValueError(f"a frame of {length} bytes is not one of ours")
    message = json.loads(_exactly(stream, length))
    if not isinstance(message, dict):
        raise ValueError("a frame must hold a JSON object")
    arrays = []
    for described in message.pop("arrays", []):
        if described["dtype"] not in _DTYPES:
            raise ValueError(f"arrays of {described['dtype']} are not sent")
        shape = [int(n) for n in described["shape"]]
        dtype = np.dtype(described["dtype"])
        data = _exactly(stream, int(np.prod(shape)) * dtype.itemsize)
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return message, arrays


def _exactly(stream: IO[bytes], count: int, start: bytes = b"") -> bytes:
    data = start
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            raise EOFError("the peer ended inside a frame")
        data += more
    return data
