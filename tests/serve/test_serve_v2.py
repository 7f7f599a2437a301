"""The V2 endpoint over real HTTP: what is right is answered, what is wrong is the caller's 4xx with `{"error"}`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve import serving as s

ECHO = "def step(columns):\n    return columns\n"
TYPES = {"f": "FP64", "h": "FP32", "i": "INT64", "j": "INT32", "s": "BYTES", "b": "BOOL"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s.Server]:
    root = tmp_path_factory.mktemp("model")
    s.classifier(root / "m")
    document = s.task(
        {"model": {"model": "m"}},
        models={"m": {"run": "m-1", "path": "m"}},
        limits={"maxRows": 100, "maxBytes": 20_000},
    )
    with s.serving(root, document) as server:
        yield server


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s.Server]:
    """Answers its inputs, one of each datatype."""
    root = tmp_path_factory.mktemp("echo")
    document = s.task(
        {"same": {"python": "step.py:step"}},
        code={"same": s.python(root, "c", ECHO)},
        inputs=[{"name": name, "datatype": kind} for name, kind in TYPES.items()],
    )
    with s.serving(root, document) as server:
        yield server


def tensor(
    name: str, data: Any, shape: list[int] | None = None, datatype: str | None = None
) -> dict[str, Any]:
    return {"name": name, "datatype": datatype or TYPES[name], "shape": shape or [len(data)], "data": data}


def values(rows: int = 2) -> dict[str, list[Any]]:
    return {
        "f": [1.5, -2.0][:rows], "h": [0.5, 0.25][:rows], "i": [2**60, -1][:rows],
        "j": [7, -7][:rows], "s": ["é", ""][:rows], "b": [True, False][:rows],
    }  # fmt: skip


def binary(columns: dict[str, Any], **more: Any) -> tuple[bytes, dict[str, str]]:
    """A request whose tensors are all binary."""
    inputs, parts = [], []
    for name, data in columns.items():
        if TYPES[name] == "BYTES":
            raw = b"".join(struct.pack("<I", len(one.encode())) + one.encode() for one in data)
        else:
            kinds = {"f": "<f8", "h": "<f4", "i": "<i8", "j": "<i4", "b": "?"}
            raw = np.array(data, kinds[name]).tobytes()
        inputs.append(
            {
                "name": name,
                "datatype": TYPES[name],
                "shape": [len(data)],
                "parameters": {"binary_data_size": len(raw)},
            }
        )
        parts.append(raw)
    head = json.dumps({"inputs": inputs, **more}).encode()
    return head + b"".join(parts), {"Inference-Header-Content-Length": str(len(head))}


def test_every_datatype_survives_json(echo: s.Server) -> None:
    """A value that changes on its way makes wrong predictions that nobody sees."""
    answer = echo.infer({"id": "x", "inputs": [tensor(name, data) for name, data in values().items()]})
    assert answer.json["id"] == "x"
    for name, data in values().items():
        assert answer.column(name) == data
        assert next(one for one in answer.json["outputs"] if one["name"] == name)["datatype"] == TYPES[name]


def test_every_datatype_survives_binary_both_ways(echo: s.Server) -> None:
    """The extension is the only fast way for large tensors; clients of Triton and KServe speak it."""
    body, headers = binary(values(), parameters={"binary_data_output": True})
    answer = echo.request("POST", "/v2/models/g/infer", body, headers)
    length = int(answer.headers["inference-header-content-length"])
    head, raw = json.loads(answer.body[:length]), answer.body[length:]
    assert answer.headers["content-type"] == "application/octet-stream"
    sizes = {one["name"]: one["parameters"]["binary_data_size"] for one in head["outputs"]}
    assert sum(sizes.values()) == len(raw)
    assert np.frombuffer(raw[: sizes["f"]], "<f8").tolist() == values()["f"]
    # The same bytes as were sent: the header aside, the answer's tensors are the request's.
    assert raw == body[int(headers["Inference-Header-Content-Length"]) :]


def test_single_outputs_can_be_selected_and_binary(echo: s.Server) -> None:
    """Selecting saves transfer; the order is the caller's."""
    body = {
        "inputs": [tensor(name, data) for name, data in values().items()],
        "outputs": [{"name": "i"}, {"name": "f", "parameters": {"binary_data": True}}],
    }
    answer = echo.infer(body)
    length = int(answer.headers["inference-header-content-length"])
    outputs = json.loads(answer.body[:length])["outputs"]
    assert [one["name"] for one in outputs] == ["i", "f"]
    assert outputs[0]["data"] == values()["i"]
    assert np.frombuffer(answer.body[length:], "<f8").tolist() == values()["f"]


