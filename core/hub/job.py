"""Download jobs: each in a process of its own, and no other process connects to a hub."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from core.errors import UserError
from core.hub_uri import HubEntry
from core.jobs.job import Job, JobCancelledError, JobProgress
from core.text import one_line

PROGRAM = "core.hub.download"
DEFAULT_ENDPOINT = "https://huggingface.co"

#: In the order in which huggingface_hub reads them.
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = ("1", "on", "yes", "true")
_NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
#: No telemetry, no check for a newer version, no Xet protocol with servers of its own, no progress bars.
_QUIET = {
    **_NO_TELEMETRY,
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_EXPERIMENTAL_WARNING": "1",
}
#: Variables of processes that have all that they need on this machine: Hugging Face's libraries ask no hub then, and
#: report to nobody.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", **_NO_TELEMETRY}
# The first logs requests with their headers, the others add a user agent or provide credentials.
_REMOVED = ("HF_DEBUG", "HF_HUB_USER_AGENT_ORIGIN", "HF_OIDC_RESOURCE")


@dataclass(frozen=True)
class FetchPlan:
    """Files that an entry takes of its repository.

    Args:
        entry: The entry as requested.
        commit: The commit of its revision now.
        directory: Directory for the files.
        files: Number of files.
        bytes: Total size of the files.
        remaining: Bytes still to be downloaded.
        reason: Description of the selection, in a sentence.
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
        """From a message of the process; texts are made safe to show."""
        values: dict[str, Any] = {field.name: data[field.name] for field in fields(cls)}
        values |= {name: one_line(value) for name, value in values.items() if isinstance(value, str)}
        return cls(**values)


FetchJob = Job[JobProgress, FetchPlan]


def fetch_job(entry: HubEntry, confirm: Callable[[FetchPlan], bool]) -> FetchJob:
    """A download, whose progress counts bytes. Partial files are kept if it is closed, or not confirmed.

    Args:
        entry: The repository, or its part.
        confirm: Called once the size is known, unless everything is on this machine already.
    """

    def hear(message: dict[str, Any]) -> bool | None:
        if "plan" not in message:
            return None
        if not confirm(FetchPlan.from_dict(message["plan"])):
            raise JobCancelledError
        return True

    def work(job: FetchJob) -> FetchPlan:
        refuse_offline()
        hub_endpoint()
        environment = {name: value for name, value in os.environ.items() if name not in _REMOVED} | _QUIET
        values = job.call(PROGRAM, {"entry": str(entry)}, job.report, hear=hear, environment=environment)
        return FetchPlan.from_dict(values)

    return Job("the download", work, "Fetch again; what has come is kept.")


def hub_endpoint() -> str:
    """Address of the hub: ``HF_ENDPOINT``, by default huggingface.co.

    Raises:
        UserError: If the variable is not an address.
    """
    written = os.environ.get("HF_ENDPOINT", "").strip() or DEFAULT_ENDPOINT
    try:
        parts = urlsplit(written)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unclosed brackets, an invalid port
        is_address = False
    if not is_address or not written.isascii() or not written.isprintable() or set(" ?#") & set(written):
        raise UserError(
            f"HF_ENDPOINT is {one_line(written, 100)}, which is not an address of a hub.", f"Write {DEFAULT_ENDPOINT}."
        )
    return written.rstrip("/")


def hub_host() -> str:
    """Host of the hub, safe to show: without a password that its address may contain."""
    try:
        place = urlsplit(hub_endpoint()).netloc
    except UserError:
        return "HF_ENDPOINT"
    return one_line(place.rpartition("@")[2], 100)


def refuse_offline() -> None:
    """Refuse to connect if the user has set Hugging Face's offline variables.

    As in huggingface_hub, TRANSFORMERS_OFFLINE counts if HF_HUB_OFFLINE is empty.

    Raises:
        UserError: If offline mode is on.
    """
    name = next((name for name in _OFFLINE if os.environ.get(name)), _OFFLINE[0])
    if os.environ.get(name, "").strip().lower() in _TRUE:
        raise UserError(f"{name} is set, so nothing is fetched.", "Unset it to allow the connection.")
