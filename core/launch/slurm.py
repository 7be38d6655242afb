"""Batch files for Slurm's ``sbatch``: a task per card, rendezvous at the first node, requeued when the time is over."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import UserError
from core.text import one_line

#: Seconds before the end of a job's time at which Slurm sends a signal, so that a checkpoint can be written.
NOTICE_SECONDS = 180
#: Time limits of Slurm: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].
_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}", re.ASCII)
#: Names of partitions and accounts, separated by commas.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*", re.ASCII)

#: What follows the options of a batch file; its parts in braces are filled in.
_BODY = Path(__file__).with_name("job.bash")
_PART = re.compile(r"\{(python|config|options|name|restarts)\}")


@dataclass(frozen=True)
class SlurmJob:
    """A training as a job of Slurm.

    Args:
        config: The configuration file, absolute.
        options: More arguments of the command that makes the run: ``--set``, ``section.key=value``.
        name: Subject of the run.
        nodes: Number of machines.
        processes: Processes per machine.
        cards: Cards per machine; 0 for the CPU.
        restarts: Restarts after a lost process.
        time: Time limit in Slurm's format; empty for the partition's.
        partition: Partition; empty for the default.
        account: Account; empty for the default.
        python: The interpreter, on a disk that all nodes share.
    """

    config: Path
    options: Sequence[str] = ()
    name: str = "run"
    nodes: int = 1
    processes: int = 1
    cards: int = 1
    restarts: int = 3
    time: str = ""
    partition: str = ""
    account: str = ""
    python: str = sys.executable

    def __post_init__(self) -> None:
        if self.time and not _TIME.fullmatch(self.time):
            raise UserError(
                f"--time {one_line(self.time, 40)} is no time limit.", "Write it as 12:00:00 or 2-00:00:00."
            )
        for flag, value in (("--partition", self.partition), ("--account", self.account)):
            if value and not _NAME.fullmatch(value):
                raise UserError(f"{flag} {one_line(value, 40)} is not a name that Slurm knows.", "'sinfo' lists them.")

    def batch_file(self) -> str:
        """The text for ``sbatch``."""
        wanted = [
            f"--job-name={self.name}",
            f"--nodes={self.nodes}",
            f"--ntasks-per-node={self.processes}",
            *([f"--gpus-per-node={self.cards}"] if self.cards else []),
            *([f"--time={self.time}"] if self.time else []),
            *([f"--partition={self.partition}"] if self.partition else []),
            *([f"--account={self.account}"] if self.account else []),
            f"--output={self.name}-%j.log",
            "--open-mode=append",
            "--requeue",
            f"--signal=B:USR1@{NOTICE_SECONDS}",
        ]
        head = "".join(f"#SBATCH {option}\n" for option in wanted)
        parts = {
            "python": shlex.quote(self.python),
            "config": shlex.quote(str(self.config)),
            "options": "".join(f" {shlex.quote(word)}" for word in self.options),
            "name": shlex.quote(self.name),
            "restarts": str(self.restarts),
        }
        body = _PART.sub(lambda found: parts[found[1]], _BODY.read_text(encoding="utf-8"))
        return f"#!/bin/bash\n{head}\n{body}"