def test_null_and_nesting_and_columns_of_one(echo: s.Server) -> None:
    """Null is how JSON says that a float or text is missing; `[n, 1]` is how pandas codecs send columns."""
    columns = values()
    inputs = [tensor(name, data) for name, data in columns.items()]
    inputs[0] = tensor("f", [None, 2])
    inputs[2] = tensor("i", [[1], [2]], [2, 1])
    inputs[4] = tensor("s", [None, "x"])
    answer = echo.infer({"inputs": inputs})
    assert answer.column("f") == [None, 2.0]
    assert answer.column("i") == [1, 2]
    assert answer.column("s") == [None, "x"]


GOOD = s.v2()["inputs"]
CLIENT_FAULTS: dict[str, Any] = {
    "shape does not match data": {"inputs": [{**GOOD[0], "shape": [2]}, GOOD[1]]},
    "string in FP64": {"inputs": [{**GOOD[0], "data": ["x"]}, GOOD[1]]},
    "no inputs": {"inputs": []},
    "inputs missing": {},
    "one input missing": {"inputs": [GOOD[0]]},
    "unknown input": {"inputs": [*GOOD, {**GOOD[0], "name": "zz"}]},
    "input twice": {"inputs": [GOOD[0], GOOD[0]]},
    "unknown datatype": {"inputs": [{**GOOD[0], "datatype": "FP128"}, GOOD[1]]},
    "other datatype": {"inputs": [{**GOOD[0], "datatype": "INT64", "data": [1]}, GOOD[1]]},
    "no data": {"inputs": [{k: v for k, v in GOOD[0].items() if k != "data"}, GOOD[1]]},
    "null data": {"inputs": [{**GOOD[0], "data": None}, GOOD[1]]},
    "object data": {"inputs": [{**GOOD[0], "data": {}}, GOOD[1]]},
    "no rows": {"inputs": [{**one, "shape": [0], "data": []} for one in GOOD]},
    "negative shape": {"inputs": [{**GOOD[0], "shape": [-1]}, GOOD[1]]},
    "scalar shape": {"inputs": [{**GOOD[0], "shape": []}, GOOD[1]]},
    "matrix": {"inputs": [{**GOOD[0], "shape": [1, 2], "data": [1, 2]}, GOOD[1]]},
    "different rows": {"inputs": [GOOD[0], {**GOOD[1], "shape": [2], "data": [1, 2]}]},
    "null where the model takes none": {"inputs": [{**GOOD[0], "data": [None]}, GOOD[1]]},
    "beyond float64": b'{"inputs":[{"name":"a","datatype":"FP64","shape":[1],"data":[1e999]}]}',
    "binary size without binary": {"inputs": [{**GOOD[0], "parameters": {"binary_data_size": 8}}, GOOD[1]]},
    "binary size negative": {
        "inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": -8}}]
    },
    "binary size no number": {
        "inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": "8"}}]
    },
    "unknown output": {"inputs": GOOD, "outputs": [{"name": "zzz"}]},
    "array": [],
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b'{"id": "\xff", "inputs": []}',
    "deep": b"[" * 15_000,
    "deep data": b'{"inputs":[{"name":"a","datatype":"FP64","shape":[1],"data":' + b"[" * 15_000,
    "deep parameters": b'{"inputs":[],"parameters":' + b'{"a":' * 3_000,
}


@pytest.mark.parametrize("case", CLIENT_FAULTS)
def test_malformed_requests_are_400(model: s.Server, case: str) -> None:
    """KServe and MLServer answer 500 or 422 to many of these; a 5xx wakes the wrong people."""
    answer = model.infer(CLIENT_FAULTS[case])
    assert answer.status == 400
    assert list(answer.json) == ["error"]
    assert isinstance(answer.json["error"], str)


