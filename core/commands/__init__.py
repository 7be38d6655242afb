"""The commands of ``localtune-tui``, one module each: ``add_arguments(parser)`` and ``run(args) -> int``.

A command module imports nothing heavy at its top; ``run`` imports the libraries that it needs.
"""

from __future__ import annotations

import importlib
from types import ModuleType

#: The commands by group, in the order of the help: name to its module and its one-line description.
GROUPS: dict[str, dict[str, tuple[str, str]]] = {
    "prepare": {
        "data": ("data", "check a dataset: format, problems, token lengths, learned tokens"),
        "init": ("init", "write a configuration from a preset for model, card and data"),
        "import": ("import_", "convert a configuration of Axolotl, LLaMA-Factory or Unsloth"),
        "fetch": ("fetch", "download a dataset or model of the Hugging Face Hub"),
        "plan": ("plan", "predict the memory of a run, part by part, and whether it fits"),
        "bits": ("bits", "measure the cost of 4 bits on your rows, layer by layer"),
    },
    "train": {
        "demo": ("demo", "train the starter model on sample tickets; ask it before and after"),
        "train": ("train", "train with a configuration file"),
        "continue": ("continue_", "resume an ended run from its last checkpoint"),
        "queue": ("queue", "run configurations one after the other; sweep over options"),
    },
    "follow and control a run": {
        "runs": ("runs", "list runs with their figures"),
        "watch": ("watch", "follow a run; Ctrl-C leaves it running"),
        "status": ("status", "print a run in one line, or all live runs as Prometheus metrics"),
        "pause": ("control", "hold a run after its present step"),
        "resume": ("control", "let a paused run go on"),
        "park": ("control", "make a run give its device back, until 'resume'"),
        "checkpoint": ("control", "make a run save a checkpoint now"),
        "set": ("set_", "change the learning rate, an interval or a limit of a live run"),
        "stop": ("stop", "stop a run after a checkpoint, at once, or by force"),
    },
    "use the result": {
        "chat": ("chat", "talk to a run's model, or to any model"),
        "compare": ("compare", "compare runs: figures, options, curves, answers"),
        "eval": ("eval", "compare models on a file of prompts, or run a benchmark"),
        "export": ("export", "write the result for other programs, verified against the run"),
        "serve": ("serve", "offer a model to other programs by OpenAI's API, locally"),
    },
    "tidy up": {
        "label": ("label", "give a run a name, tags and a note, or archive it"),
        "rm": ("rm", "move runs to the trash"),
        "trash": ("trash", "list, restore or delete the runs in the trash"),
    },
    "check this machine": {
        "doctor": ("doctor", "check libraries, driver, card, disk and limits"),
        "selftest": ("selftest", "verify training on this device: fast paths, memory, resume, speed"),
    },
    "seldom needed": {
        "verify": ("verify", "check a run's hash chain, and replay parts of it byte for byte"),
        "slurm": ("slurm", "former name of train --slurm"),
        "track": ("track", "send a run's metrics to a tracker: the missing ones, or all"),
        "notify": ("notify", "send a test notice as set in notify.toml"),
        "schema": ("schema", "print the configuration's JSON Schema, or its reference page"),
        "completion": ("completion", "print the completion script for bash, zsh or fish"),
    },
}
#: All commands: name to module and description.
COMMANDS: dict[str, tuple[str, str]] = {name: entry for group in GROUPS.values() for name, entry in group.items()}


def load_command(name: str) -> ModuleType:
    """The module of a command in :data:`COMMANDS`."""
    return importlib.import_module(f"core.commands.{COMMANDS[name][0]}")
