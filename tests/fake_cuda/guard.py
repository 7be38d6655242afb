"""Compiles and loads the stand-in device guard. Torch looks for its CUDA hooks while it is imported, so this comes
before."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_name("guard.cpp")
ROOT = Path(__file__).resolve().parents[2]
#: Libraries of torch that the guard needs, each before the ones that use it.
LIBRARIES = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so")


def missing() -> str:
    """Reason why the guard cannot be used here; empty if it can."""
    if shutil.which("g++") is None:
        return "there is no g++ to compile the device guard with"
    if sys.platform != "linux" or importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    if any(_home().joinpath("lib").glob("lib*_cuda.so")) or any(_home().joinpath("lib").glob("lib*_hip.so")):
        return "this torch has a device guard for cards of its own"
    return ""


def build() -> Path:
    """The compiled guard, kept for the next time beside what else the tests keep."""
    version = importlib.metadata.version("torch")
    key = hashlib.sha256(SOURCE.read_bytes() + version.encode()).hexdigest()[:16]
    kept = Path(os.environ.get("LOCALTUNE_TEST_CACHE") or ROOT / ".pytest_cache" / "localtune")
    made = kept / f"guard-{key}.so"
    if not made.exists():
        kept.mkdir(parents=True, exist_ok=True)
        own = made.with_suffix(f".{os.getpid()}")
        include, lib = _home() / "include", _home() / "lib"
        options = ("-std=c++20", "-O1", "-shared", "-fPIC", "-w", f"-I{include}", f"-L{lib}")
        subprocess.run(["g++", *options, SOURCE, "-o", own, "-lc10", "-ltorch_cpu"], check=True)
        own.replace(made)
    return made


def load() -> None:
    """Load the guard into this process.

    Raises:
        RuntimeError: If torch has been imported.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch has been imported, and with it its hooks: load the guard before it")
    for library in (*(_home() / "lib" / name for name in LIBRARIES), build()):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _home() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        raise RuntimeError("torch is not installed")
    return Path(found.origin).parent
