"""``completion SHELL``: a completion script for a shell, which completes without starting this program.

shtab writes the script from the parsers; ``shells/`` has the functions that list runs, models and files.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core.commands.common import add_json_flag, emit, put

SHELLS = ("bash", "zsh", "fish")
_SHELLS = Path(__file__).with_name("shells")

#: By the name of an argument's value in the help: the function in ``shells/`` that completes it.
_BY_METAVAR = {
    "RUN": "runs",
    "RUN[@STEP]": "runs",
    "CONFIG": "config_file",
    "MODEL": "models_or_dirs",
    "RUN|MODEL": "chat_dirs",
    "RUN[@STEP]|MODEL": "chat_dirs",
    "FILE": "data_file",
    "SECTION.KEY=VALUE": "keys",
    "KEY=VALUE": "live_keys",
}
#: The same by command and argument, where the name of the value is ambiguous.
_BY_ARGUMENT = {
    argument: function
    for function, arguments in {
        "any_file": "compare.markdown compare.csv compare.curves continue.checkpoints export.out eval.prompts eval.out "
        "eval.include schema.out serve.uds slurm.output train.slurm",
        "template_file": "data.template",
        "import_file": "import.file",
        "config_file": "import.out init.out",
        "presets": "init.preset queue.preset train.preset",
        "trash": "trash.runs",
    }.items()
    for argument in arguments.split()
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS)
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    script = completion_script(args.shell)
    if args.json:
        emit({"shell": args.shell, "script": script})
    else:
        put(script)
    return 0


def completion_script(shell: str) -> str:
    """The script for a shell of :data:`SHELLS`."""
    import shtab

    from core.commands.command_line import whole_parser

    parser = whole_parser()
    for command, action in arguments_of(parser):
        if (name := completer(command, action)) is not None:
            function = f"_localtune_tui_{name}"
            # shtab reads this attribute, which argparse does not declare.
            vars(action)["complete"] = {"bash": function, "zsh": function, "fish": f"({function})"}
    functions = (_SHELLS / f"functions.{shell}").read_text("utf-8")
    lists = "\n".join(_assignment(shell, f"_localtune_tui_{name}", words) for name, words in _word_lists().items())
    script: str = shtab.complete(parser, shell, preamble=f"{lists}\n\n{functions}")
    if shell == "zsh":
        # shtab writes an argument that may be repeated so that zsh completes it once.
        script = script.replace('"(*)::', '"*:').replace('"(*):', '"*:')
    # In bash, an option's value follows its name without a space; fish has no files by itself.
    after = "" if shell == "zsh" else (_SHELLS / f"after.{shell}").read_text("utf-8")
    return f"{script.rstrip()}\n{after}"


def arguments_of(parser: argparse.ArgumentParser, command: str = "") -> Iterator[tuple[str, argparse.Action]]:
    """The arguments that take a value, each with its command; the app's own with an empty name."""
    # argparse has no public list of arguments; shtab reads the private one too.
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from arguments_of(below, command or name)
        elif action.nargs != 0:
            yield command, action


def completer(command: str, action: argparse.Action) -> str | None:
    """The function in ``shells/`` for the values of an argument; None for free text, and for a list of choices."""
    if action.choices is not None:
        return None
    return _BY_ARGUMENT.get(f"{command}.{action.dest}") or _BY_METAVAR.get(str(action.metavar))


def _word_lists() -> Mapping[str, Sequence[str]]:
    from core.commands.configuration import AUTO
    from core.config.live import CHANGEABLE
    from core.config.schema import options
    from core.path_kind import ROW_SUFFIXES
    from core.presets.library import presets

    return {
        "data_patterns": [f"*{suffix}" for suffix in ROW_SUFFIXES],
        "preset_names": [AUTO, *presets()],
        "all_keys": [f"{option.name}=" for option in options()],
        "some_keys": [f"{name}=" for name in CHANGEABLE],
    }


def _assignment(shell: str, name: str, words: Sequence[str]) -> str:
    listed = " ".join(map(shlex.quote, words))
    return f"set -g {name} {listed}" if shell == "fish" else f"{name}=({listed})"