@pytest.mark.parametrize("length", [b"-1", b"x", b"99999", b"", b"3"])
def test_a_wrong_header_length_is_400(model: s.Server, length: bytes) -> None:
    """The length splits the body; a wrong one must not read beyond it."""
    answer = model.infer(json.dumps(s.v2()).encode(), Inference_Header_Content_Length=length.decode())
    assert answer.status == 400, answer.body


def test_bytes_after_the_last_tensor_are_400(echo: s.Server) -> None:
    """Left-over bytes mean that sizes and data disagree, so the values are not what the caller thinks."""
    body, headers = binary(values())
    assert echo.request("POST", "/v2/models/g/infer", body + b"x", headers).status == 400


def test_out_of_range_numbers_are_400(echo: s.Server) -> None:
    """A number that wraps around is a wrong prediction."""
    for name, data in (("i", [2**63, 0]), ("j", [2**31, 0]), ("i", [1.5, 0]), ("b", [1, 0])):
        inputs = [tensor(key, data if key == name else column) for key, column in values().items()]
        assert echo.infer({"inputs": inputs}).status == 400, (name, data)


PATHS = {
    ("GET", "/v2"): 200,
    ("GET", "/v2/health/live"): 200,
    ("GET", "/v2/health/ready"): 200,
    ("GET", "/v2/models/g"): 200,
    ("GET", "/v2/models/g/ready"): 200,
    ("GET", "/v2/models/g/versions/m-1"): 200,
    ("GET", "/v2/models/g/versions/1/ready"): 200,
    ("GET", "/metrics"): 200,
    ("GET", "/status"): 200,
    ("GET", "/v2/models/zzz"): 404,
    ("GET", "/v2/models/zzz/ready"): 404,
    ("POST", "/v2/models/zzz/infer"): 404,
    ("POST", "/v2/models/g/versions/9/infer"): 404,
    ("GET", "/"): 404,
    ("GET", "/v2/models/"): 404,
    ("GET", "/v2/models"): 404,
    ("GET", "/v2/models/g/infer"): 405,
    ("DELETE", "/predict"): 405,
    ("POST", "/v2/health/live"): 405,
    ("POST", "/status"): 405,
}


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_paths_and_methods(model: s.Server, method: str, path: str) -> None:
    """Unknown is 404, known with another method 405: a caller must see a typo in the URL as such."""
    answer = model.request(method, path, b"{}" if method == "POST" else None)
    assert answer.status == PATHS[method, path]
    if answer.status >= 400:
        assert list(answer.json) == ["error"]


def test_metadata_says_what_to_send(model: s.Server) -> None:
    """Clients build requests from the metadata."""
    found = model.request("GET", "/v2/models/g").json
    assert found["inputs"] == [{"name": name, "datatype": "FP64", "shape": [-1]} for name in s.INPUTS]
    assert [(one["name"], one["datatype"]) for one in found["outputs"]] == [
        ("prediction", "BOOL"),
        ("probability", "FP64"),
    ]
    assert found["versions"] == ["m-1", "1"]
    for version in found["versions"]:
        assert model.request("POST", f"/v2/models/g/versions/{version}/infer", s.v2()).status == 200


def test_too_large_is_413(model: s.Server) -> None:
    """The limit protects the process: by length before reading, by count while reading, by rows after decoding."""
    assert model.infer(b" " * 30_000).status == 413
    assert model.infer(s.v2(rows=101)).status == 413
    assert model.infer(s.v2(rows=100)).status == 200
    model.connection.close()
    model.connection.putrequest("POST", "/v2/models/g/infer")
    model.connection.putheader("Transfer-Encoding", "chunked")
    model.connection.endheaders()
    for _ in range(3):
        model.connection.send(b"%x\r\n%s\r\n" % (10_000, b" " * 10_000))
    assert model.connection.getresponse().status == 413
    model.connection.close()
    assert model.infer(s.v2()).status == 200


def test_compressed_bodies_are_refused(model: s.Server) -> None:
    """We do not decompress; saying so beats a parse error."""
    assert model.infer(s.v2(), Content_Encoding="gzip").status == 415


