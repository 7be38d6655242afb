"""The commands by group in the help; arguments that contradict each other."""

from __future__ import annotations

import shlex

import pytest

from core.commands import COMMANDS, GROUPS
from core.commands.command_line import app_parser, command_parser
from tests.cases import cases

CONTRADICTIONS = [
    ("train x.toml --detach --no-start", "--detach and --no-start do not go together: a run that is not started"),
    ("train x.toml --slurm x.sbatch --detach", "--slurm and --detach do not go together: Slurm starts the run."),
    ("train x.toml --slurm - --json", "--slurm - and --json do not go together: both are printed"),
    ("slurm x.toml --json --output -", "--output - and --json do not go together: both are printed"),
    ("compare a b --markdown - --json", "--markdown - and --json"),
    ("compare a b --csv - --curves -", "--csv - and --curves -"),
    ("eval a --show --limit 3", "--show and --limit do not go together: --show asks nothing."),
    ("eval a --show --against base", "--show and --against"),
    ("eval a --show --with lm-eval", "--show and --with"),
    ("init rows.jsonl --list", "--list and FILE do not go together: --list makes no configuration."),
    ("init --list --data rows.jsonl", "--list and --data"),
    ("init --list --out x.toml", "--list and --out"),
    ("serve a --uds socket --port 0", "--uds and --port do not go together: a Unix socket has neither"),
    ("serve a --uds socket --host 0.0.0.0", "--uds and --host"),
    ("status --prometheus --json", "--prometheus and --json"),
    ("verify a --whole --spans 2", "--whole and --spans"),
    ("verify a --whole --seed 0", "--whole and --seed"),
]


@cases(("line", "said"), CONTRADICTIONS)
def test_what_contradicts_itself_is_wrong_usage(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *words = shlex.split(line)
    with pytest.raises(SystemExit) as caught:
        command_parser(command).parse_args(words)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"error: {said}" in err


@cases("line", [
    "train x.toml --detach --json", "train x.toml --no-start --json", "train x.toml --slurm x.sbatch --json --nodes 2",
    "slurm x.toml --output -", "slurm x.toml --output job.sbatch --json", "compare a b --markdown - --csv figures.csv",
    "compare a b --markdown report.md --json", "eval a --show --out answers.md --json", "init --list --json",
    "serve a --port 0", "serve a --uds socket --json", "status --prometheus", "verify a --whole --json",
    "verify a --spans 2 --seed 0",
])  # fmt: skip
def test_what_goes_together_is_taken(line: str) -> None:
    command, *words = shlex.split(line)
    taken = vars(command_parser(command).parse_args(words))
    for option in (word for word in words if word.startswith("--")):
        value = taken[option[2:].replace("-", "_")]
        assert value is not None, option
        assert value is not False, option


def test_help_lists_the_commands_by_group() -> None:
    shown = app_parser().format_help()
    assert sorted(COMMANDS) == sorted(name for group in GROUPS.values() for name in group)
    blocks = {block.partition(":\n")[0]: block.splitlines()[1:] for block in shown.split("\n\n")}
    for title, group in GROUPS.items():
        assert [line.split()[0] for line in blocks[title]] == list(group)
    places = [shown.index(f"\n{title}:\n") for title in GROUPS]
    assert places == sorted(places)
    assert max(map(len, shown.splitlines())) <= 80
