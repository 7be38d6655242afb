"""Start of tracker processes, each detached, during the run or after it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from core.config.choices import TRACKERS
from core.config.schema import Config
from core.helper import start_detached
from core.runs.record.store import Run
from core.tracking.position import TrackerFiles

#: Seconds that a tracker may take for one call before its process is ended.
PATIENCE = 120.0
EXIT_FAILED = 4
#: Exit code when another process sends the same run to the same tracker.
EXIT_BUSY = 5
#: Settings that keep the libraries from reporting to their makers.
_PRIVATE = {
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "WANDB_ERROR_REPORTING": "false",
}
#: Variables that would send a run elsewhere than to the run directory.
_DIVERTING = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_BUCKET_ID", "TRACKIO_WEBHOOK_URL", "WANDB_RUN_ID")


def places(run: Run, config: Config) -> Iterator[TrackerFiles]:
    """The trackers in a configuration, in the order of their names."""
    asked = config.tracking.asked
    for tool in TRACKERS:
        if tool in asked:
            yield TrackerFiles(run, tool, tool == "wandb" and config.tracking.wandb_mode == "online")


def tracker_command(place: TrackerFiles, patience: float = PATIENCE) -> list[str]:
    """The command line of a tracker's process."""
    words = [sys.executable, "-m", "core.tracking", str(place.run.path), place.tool, "--patience", str(patience)]
    return [*words, *(["--online"] if place.online else [])]


def tracker_environment(base: Mapping[str, str], place: TrackerFiles) -> dict[str, str]:
    """The environment of a tracker's process.

    Args:
        base: The environment of a worker, which has no secrets.
        place: The tracker; only an online tracker gets its API key, from this process's environment.
    """
    found = {name: value for name, value in base.items() if name not in _DIVERTING} | _PRIVATE
    data = str(place.data)
    if place.tool == "trackio":
        # The library stores its settings there.
        return found | {"TRACKIO_DIR": data, "HF_HOME": data}
    if place.tool == "wandb":
        found |= {f"WANDB_{name}_DIR": f"{data}/{name.lower()}" for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
        found |= {"WANDB_DIR": data, "WANDB_MODE": "online" if place.online else "offline"}
        if place.online and (key := os.environ.get("WANDB_API_KEY")):
            found["WANDB_API_KEY"] = key
    return found


def start_tracker(place: TrackerFiles, base: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the process of a tracker, detached, with its output in its log.

    Args:
        place: The tracker.
        base: The environment of a worker.

    Raises:
        UserError: If the directory cannot be made, or there is a link in its path.
        OSError: If no process can be started.
    """
    place.make()
    log = place.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        environment = tracker_environment(base, place)
        return start_detached(tracker_command(place), log=log, cwd=place.data, environment=environment)
    finally:
        os.close(log)


def record_failure(place: TrackerFiles, reason: str) -> None:
    """Record that a tracker could not be started.

    Raises:
        OSError: If the record cannot be written either.
    """
    dataclasses.replace(place.position(), state="failed", reason=reason).write(place)
