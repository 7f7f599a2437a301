"""Open Inference Protocol V2: request body -> columns, columns -> response body, with the binary tensor extension.

One tensor is one column: shape `[n]` or `[n, 1]` with the same n for all. Every malformed body is a `Fault(400)`.
https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import orjson

from mlspec_runtime.serve.fault import Fault

Array = np.ndarray[Any, Any]
Columns = dict[str, Array]
"""Column name -> values; all arrays have the same length, the number of rows."""

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
"""Datatype of the protocol -> numpy. BYTES are text: arrays of `str`, with None for null."""
DATATYPES = {(dtype.kind, dtype.itemsize): name for name, dtype in DTYPES.items() if name != "BYTES"}

INFERENCE_HEADER = b"inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a graph. `datatype` None accepts any; what is not `required` may be left out."""

    name: str
    datatype: str | None = None
    required: bool = True


@dataclass(slots=True)
class Request:
    """One question, decoded. `columns` are the inputs, `received` is seconds since the epoch."""

    id: str
    columns: Columns
    rows: int
    received: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    headers: Sequence[tuple[bytes, bytes]] = ()
    outputs: tuple[tuple[str, bool], ...] = ()
    """Outputs that the caller selects, and whether each is to be binary; empty: all."""
    binary: bool = False
    """Whether outputs are binary where `outputs` does not say."""

    def part(self, rows: Array) -> Request:
        """The same question about some of its rows (`rows`: indices)."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Request(self.id, columns, len(rows), self.received, self.parameters, self.headers)


_ABSENT = msgspec.Raw(b"")


class _Tensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = _ABSENT
    parameters: dict[str, Any] | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Body(msgspec.Struct):
    inputs: list[_Tensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


_BODY = msgspec.json.Decoder(_Body)
_FLOATS = (
    msgspec.json.Decoder(list[float]),
    msgspec.json.Decoder(list[float | list[float | None] | None]),
)
_WHOLE = (msgspec.json.Decoder(list[int]), msgspec.json.Decoder(list[int | list[int]]))
_FLAGS = (msgspec.json.Decoder(list[bool]), msgspec.json.Decoder(list[bool | list[bool]]))
_TEXTS = (msgspec.json.Decoder(list[str]), msgspec.json.Decoder(list[str | list[str | None] | None]))
_BY_KIND: dict[str, tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]] = {
    "b": _FLAGS,
    "f": _FLOATS,
    "i": _WHOLE,
    "u": _WHOLE,
    "O": _TEXTS,
}
_DECODERS = {name: _BY_KIND[dtype.kind] for name, dtype in DTYPES.items()}
"""By datatype: the usual form, flat and without null, and the rarer ones. Null is NaN in floats and None in BYTES."""


def datatype(values: Array) -> str:
    """The protocol's datatype for an array; what is no number is BYTES (text)."""
    return DATATYPES.get((values.dtype.kind, values.dtype.itemsize), "BYTES")


def decode(
    body: bytes,
    header_length: bytes | None,
    inputs: Mapping[str, Input] | None,
    max_rows: int,
    received: float,
) -> Request:
    """Decode and check one inference request.

    `header_length` is the value of Inference-Header-Content-Length, if sent; `inputs` None accepts any names.
    Raises `Fault` 400, or 413 for more than `max_rows` rows.
    """
    binary, position = b"", 0
    if header_length is not None:
        if not header_length.isdigit() or int(header_length) > len(body):
            raise Fault(
                400, f"Inference-Header-Content-Length must be 0 to {len(body)}, the length of the body"
            )
        position = int(header_length)
        binary, body = body[position:], body[:position]
    try:
        document = _BODY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Fault(400, f"the body is not an inference request: {error}") from None
    columns: Columns = {}
    rows, offset = -1, 0
    for tensor in document.inputs:
        name = tensor.name
        if name in columns:
            raise Fault(400, f'input "{name}" is given twice')
        if inputs is not None:
            expected = inputs.get(name)
            if expected is None:
                raise Fault(400, f'unknown input "{name}"; inputs are {", ".join(inputs)}')
            if expected.datatype is not None and expected.datatype != tensor.datatype:
                raise Fault(400, f'input "{name}" must be {expected.datatype}, not {tensor.datatype}')
        shape = tensor.shape
        if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 1:
            raise Fault(
                400, f'input "{name}" has shape {shape}; one value per row is needed: [n] or [n, 1], n >= 1'
            )
        if rows == -1:
            rows = shape[0]
            if rows > max_rows:
                raise Fault(413, f"{rows} rows in one request; at most {max_rows} are allowed")
        elif rows != shape[0]:
            raise Fault(400, f'input "{name}" has {shape[0]} rows, "{document.inputs[0].name}" has {rows}')
        size = None if tensor.parameters is None else tensor.parameters.get("binary_data_size")
        if size is None:
            columns[name] = _values(tensor, rows)
        else:
            if bytes(tensor.data):
                raise Fault(400, f'input "{name}" has both data and binary_data_size')
            if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(binary) - offset:
                raise Fault(
                    400,
                    f'binary_data_size of input "{name}" does not fit the {len(binary)} bytes after the header',
                )
            columns[name] = _from_binary(tensor, rows, binary[offset : offset + size])
            offset += size
    if offset != len(binary):
        raise Fault(400, f"{len(binary) - offset} bytes after the last binary tensor")
    require(columns, inputs)
    parameters = document.parameters or {}
    everything_binary = parameters.get("binary_data_output") is True
    outputs: tuple[tuple[str, bool], ...] = ()
    if document.outputs:
        outputs = tuple(
            (one.name, bool((one.parameters or {}).get("binary_data", everything_binary)))
            for one in document.outputs
        )
    return Request(
        document.id or identity(), columns, rows, received, parameters, (), outputs, everything_binary
    )


