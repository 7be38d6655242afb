from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.runs.control import protocol
from core.runs.control.protocol import ProtocolError, Request
from tests.cases import cases
from tests.core.runs.event_strategies import JSON

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.text(max_size=200), st.text(max_size=200), st.dictionaries(st.text(), PLAIN, max_size=3))
def test_what_is_sent_arrives(identity: str, command: str, args: dict[str, object]) -> None:
    request = Request(identity, command, args)
    line = protocol.encode_request(request)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert protocol.decode_request(line) == request


PING = protocol.encode_request(Request("7", "ping", {}))


@given(st.binary(max_size=100) | st.binary(max_size=8).map(lambda noise: PING.strip() + noise))
def test_bytes_are_a_message_or_an_error(line: bytes) -> None:
    try:
        message = protocol.decode_message(line)
    except ProtocolError:
        with pytest.raises(ProtocolError):
            protocol.decode_request(line)
        return
    assert message == json.loads(line), "a message is all of its line"
    try:
        request = protocol.decode_request(line)
    except ProtocolError:
        assert not line.startswith(PING.strip())
        return
    assert protocol.decode_request(protocol.encode_request(request)) == request


@given(st.dictionaries(st.sampled_from(["id", "command", "args"]), JSON))
def test_an_object_of_any_shape_is_a_request_or_an_error(message: dict[str, object]) -> None:
    try:
        request = protocol.decode_request(json.dumps(message).encode())
    except ProtocolError:
        sound = isinstance(message.get("id"), str) and isinstance(message.get("command"), str)
        # All that is asked of a sound one is that its names are short, its numbers finite and its values shallow.
        assert not sound or max(len(str(message["id"])), len(str(message["command"]))) > 100 or message.get("args")
        return
    assert isinstance(request.id, str)
    assert request.command == message["command"]
    assert request.args == message.get("args", {})


@cases(
    "line",
    [
        *(b"[]", b"1", b"{}", b'{"id": 1}', b'{"id": 1, "command": "x", "args": []}', b"[" * 10**5),
        *(b'{"id": true, "command": "ping"}', b'{"id": "%s", "command": "ping"}' % (b"x" * 500)),
        b'{"id": 1, "command": "%s"}' % (b"x" * 500),
    ],
)
def test_an_invalid_request_is_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(line)
    # A number serves as an id, and args may be absent.
    assert protocol.decode_request(b'{"id": 7, "command": "ping"}') == Request("7", "ping", {})


@cases(
    "value",
    ["9" * 400, str(2**63 + 1), "1e999", "NaN", "-Infinity", "[" * 30 + "]" * 30, '{"a":' * 30 + "1" + "}" * 30],
)
def test_numbers_are_finite_and_nesting_is_shallow(value: str) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_message(b'{"id": "1", "ok": true, "x": %s}' % value.encode())