def test_predict_takes_rows(model: s.Server) -> None:
    """The endpoint that one types into curl: the same model, the same numbers."""
    many = model.request("POST", "/predict", {"rows": [{"a": 1, "b": 2}, {"a": -1.5, "b": 0}], "id": "me"})
    one = model.request("POST", "/predict", {"a": 1, "b": 2})
    assert [row["prediction"] for row in many.json["predictions"]] == [True, False]
    assert many.json["predictions"][0] == one.json["predictions"][0]
    assert many.json["id"] == "me"
    assert model.infer(s.v2(a=[1.0], b=[2.0])).column("probability") == [
        one.json["predictions"][0]["probability"]
    ]


ROW_FAULTS: dict[str, tuple[Any, str]] = {
    "missing": ({"a": 1}, 'row 0 has no "b"'),
    "unknown": (
        {"rows": [{"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}]},
        'row 1 has an unknown field "c"; fields are a, b',
    ),
    "type": ({"a": 1, "b": "x"}, '"b" of row 0 must be a number'),
    "boolean": ({"a": 1, "b": True}, '"b" of row 0 must be a number'),
    "no rows": ({"rows": []}, "rows must be objects"),
    "not rows": ({"rows": [1]}, "rows must be objects"),
    "array": ([1], "the body must be"),
    "not JSON": (b"{", "not JSON"),
    "huge": (b'{"a": 1, "b": 1' + b"0" * 400 + b"}", ""),
}


@pytest.mark.parametrize("case", ROW_FAULTS)
def test_wrong_rows_are_400_and_say_where(model: s.Server, case: str) -> None:
    """A person reads this message."""
    body, words = ROW_FAULTS[case]
    answer = model.request("POST", "/predict", body)
    assert answer.status == 400
    assert words in answer.json["error"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _or_junk(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly the right form, now and then anything."""
    return st.one_of(good, good, good, JSON)


TENSOR = st.fixed_dictionaries(
    {
        "name": _or_junk(st.sampled_from(list(TYPES))),
        "datatype": _or_junk(st.sampled_from([*TYPES.values(), "FP16", "UINT8", "zzz"])),
        "shape": _or_junk(st.lists(st.integers(-1, 3), max_size=3)),
    },
    optional={
        "data": _or_junk(
            st.lists(st.none() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=3), max_size=3)
        ),
        "parameters": _or_junk(
            st.fixed_dictionaries({}, optional={"binary_data_size": _or_junk(st.integers(-1, 20))})
        ),
    },
)
BODY = _or_junk(
    st.fixed_dictionaries(
        {"inputs": _or_junk(st.lists(TENSOR, max_size=7))},
        optional={"id": _or_junk(st.text(max_size=5)), "parameters": JSON, "outputs": JSON},
    )
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODY, raw=st.binary(max_size=40), length=st.none() | st.integers(-5, 300), predict=st.booleans())
def test_no_body_is_a_5xx(
    echo: s.Server, model: s.Server, body: Any, raw: bytes, length: int | None, predict: bool
) -> None:
    """Whatever is sent, a malformed body is the caller's fault, and the connection lives on."""
    sent = json.dumps(body).encode() + raw
    headers = {} if length is None else {"Inference-Header-Content-Length": str(length)}
    for server in (echo, model):
        answer = server.request("POST", "/predict" if predict else "/v2/models/g/infer", sent, headers)
        assert 200 <= answer.status < 500, (answer.status, answer.body, sent)
        assert answer.status == 200 or list(answer.json) == ["error"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_mutation_of_a_good_request_is_a_5xx(echo: s.Server, data: st.DataObject) -> None:
    """Near misses get deeper into the codec than junk does."""
    body, headers = binary(values())
    if data.draw(st.booleans()):
        body = json.dumps({"inputs": [tensor(name, column) for name, column in values().items()]}).encode()
        headers = {}
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(changed) - 1))
        changed[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    answer = echo.request("POST", "/v2/models/g/infer", bytes(changed), headers)
    assert 200 <= answer.status < 500, (answer.status, answer.body, bytes(changed))
