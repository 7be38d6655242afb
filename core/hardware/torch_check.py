"""Check that torch works on the card of a run: a cached answer of another process, as this one never imports torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.errors import UserError
from core.hardware.drivers import Build, installed_build
from core.hardware.obstacle import CardUnusableError, Sight, find_obstacle, look, only_card
from core.hardware.visible import HIP_VISIBLE, ORDER, VISIBLE, find_gpu, visible_cards
from core.jobs.job import call
from core.redact import is_secret_name
from core.small_files import read_json

#: Seconds allowed for importing torch and a product on the card.
_PROBE_SECONDS = 90.0
#: Seconds for which an answer of the driver, or a failure of torch, is cached.
_FRESH_SECONDS, _FAILED_SECONDS = 5.0, 60.0
#: Program of :func:`core.worker.process.probe.probe`.
PROBE = "core.worker.job probe"
_RECORD = "torch-on-the-card.json"

_guard = threading.Lock()
_obstacles: dict[str, tuple[float, CardUnusableError | None]] = {}
_failures: dict[str, tuple[float, str]] = {}


def obstacle_here(gpu: str | None = None, ask: Callable[[str | None], str] | None = None) -> CardUnusableError | None:
    """The obstacle that would keep a run with ``hardware.device = "auto"`` from the card; None if there is no obstacle
    or no card.

    With a card it may take seconds the first time after a change of torch, driver or machine: call it from a thread.

    Args:
        gpu: ``hardware.gpu``.
        ask: Tries torch on a card; by default in a process.
    """
    name = json.dumps([gpu, *(os.environ.get(variable) for variable in (VISIBLE, HIP_VISIBLE, ORDER))])
    with _guard:
        asked, known = _obstacles.get(name, (-_FRESH_SECONDS, None))
        if time.monotonic() - asked < _FRESH_SECONDS:
            return known
        found = _find(look(), installed_build(), gpu, ask or _ask_torch)
        _obstacles[name] = (time.monotonic(), found)
        return found


def _find(
    sight: Sight, build: Build | None, gpu: str | None, ask: Callable[[str | None], str]
) -> CardUnusableError | None:
    obstacle = find_obstacle(sight, build, gpu=gpu)
    chosen = find_gpu(sight.cards, gpu) if gpu is not None else next(iter(visible_cards(sight.cards, os.environ)), None)
    if obstacle is not None or chosen is None or build is None:
        return obstacle
    key = _key(sight, build, chosen.uuid or str(chosen.index))
    error = _remembered(key)
    if error is None:
        error = ask(chosen.uuid or None)
        _remember(key, error)
    return find_obstacle(sight, build, gpu=gpu, torch_error=error) if error else None


def _key(sight: Sight, build: Build, card: str) -> str:
    """Key of the environment of an answer; after a reboot torch is tried again."""
    boot = ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    facts = [build.version, build.cuda, build.hip, sys.executable, sight.driver, card, boot]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _remembered(key: str) -> str | None:
    """The known error of torch, ``""`` if it computes; None if it has to be tried."""
    failed, error = _failures.get(key, (-_FAILED_SECONDS, ""))
    if time.monotonic() - failed < _FAILED_SECONDS:
        return error
    with contextlib.suppress(OSError, ValueError):
        if read_json(_record(), 1 << 12) == {"computes": key}:
            return ""
    return None


def _remember(key: str, error: str) -> None:
    if error:
        # A failure may be fixed at any time, and is not written to disk.
        _failures[key] = (time.monotonic(), error)
        return
    with contextlib.suppress(OSError):
        if paths.home().is_dir():
            write_atomic(_record(), json.dumps({"computes": key}) + "\n")


def _record() -> Path:
    return paths.home() / _RECORD


def _ask_torch(card: str | None) -> str:
    """Have a process import torch and compute on a card; returns the error, ``""`` if there is none or the process gave
    no answer."""
    environment = {name: value for name, value in os.environ.items() if not is_secret_name(name)}
    if card is not None:
        environment |= only_card(card)
    asked = {"device_only": True}
    try:
        facts = call("the import of torch", PROBE, asked, seconds=_PROBE_SECONDS, environment=environment)
        return str(facts.get("cuda_error") or "")
    except UserError:
        # The run itself will report it; a plan is no place to report a broken installation.
        return ""
