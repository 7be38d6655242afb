"""Proof that training computes rightly on an AMD card: a passed self-test, by what its outcome depends on.

The authors have no such card. What a build of torch for ROCm, bitsandbytes and the driver compute together is therefore
found out on the card of the user, and a run is refused until that has succeeded.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.small_files import read_json

#: Environment variable of the self-test's own processes, which compute on a card before it is proven.
TRYING_VARIABLE = "LOCALTUNE_TRIES_CARD"
#: Most bytes of a file.
_LIMIT = 4096


@dataclass(frozen=True)
class Proof:
    """The subject of a proof.

    Args:
        architecture: Of the card, as ROCm names it: ``gfx1100``.
        torch: Version of torch.
        bitsandbytes: Version of bitsandbytes; empty where it is not installed.
        driver: Version of the driver.
    """

    architecture: str
    torch: str
    bitsandbytes: str
    driver: str

    @classmethod
    def here(cls, architecture: str, torch: str, driver: str) -> Proof:
        """The subject with the installed bitsandbytes."""
        found = ""
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = metadata.version("bitsandbytes")
        return cls(architecture, torch, found, driver)

    @classmethod
    def of(cls, device: Mapping[str, object]) -> Proof | None:
        """The subject of a self-test, from its facts about the device; None where no proof is needed."""
        architecture, torch, driver = (device.get(name) for name in ("architecture", "torch", "driver"))
        if not (isinstance(architecture, str) and isinstance(torch, str) and isinstance(driver, str)):
            return None
        return cls.here(architecture, torch, driver)


def is_proven(proof: Proof, environment: Mapping[str, str] = os.environ) -> bool:
    """True if the self-test has passed with exactly this, or is running.

    Args:
        proof: The subject.
        environment: Environment variables.
    """
    if environment.get(TRYING_VARIABLE) == "1":
        return True
    try:
        return bool(read_json(_path(proof.architecture), _LIMIT) == asdict(proof))
    except (OSError, ValueError):
        return False


def settle(proof: Proof, *, passed: bool) -> None:
    """Keep the outcome of a self-test; a failed one takes back an earlier proof of the same architecture.

    Raises:
        UserError: If the directory cannot be made.
        OSError: If the file cannot be written or removed.
    """
    path = _path(proof.architecture)
    if passed:
        paths.make_private_dir(path.parent)
        write_atomic(path, json.dumps(asdict(proof)) + "\n")
    else:
        path.unlink(missing_ok=True)


def take_back() -> None:
    """Take back every proof, after a self-test that failed before it knew the card.

    Raises:
        OSError: If a file cannot be removed.
    """
    for path in paths.selftest_dir().glob("gfx*.json"):
        path.unlink(missing_ok=True)


def _path(architecture: str) -> Path:
    return paths.selftest_dir() / f"{architecture}.json"