_PROCESS = os.urandom(8).hex()
_NUMBERS = itertools.count()


def identity() -> str:
    """A new id for a request that has none: unique among processes and without a system call each time."""
    return f"{_PROCESS}{next(_NUMBERS):08x}"


def require(columns: Columns, inputs: Mapping[str, Input] | None) -> None:
    """Raise `Fault` 400 unless every required input is there."""
    if inputs is None:
        if not columns:
            raise Fault(400, "inputs are empty")
    elif len(columns) < len(inputs):
        missing = [name for name, one in inputs.items() if one.required and name not in columns]
        if missing or not columns:
            raise Fault(400, f"missing inputs: {', '.join(missing or inputs)}")


def _values(tensor: _Tensor, rows: int) -> Array:
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise Fault(400, f'input "{tensor.name}" has an unknown datatype "{tensor.datatype}"')
    if not bytes(tensor.data):
        raise Fault(400, f'input "{tensor.name}" has no data')
    usual, rare = _DECODERS[tensor.datatype]
    try:
        values = usual.decode(tensor.data)
    except msgspec.MsgspecError:
        try:
            values = rare.decode(tensor.data)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Fault(400, f'data of input "{tensor.name}" is not {tensor.datatype}: {error}') from None
        values = [value for one in values for value in (one if isinstance(one, list) else (one,))]
    if len(values) != rows:
        raise Fault(400, f'input "{tensor.name}" has {len(values)} values, but its shape is {tensor.shape}')
    try:
        if dtype.kind == "f" and dtype.itemsize < 8:
            with np.errstate(over="ignore"):  # becomes infinite, which a model may refuse
                return np.array(values, dtype)
        return np.array(values, dtype)
    except (OverflowError, ValueError) as error:
        raise Fault(400, f'data of input "{tensor.name}" does not fit {tensor.datatype}: {error}') from None


def _from_binary(tensor: _Tensor, rows: int, raw: bytes) -> Array:
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise Fault(400, f'input "{tensor.name}" has an unknown datatype "{tensor.datatype}"')
    if tensor.datatype == "BYTES":
        return _texts(tensor.name, rows, raw)
    if len(raw) != rows * dtype.itemsize:
        raise Fault(
            400,
            f'input "{tensor.name}" has {len(raw)} bytes; {rows} {tensor.datatype} need {rows * dtype.itemsize}',
        )
    if dtype.kind == "b":
        return np.frombuffer(raw, np.uint8).astype(np.bool_)
    return np.frombuffer(raw, dtype)


def _texts(name: str, rows: int, raw: bytes) -> Array:
    texts: list[str] = []
    position = 0
    try:
        while position < len(raw):
            (length,) = struct.unpack_from("<I", raw, position)
            position += 4 + length
            if position > len(raw):
                raise ValueError("an element is longer than the tensor")
            texts.append(raw[position - length : position].decode())
    except (struct.error, ValueError) as error:
        raise Fault(400, f'input "{name}" is not a BYTES tensor of UTF-8 text: {error}') from None
    if len(texts) != rows:
        raise Fault(400, f'input "{name}" has {len(texts)} elements, but {rows} rows')
    return np.array(texts, object)


@dataclass(frozen=True, slots=True)
class Reply:
    """An encoded answer."""

    body: bytes
    headers: list[tuple[bytes, bytes]]


def encode(request: Request, answer: Columns, model: str, version: str) -> Reply:
    """Encode the answer to `request`; `Fault` 400 when it selects an output that the answer does not have."""
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, binary in request.outputs or [(name, request.binary) for name in answer]:
        values = answer.get(name)
        if values is None:
            raise Fault(400, f'unknown output "{name}"; outputs are {", ".join(answer)}')
        kind = datatype(values)
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": values.shape}
        if binary:
            raw.append(_to_binary(values, kind))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            output["data"] = _plain(values, kind)
        outputs.append(output)
    head = orjson.dumps({"model_name": model, "model_version": version, "id": request.id, "outputs": outputs})
    if not raw:
        return Reply(
            head, [(b"content-type", b"application/json"), (b"content-length", str(len(head)).encode())]
        )
    body = b"".join([head, *raw])
    return Reply(
        body,
        [
            (b"content-type", b"application/octet-stream"),
            (b"content-length", str(len(body)).encode()),
            (INFERENCE_HEADER, str(len(head)).encode()),
        ],
    )


def _plain(values: Array, kind: str) -> list[Any]:
    if kind == "BYTES":
        return [text(value) for value in values.ravel().tolist()]
    flat: list[Any] = (values if values.ndim == 1 else values.ravel()).tolist()
    return flat


def text(value: object) -> str | None:
    """A value of no numeric kind as text; lone surrogates, which JSON cannot carry, are replaced."""
    if value is None or value != value:
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(value).encode("utf-8", "replace").decode()


def _to_binary(values: Array, kind: str) -> bytes:
    if kind == "BYTES":
        encoded = [(text(value) or "").encode() for value in values.ravel().tolist()]
        return b"".join(struct.pack("<I", len(one)) + one for one in encoded)
    return np.ascontiguousarray(values, DTYPES[kind]).tobytes()
