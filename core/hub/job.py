"""Ask for a download: done by a process of its own, the only one that ever connects to a hub."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from core.errors import UserError
from core.helper import Helper, describe_end
from core.hub_uri import HubEntry
from core.text import one_line

DEFAULT_ENDPOINT = "https://huggingface.co"

#: In the order in which huggingface_hub reads them.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "on", "yes", "true")
#: No telemetry, no look for a newer version, no second protocol with servers of its own, no bars in nobody's log.
_QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_EXPERIMENTAL_WARNING": "1",
}
# The first writes requests with their headers into a log, the others say who asks or with what to get a token.
_REMOVED = ("HF_DEBUG", "HF_HUB_USER_AGENT_ORIGIN", "HF_OIDC_RESOURCE")


class FetchCancelledError(Exception):
    """The download was closed, or not wanted, before it was done; what has come is kept."""


@dataclass(frozen=True)
class FetchProgress:
    """How far a download is; ``done`` and ``total`` are bytes, None where nobody knows."""

    stage: str
    done: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class FetchPlan:
    """What an entry takes of its repository.

    Args:
        entry: The entry as it was asked for.
        commit: The commit that its revision is now.
        directory: Where it is, or will be.
        files: How many files it takes.
        bytes: How large they are together.
        remaining: How many of these are yet to come.
        reason: Which files they are, in a sentence.
    """

    entry: str
    commit: str
    directory: str
    files: int
    bytes: int
    remaining: int
    reason: str

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> FetchPlan:
        """From the lines of the process; texts become safe to show."""
        values: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}
        for name, value in values.items():
            values[name] = one_line(value) if isinstance(value, str) else value
        return cls(**values)


class FetchJob:
    """One download. ``run`` blocks, so call it from a thread; ``close`` ends it from any other.

    Args:
        entry: What to fetch.
    """

    def __init__(self, entry: HubEntry) -> None:
        self.entry = entry
        self._lock = threading.Lock()
        self._helper: Helper | None = None
        self._closed = False

    def run(self, progress: Callable[[FetchProgress], None], confirm: Callable[[FetchPlan], bool]) -> FetchPlan:
        """Connect, and download.

        Args:
            progress: Told several times a second how far it is.
            confirm: Asked once the size is known, unless everything is here already.

        Returns:
            What is here now.

        Raises:
            FetchCancelledError: If it was closed meanwhile, or not confirmed.
            UserError: If it cannot be fetched.
        """
        refuse_offline()
        hub_endpoint()
        with self._lock:
            if self._closed:
                raise FetchCancelledError
            helper = self._helper = _start()
        with helper:
            return self._follow(helper, progress, confirm)

    def close(self) -> None:
        """End it; may be called twice, and after its end."""
        with self._lock:
            self._closed = True
            if self._helper is not None:
                self._helper.end()

    def _follow(
        self,
        helper: Helper,
        progress: Callable[[FetchProgress], None],
        confirm: Callable[[FetchPlan], bool],
    ) -> FetchPlan:
        _tell(helper, json.dumps({"entry": str(self.entry)}))
        for answer in helper.answers():
            if "result" in answer:
                return FetchPlan.from_dict(answer["result"])
            if "error" in answer:
                raise UserError(one_line(answer["error"]), one_line(answer["hint"]))
            if "plan" in answer:
                if not confirm(FetchPlan.from_dict(answer["plan"])) or self._closed:
                    raise FetchCancelledError
                _tell(helper, "go")
            else:
                progress(FetchProgress(**answer["progress"]))
        if self._closed:
            raise FetchCancelledError
        raise UserError(
            f"The download has no result: its process {describe_end(helper.end())}.",
            "Fetch again; what has come is kept.",
        )


def hub_endpoint() -> str:
    """The address of the hub that would be asked: ``HF_ENDPOINT``, by default huggingface.co.

    Raises:
        UserError: If the variable holds no address.
    """
    written = os.environ.get("HF_ENDPOINT", "").strip() or DEFAULT_ENDPOINT
    try:
        parts = urlsplit(written)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is none
        is_address = False
    if not is_address or not written.isascii() or not written.isprintable() or set(" ?#") & set(written):
        raise UserError(
            f"HF_ENDPOINT is {one_line(written, 100)}, which is no address of a hub.", f"Write {DEFAULT_ENDPOINT}."
        )
    return written.rstrip("/")


def hub_host() -> str:
    """The host that would be asked, safe to show: without a password that its address may hold."""
    try:
        place = urlsplit(hub_endpoint()).netloc
    except UserError:
        return "HF_ENDPOINT"
    return one_line(place.rpartition("@")[2], 100)


def refuse_offline() -> None:
    """Respect the variables by which people forbid their Hugging Face libraries the network.

    huggingface_hub reads TRANSFORMERS_OFFLINE where HF_HUB_OFFLINE is empty, and so does this.

    Raises:
        UserError: If the one that counts is set.
    """
    name = next((name for name in _OFFLINE if os.environ.get(name)), _OFFLINE[0])
    if os.environ.get(name, "").strip().lower() in _TRUE:
        raise UserError(f"{name} is set, so nothing is fetched.", "Unset it to allow the connection.")


def _tell(helper: Helper, line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # it has died, or was closed: the missing answer tells
        helper.send(line.encode() + b"\n")


def _start() -> Helper:
    environment = {name: value for name, value in os.environ.items() if name not in _REMOVED} | _QUIET
    return Helper("core.hub.download", environment=environment)
