"""``completion SHELL``: a completion script for a shell, which completes without starting this program.

shtab writes the script from the parsers; ``shells/`` has the functions that list runs, models and files.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files

from core.commands.common import add_json_flag, emit, put

SHELLS = ("bash", "zsh", "fish")

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
    ("compare", "markdown"): "any_file",
    ("compare", "csv"): "any_file",
    ("compare", "curves"): "any_file",
    ("continue", "checkpoints"): "any_file",
    ("data", "template"): "template_file",
    ("export", "out"): "any_file",
    ("eval", "prompts"): "any_file",
    ("eval", "out"): "any_file",
    ("eval", "include"): "any_file",
    ("import", "file"): "yaml_file",
    ("import", "out"): "config_file",
    ("init", "out"): "config_file",
    ("init", "preset"): "presets",
    ("queue", "preset"): "presets",
    ("schema", "out"): "any_file",
    ("serve", "uds"): "any_file",
    ("slurm", "output"): "any_file",
    ("train", "preset"): "presets",
    ("train", "slurm"): "any_file",
    ("trash", "runs"): "trash",
}
#: Text behind the script. For bash, an option's value follows its name without a space; fish has no files by itself.
_AFTER = {
    "bash": """
_localtune_tui() {
  _shtab_localtune_tui "$@"
  [[ ${#COMPREPLY[@]} == 1 && "${COMPREPLY[0]}" == *= ]] && compopt -o nospace
  return 0
}
complete -o bashdefault -F _localtune_tui localtune-tui
""",
    "zsh": "",
    "fish": """
complete -c localtune-tui -n '_shtab_localtune_tui_using; and test $_shtab_localtune_tui_npos -eq 0' \\
  -ka '(_localtune_tui_opened_file)'
""",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help="bash, zsh or fish")
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
    functions = files("core.commands").joinpath("shells").joinpath(f"functions.{shell}").read_text(encoding="utf-8")
    lists = "\n".join(_assignment(shell, f"_localtune_tui_{name}", words) for name, words in _word_lists().items())
    script: str = shtab.complete(parser, shell, preamble=f"{lists}\n\n{functions}")
    if shell == "zsh":
        # shtab writes an argument that may be repeated so that zsh completes it once.
        script = script.replace('"(*)::', '"*:').replace('"(*):', '"*:')
    return f"{script.rstrip()}\n{_AFTER[shell]}"


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
    return _BY_ARGUMENT.get((command, action.dest)) or _BY_METAVAR.get(str(action.metavar))


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
