"""A user's own check of an answer: a program that gets JSON on standard input and prints a score."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.text import last_line, one_line

#: Seconds of a check for an answer.
SECONDS = 30.0
#: Most bytes of its output that are read.
_OUTPUT_LIMIT = 1 << 16


@dataclass(frozen=True)
class Check:
    """A check command: a program and its arguments, started without a shell.

    It gets one JSON object on standard input: ``id``, ``messages``, ``expected`` (or null) and ``answer``. If it prints
    a number from 0 to 1 on the last line of standard output and exits with 0, that is the score; without a number, exit
    code 0 is 1 and exit code 1 is 0. Anything else is an error of the check.
    """

    command: tuple[str, ...]
    seconds: float = SECONDS

    @classmethod
    def parse(cls, text: str) -> Check:
        """Parse a command as it is typed, split into words like a shell, without other features of a shell.

        Raises:
            UserError: If it is empty, has an open quote, or there is no such program.
        """
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise UserError(
                f"The check '{one_line(text, 80)}' cannot be read: {error}.", "Close its quotes."
            ) from error
        if not words:
            raise UserError("The check is empty.", "Name a program, as in --check 'python check.py'.")
        program = os.path.expanduser(words[0])
        found = shutil.which(program)
        if found is None:
            raise UserError(
                f"There is no program {one_line(words[0], 80)} to check answers with.",
                "Give its path, and make it executable; a script can be run as 'python check.py'.",
            )
        return cls((os.path.abspath(found), *words[1:]))

    def score(self, facts: Mapping[str, Any]) -> float:
        """The score of an answer, from 0 to 1.

        Args:
            facts: Its input on standard input.

        Raises:
            UserError: If it takes too long, ends in another way, or prints a number outside of 0 to 1.
        """
        name = one_line(os.path.basename(self.command[0]), 40)
        try:
            # A session of its own, so that its child processes end with it.
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            raise UserError(f"The check {name} cannot be started: {error.strerror}.", "Fix it, then go on.") from error
        try:
            told, said = process.communicate(json.dumps(dict(facts)).encode(), timeout=self.seconds)
        except subprocess.TimeoutExpired as error:
            raise UserError(
                f"The check {name} takes more than {self.seconds:g} s for one answer.", "Make it faster."
            ) from error
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        texts = (output[-_OUTPUT_LIMIT:].decode("utf-8", errors="replace") for output in (told, said))
        return _score(name, process.returncode, *texts)


def _score(name: str, code: int, told: str, said: str) -> float:
    if code not in (0, 1):
        last = last_line(said, 160) or last_line(told, 160)
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        raise UserError(
            f"The check {name} {ended}{f': {last}' if last else ''}.",
            "It has to end with 0 for a right answer and 1 for a wrong one.",
        )
    if code == 1:
        # An uncaught exception ends Python with 1 as well, and is no wrong answer.
        if "Traceback (most recent call last)" in said:
            raise UserError(f"The check {name} failed: {last_line(said, 160)}.", "Fix it, then go on.")
        return 0.0
    last = last_line(told)
    try:
        score = float(last)
    except ValueError:
        return 1.0
    if not math.isfinite(score) or not 0 <= score <= 1:
        raise UserError(f"The check {name} prints {one_line(last, 40)}, and a score is from 0 to 1.", "Scale it.")
    return score
