"""The commands of ``localtune-tui``, one module each: ``add_arguments(parser)`` and ``run(args) -> int``.

A command module imports nothing heavy at its top; ``run`` imports the libraries that it needs.
"""

from __future__ import annotations

import importlib
from types import ModuleType

#: Command name to its module and its one-line description, in the order of the help.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "train the starter model on the sample tickets, and ask it before and after"),
    "init": ("init", "a configuration to start from, made from a preset for the model, the card and the data"),
    "train": ("train", "train as a configuration file says"),
    "slurm": ("slurm", "former name of train --slurm: a batch file for Slurm"),
    "runs": ("runs", "list runs, with what each came to"),
    "compare": ("compare", "runs side by side: figures, what differs, curves, answers; as Markdown, CSV or JSON"),
    "label": ("label", "give a run a name, tags and a note, or archive it"),
    "watch": ("watch", "follow a run; Ctrl-C leaves it running"),
    "status": ("status", "a run in one line for a status bar, or all live runs as metrics for Prometheus"),
    "pause": ("control", "hold a run after its present step"),
    "resume": ("control", "let a paused run go on"),
    "park": ("control", "make a run give its device back, until 'resume'"),
    "checkpoint": ("control", "make a run save a checkpoint now"),
    "set": ("set_", "change the learning rate or an interval of a run while it is on"),
    "stop": ("stop", "stop a run after a checkpoint, at once, or by force"),
    "continue": ("continue_", "go on with an ended run from its last checkpoint"),
    "queue": ("queue", "let runs wait for the device and start one after the other; sweeps over options"),
    "notify": ("notify", "send a test notice as notify.toml says, and tell what went wrong"),
    "rm": ("rm", "move runs to the trash, after saying what goes and how large it is"),
    "trash": ("trash", "list, restore or delete for good the runs in the trash"),
    "track": ("track", "send a run's figures to a tracker: what it missed, or all of it"),
    "data": ("data", "what a dataset is, what is wrong with it, and what would be learned of it"),
    "import": ("import_", "turn a configuration of Axolotl, LLaMA-Factory or Unsloth into one of ours"),
    "fetch": ("fetch", "download a dataset or a model from the Hugging Face Hub, to be used without the network"),
    "plan": ("plan", "how much memory a run would take, and whether it fits"),
    "bits": ("bits", "what 4 bits cost on your rows, layer by layer, before a run"),
    "chat": ("chat", "talk to a run's model, or to any model"),
    "verify": ("verify", "check a run's hash chain, and execute parts of it again: every byte must come out equal"),
    "export": ("export", "write a run's result as files for other programs, proven to answer as it does"),
    "eval": ("eval", "put a file of prompts to models and compare the answers, or measure a benchmark"),
    "serve": ("serve", "let other programs use a run's model: OpenAI's API, on this machine alone"),
    "schema": ("schema", "the configuration as JSON Schema for editors, or as the reference page"),
    "completion": ("completion", "print a script that lets bash, zsh or fish complete the command line"),
    "doctor": ("doctor", "what this machine can do, and what would go wrong on it"),
    "selftest": ("selftest", "prove on this device that training is right: fast paths, memory, resume, speed"),
}


def load_command(name: str) -> ModuleType:
    """The module that carries out a command of :data:`COMMANDS`."""
    return importlib.import_module(f"core.commands.{COMMANDS[name][0]}")
