"""A worker, ``python watched_worker.py STATE RUN [--resume]``, that saves the state with which it continues training.

It runs ``core.worker`` like any other. ``STATE`` is then a torch file with the optimizer's ``parameters`` just before
its first step, and the ``states`` of each.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook


def watch(path: Path) -> None:
    """Have the state be written before the first step of any optimizer."""

    def keep(optimizer: torch.optim.Optimizer, _args: Any, _options: Any) -> None:
        if path.exists():
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        states = [dict(optimizer.state[parameter]) for parameter in parameters]
        torch.save({"parameters": [parameter.detach() for parameter in parameters], "states": states}, path)

    register_optimizer_step_pre_hook(keep)


if __name__ == "__main__":
    watch(Path(sys.argv.pop(1)))
    runpy.run_module("core.worker", run_name="__main__", alter_sys=True)
