"""Arithmetic in bf16 on a CPU: whether it is faster than in fp32, as measured here, or as the processor's flags say.

The flags are not all: libraries emulate bf16 where they do not use an instruction that is there, at a fifth of the
speed of fp32, and others have fast bf16 under flags of other names. A training process measures it once and keeps the
result in the home, so that the memory plan and later runs take the same arithmetic.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from core import paths
from core.atomic import write_atomic
from core.hardware.cpu import cpu_name, has_bf16
from core.small_files import read_json

#: Variables that limit the instructions of torch's libraries.
_LIMITING = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")
_LIMIT = 64 << 10
#: How much faster than fp32 bf16 must be where the flags say so, and where they do not: a noisy measurement does not
#: speak against the flags, an emulation is far from both.
_NATIVE_RATIO, _OTHER_RATIO = 0.8, 1.5


def prefers_bf16() -> bool:
    """Whether this CPU computes faster in bf16 than in fp32: as it was measured, else by the processor's flags."""
    measured = _measurements().get(_key())
    return measured if isinstance(measured, bool) else has_bf16()


def is_measured() -> bool:
    """Whether it was measured on this CPU."""
    return isinstance(_measurements().get(_key()), bool)


def keep_measurement(ratio: float) -> bool:
    """Keep a measurement in the home.

    Args:
        ratio: Speed of a matrix product in bf16 as a multiple of the same in fp32.

    Returns:
        Whether bf16 is to be preferred.
    """
    faster = ratio >= (_NATIVE_RATIO if has_bf16() else _OTHER_RATIO)
    path = _path()
    with contextlib.suppress(OSError):  # a full disk or a home that cannot be written: measured again next time
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, json.dumps({**_measurements(), _key(): faster}, indent=1) + "\n", durable=False)
    return faster


def _key() -> str:
    limits = [f"{name}={os.environ[name]}" for name in _LIMITING if os.environ.get(name)]
    return " ".join([cpu_name(), *limits])


def _path() -> Path:
    return paths.home() / "calibration" / "bf16.json"


def _measurements() -> dict[str, object]:
    try:
        found = read_json(_path(), _LIMIT)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
