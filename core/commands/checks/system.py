"""Checks of memory, disk, sockets, login sessions, and Linux under Windows."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from core import paths
from core.commands.checks import Finding
from core.hardware.cpu import cpu_name, memory
from core.runs.record.store import Run, private_socket_path
from core.units import format_bytes

_GB = 10**9
#: Disk space for a starter model and a run of it, and for a 7B model with its checkpoints.
_DISK_NEEDED, _DISK_COMFORT = 2 * _GB, 30 * _GB
_MEMORY_NEEDED, _MEMORY_COMFORT = 3 * _GB, 12 * _GB
_LOGIND_PLACES = ("/usr/lib", "/usr/local/lib", "/etc", "/run")


def check_memory() -> Finding:
    """Check the memory of the machine or the container."""
    used, total = memory()
    free = total - used
    what = f"{format_bytes(free)} of {format_bytes(total)} free, {os.cpu_count()} × {cpu_name()}"
    if free < _MEMORY_NEEDED:
        return Finding("memory", "fail", what, "Even the starter model needs 3 GB: end what you do not need.")
    if free < _MEMORY_COMFORT:
        hint = "Enough for small models; loading a 7B model passes through about 12 GB."
        return Finding("memory", "warn", what, hint)
    return Finding("memory", "ok", what)


def check_home() -> Finding:
    """Check that the home directory is writable, and its free space."""
    home = paths.home()
    place = paths.existing_parent(home)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".localtune-"):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        what = f"{home} cannot be written: {error.strerror} ({place})."
        return Finding("home", "fail", what, "Set LOCALTUNE_HOME to a directory that you can write to.")
    what = f"{home}, {format_bytes(free)} free"
    if free < _DISK_NEEDED:
        return Finding("home", "fail", what, "Make room, or set LOCALTUNE_HOME to a larger disk.")
    if free < _DISK_COMFORT:
        return Finding("home", "warn", what, "Enough for small models; a 7B model with its runs wants 30 GB.")
    if home.is_dir() and home.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding("home", "warn", f"{what}, but others may look into it", f"chmod 700 {home}")
    return Finding("home", "ok", what)


def check_socket() -> Finding:
    """Check that a run could listen on its control socket, by connecting to a socket in the same place."""
    intended = Run(paths.runs_dir() / ("20260101-000000-" + "x" * 16)).socket_path
    inside = paths.runs_dir() in intended.parents
    place = paths.existing_parent(intended.parent)
    why = "" if inside else " (the home's path is too long for a socket)"
    finding = Finding("control", "ok", f"sockets work in {place}{why}")
    hint = "Put LOCALTUNE_HOME on a local disk with a short path, or set XDG_RUNTIME_DIR."
    try:
        if place == intended.parent and not inside and (made := private_socket_path(intended)) != intended:
            made.parent.rmdir()
            what = f"{place} is not this user's alone, or its path is too long"
            place = made.parent.parent
            what = f"{what}; a run makes a directory in {place}{why}"
            finding = Finding("control", "warn", what, "Set XDG_RUNTIME_DIR to a private directory with a short path.")
        with tempfile.TemporaryDirectory(dir=place, prefix=".lt-") as directory:
            _connect_once(f"{directory}/s")
    except OSError as error:
        return Finding("control", "fail", f"No Unix socket can be made in {place}: {error}.", hint)
    return finding


def _connect_once(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen(1)
        client.settimeout(5)
        client.connect(path)


def check_logout(root: Path = Path("/")) -> Finding:
    """Check whether the system would end a run when its user logs out."""
    name = "logout"
    if not (root / "run/systemd/system").is_dir():
        return Finding(name, "ok", "no systemd here; runs outlive the session")
    kills = kill_user_processes(root)
    if not kills or os.getuid() == 0:
        return Finding(name, "ok", "runs outlive the session (KillUserProcesses is off)")
    scope = _read(root / "proc/self/cgroup")
    if "session-" not in scope and "user@" in scope and _lingers(root):
        return Finding(name, "ok", "this shell runs under the user manager, which lingers; runs outlive the session")
    what = "logind ends everything of a session at logout (KillUserProcesses=yes), runs too"
    hint = "Run 'loginctl enable-linger' once, then start with 'systemd-run --user --scope localtune-tui'."
    return Finding(name, "warn", what, hint)


def kill_user_processes(root: Path = Path("/")) -> bool:
    """True if logind kills a user's processes at logout, by its answer, its configuration files or its default."""
    if root == Path("/"):
        names = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
        answer = output(["busctl", "get-property", *names, "KillUserProcesses"])
        if answer.startswith("b "):
            return answer == "b true"
    value = "yes"
    for path in _logind_files(root):
        parser = configparser.ConfigParser(interpolation=None, strict=False, allow_no_value=True)
        try:
            parser.read_string(_read(path))
        except configparser.Error:
            continue  # logind too skips files that it cannot read
        value = parser.get("Login", "KillUserProcesses", fallback=value) or value
    return value.strip().lower() in ("yes", "true", "on", "1", "y", "t")


def _logind_files(root: Path) -> Iterable[Path]:
    """The main configuration file of logind, then the drop-ins in the order of their names, as systemd reads them."""
    main = [root / place.lstrip("/") / "systemd/logind.conf" for place in _LOGIND_PLACES]
    yield from (path for path in main if path.is_file())
    drop_ins: dict[str, Path] = {}
    for place in _LOGIND_PLACES:
        for path in (root / place.lstrip("/") / "systemd/logind.conf.d").glob("*.conf"):
            drop_ins[path.name] = path
    yield from (drop_ins[name] for name in sorted(drop_ins))


def _lingers(root: Path) -> bool:
    import pwd

    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return (root / "var/lib/systemd/linger" / name).exists()


def check_wsl(root: Path = Path("/")) -> list[Finding]:
    """Check the limits of Linux under Windows; no findings elsewhere."""
    kernel = _read(root / "proc/version").lower()
    if "microsoft" not in kernel:
        return []
    if "wsl2" not in kernel and "microsoft-standard" not in kernel:
        return [
            Finding("wsl", "fail", "This is WSL 1, which reaches no GPU.", "In Windows: wsl --set-version <name> 2")
        ]
    home = paths.home()
    if re.match(r"/mnt/[a-z]/", f"{home}/"):
        hint = "Set LOCALTUNE_HOME to a directory of Linux, such as ~/localtune."
        return [Finding("wsl", "warn", f"WSL 2, and {home} is on a Windows disk, which is slow.", hint)]
    if not (root / "usr/lib/wsl/lib/libcuda.so.1").exists():
        hint = "Install the NVIDIA driver in Windows, not in Linux, and run 'wsl --update'."
        return [Finding("wsl", "warn", "WSL 2 without the CUDA library of the Windows driver", hint)]
    what = "WSL 2 with Windows' CUDA library; it has half of the memory unless .wslconfig gives it more"
    return [Finding("wsl", "ok", what)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def output(command: list[str]) -> str:
    """The output of a command; empty where it fails, hangs or does not exist."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
