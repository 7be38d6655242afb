"""Commands on another machine over ssh: without a password, without a daemon, without a word of the configuration in
a shell.

What is run there is a module of this program, which is told everything else on its standard input.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from core.errors import UserError
from core.text import one_line

#: Seconds for a connection to be made, between two signs of life on it, and how many of these may be missed.
CONNECT_SECONDS, ALIVE_SECONDS, ALIVE_MISSED = 10, 5, 3
#: Seconds for a whole login, its shell included.
_LOGIN_SECONDS = 30
#: The exit code of ssh itself where it could not connect, and that of a shell that found no program.
SSH_FAILED, NOT_FOUND = 255, 127

#: Options of ssh. It asks nothing, forwards nothing, and has a connection of its own that ends with it.
_OPTIONS = (
    *("BatchMode=yes", f"ConnectTimeout={CONNECT_SECONDS}", f"ServerAliveInterval={ALIVE_SECONDS}"),
    *(f"ServerAliveCountMax={ALIVE_MISSED}", "ClearAllForwardings=yes", "ForwardAgent=no", "ForwardX11=no"),
    *("ControlMaster=no", "ControlPath=none", "RequestTTY=no", "EscapeChar=none", "LogLevel=ERROR"),
)
#: A name for ssh: user, name or address, port by ``ssh://``. Nothing that ssh or a shell takes for something else.
_HOST = re.compile(r"(?:ssh://)?[A-Za-z0-9_][A-Za-z0-9_.%@:\[\]-]*", re.ASCII)
#: Finds the Python that has this program there: where it is here, else that of the command ``localtune-tui``. It runs
#: in the root, so that no directory called core in the user's home is imported.
_SCRIPT = """
has() { [ -x "$1" ] && PYTHONSAFEPATH=1 PYTHONPATH="$2" "$1" -c "import core.launch.nodes" 2>/dev/null; }
cd / && root=$2
[ -d "$root/core/launch/nodes" ] || root=
python=$1
if ! has "$python" "$root"; then
  root=
  entry=$(command -v localtune-tui || echo "$HOME/.local/bin/localtune-tui")
  python=$(sed -n "1s/^#! *//p" "$entry" 2>/dev/null)
  if ! has "$python" ""; then exit 127; fi
fi
export PYTHONSAFEPATH=1 PYTHONPATH="$root"
exec "$python" -m "$3"
"""
#: What ssh prints, and what to do about it.
_ADVICE = (
    ("host key verification failed", "Log in once by hand with 'ssh {host}', so that its key is known."),
    ("permission denied", "Set up a key without a password for it: ssh-copy-id {host}."),
    ("could not resolve", "Check the name in distributed.hosts."),
    ("connection refused", "Start its ssh server, or name the port in ~/.ssh/config."),
    ("timed out", "Look whether it is on, and in the same network."),
    ("no route to host", "Look whether it is on, and in the same network."),
)


def check_host(host: str) -> None:
    """Refuse what is no name for ssh, such as an option of it.

    Raises:
        UserError: If it is none.
    """
    if not _HOST.fullmatch(host):
        raise UserError(
            f"distributed.hosts has '{one_line(host, 60)}', which is no name of a machine.",
            "Write it as ssh takes it: tower, me@10.0.0.7 or ssh://me@tower:2222.",
        )


def ssh_command(host: str, module: str, python: str = sys.executable) -> list[str]:
    """The command line that runs a module of this program on another machine.

    Args:
        host: The machine, as ssh names it.
        module: The module.
        python: The interpreter that is tried there first.

    Raises:
        UserError: If it is no name.
    """
    root = str(Path(__file__).resolve().parents[3])
    remote = " ".join(["exec", "sh", "-c", *(shlex.quote(word) for word in (_SCRIPT, "sh", python, root, module))])
    return _command(host, remote)


def _command(host: str, remote: str) -> list[str]:
    check_host(host)
    options = [word for option in _OPTIONS for word in ("-o", option)]
    return ["ssh", "-T", *options, "--", host, remote]


def log_in(host: str) -> None:
    """Log in at another machine, and out again.

    Raises:
        UserError: If it cannot be reached.
    """
    try:
        found = subprocess.run(
            _command(host, "true"), stdin=subprocess.DEVNULL, capture_output=True, timeout=_LOGIN_SECONDS, cwd=Path("/")
        )
    except subprocess.TimeoutExpired:
        raise ssh_failure(host, SSH_FAILED, [f"no answer in {_LOGIN_SECONDS} s"]) from None
    except OSError as error:
        raise _no_client(error) from error
    if found.returncode:
        raise ssh_failure(host, found.returncode, found.stderr.decode("utf-8", "replace").strip().splitlines())


def start_ssh(host: str, module: str) -> subprocess.Popen[bytes]:
    """Start a module on another machine, its standard streams as pipes; it has no terminal to ask at.

    Raises:
        UserError: If there is no ssh on this machine, or the name is none.
    """
    try:
        return subprocess.Popen(
            ssh_command(host, module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=Path("/"),
        )
    except OSError as error:
        raise _no_client(error) from error


def _no_client(error: OSError) -> UserError:
    return UserError(
        f"ssh cannot be started: {error.strerror}.", "Install OpenSSH's client; distributed.hosts needs it."
    )


def ssh_failure(host: str, status: int, last_words: Sequence[str]) -> UserError:
    """The error for a command on another machine that ended without its answer.

    Args:
        host: The machine.
        status: The exit status of ssh; negative for a signal.
        last_words: The last lines of its standard error.
    """
    said = one_line(last_words[-1], 300).removeprefix("ssh: ").rstrip(".") if last_words else ""
    if status == NOT_FOUND:
        return UserError(f"localtune-tui is not installed on {host}.", "Install the same version there.")
    if status == SSH_FAILED:
        reason = said or "the connection was closed"
        advice = next((hint for words, hint in _ADVICE if words in reason.lower()), "Try 'ssh {host} true' by hand.")
        return UserError(f"{host} cannot be reached over ssh: {reason}.", advice.format(host=host))
    ending = said or f"its command ended with {status}"
    return UserError(f"{host} did not answer: {ending}.", f"Try 'ssh {host} localtune-tui doctor' by hand.")
