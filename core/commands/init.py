"""``init``: a new configuration from a preset for the model, the card and the data."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.commands.common import (
    PROGRAM,
    add_json_flag,
    add_set,
    card_memory,
    emit,
    fields,
    note,
    put,
    refuse_existing,
    say,
    tell_measuring,
    write_file,
)
from core.commands.parser import ArgumentParser, column_parts
from core.config.choices import AIMS, OBJECTIVES
from core.errors import UserError

if TYPE_CHECKING:
    from core.presets.advised import Advised
    from core.presets.begin import HeldOut
    from core.presets.choose import Choice


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("files", metavar="FILE", nargs="*")
    parser.add_argument("--model", metavar="MODEL")
    parser.add_argument("--data", metavar="FILE", action="append")
    parser.add_argument("--eval", metavar="FILE", action="append")
    parser.add_argument("--columns", metavar="PART=COLUMN,…", type=column_parts)
    parser.add_argument("--objective", choices=OBJECTIVES)
    parser.add_argument("--preset", metavar="NAME", default="auto")
    parser.add_argument("--aim", choices=AIMS, default="balanced")
    parser.add_argument("--gpu-memory", metavar="SIZE")
    add_set(parser, "an option for the file; may be repeated")
    parser.add_argument("--out", metavar="FILE")
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--list", action="store_true")
    add_json_flag(parser)
    for written in ("FILE", "--data", "--out"):
        parser.add_conflict("--list", written, "--list makes no configuration.")


def run(args: argparse.Namespace) -> int:
    """Write the file, and print the chosen preset with the reason."""
    from core.models.architecture.measuring import telling

    with telling(tell_measuring()):
        return _init(args)


def _init(args: argparse.Namespace) -> int:
    if args.list:
        return _list(as_json=args.json)
    args.data = [*args.files, *(args.data or [])]
    if not args.data:
        raise UserError("There is no data to train on.", f"Name a file: {PROGRAM} init FILE.")
    out = _output(args)
    made = _make(args, out or Path("draft.toml"))
    if out is not None:
        write_file(out, made.text, force=args.force)
    if args.json:
        emit(_as_json(made, out))
    elif out is None:
        note(*filter(None, (made.choice.why, made.learns)), *map(str, made.advised))
        put(made.text)
    else:
        _tell(made, out)
    return 0


def _output(args: argparse.Namespace) -> Path | None:
    """The file to write; None where it is printed.

    Raises:
        UserError: If it exists and may not be replaced.
    """
    out = None if args.out == "-" else Path(os.path.expanduser(args.out or f"{_stem(args.data[0])}.toml"))
    if out is not None and not args.force:
        refuse_existing(out)
    return out


class _Made(NamedTuple):
    """A new configuration, with the decisions behind it."""

    text: str
    choice: Choice
    held_out: HeldOut | None
    advised: tuple[Advised, ...]
    learns: str = ""
    """The reason for an objective that the rows decide."""


def _make(args: argparse.Namespace, path: Path) -> _Made:
    """The configuration for the model and the rows, checked; remarks on it are noted.

    Args:
        args: The command's arguments.
        path: The file that it is for; paths in it are relative to its directory.

    Raises:
        UserError: If model or rows cannot be used.
    """
    from core.commands.configuration import choose, find_card_of, gather_facts
    from core.commands.live_line import busy
    from core.commands.train import check_data, check_model
    from core.config.document import ConfigDocument
    from core.presets.advised import taken_values
    from core.presets.begin import advice_on, held_out_of, needed_objective
    from core.presets.choose import PREFERENCE_RATE
    from core.presets.library import TOGETHER

    asked = _asked(args, path.parent)
    # Checked before the choice, which reads the model and the rows.
    document = ConfigDocument(draft_config(asked), path.parent / "draft.toml")
    config = document.validate()
    check_model(config)
    learns = ""
    if "train.objective" not in asked and (needed := needed_objective(config)) is not None:
        asked["train.objective"], learns = needed
        document.set("train.objective", asked["train.objective"])
        config = document.validate()
    check_data(config)
    memory = card_memory(args.gpu_memory)
    with busy("reading the model and the first rows"):
        choice = choose(args.preset, config, args.aim, memory)
        held_out = held_out_of(config, choice)
        advised = advice_on(config.model.base, choice, find_card_of(config, memory))
    given = held_out.values if held_out is not None else {}
    values = {**choice.preset.values, **given, **taken_values(advised)}
    remarks = {"train.objective": learns} if learns else {}
    if config.train.objective != "sft" and values.get("train.learning_rate", 1.0) >= PREFERENCE_RATE:
        values["train.learning_rate"] = PREFERENCE_RATE
        remarks["train.learning_rate"] = "Preference training takes small steps: it changes what is learned already."
    replaced = {name for pair in TOGETHER if asked.keys() & {*pair} for name in pair}
    values = {name: value for name, value in values.items() if name not in replaced} | asked
    if values.get("eval.every_steps") is not None:
        values.pop("eval.every_epochs", None)
    if choice.max_length is not None:
        values["train.max_length"] = choice.max_length
    text = _draft(values, choice, held_out, advised, remarks)
    document = ConfigDocument(text, path)
    facts = gather_facts(document.validate())
    if memory is not None:
        facts = replace(facts, device="cuda", device_bytes=memory, bf16=None)
    note(*(f"{remark.level}: {remark.sentence} {remark.hint}" for remark in document.remarks(facts)))
    return _Made(text, choice, held_out, advised, learns)


def _as_json(made: _Made, out: Path | None) -> dict[str, Any]:
    advice = [
        {
            "option": item.advice.option or None,
            "value": item.advice.value,
            "taken": item.taken,
            "says": f"{item.advice.models}: {item.advice.says} {item.why}".strip(),
            "source": item.advice.source,
        }
        for item in made.advised
    ]
    return {
        "file": str(out) if out is not None else None,
        "preset": made.choice.preset.name,
        "why": f"{made.choice.why} {made.learns}".strip(),
        "advice": advice,
        "toml": made.text,
    }


def _tell(made: _Made, out: Path) -> None:
    """Print the file, the reasons and the next command."""
    say(f"Written to {out} with the preset {made.choice.why}")
    if made.held_out is not None:
        note(f"{made.held_out} (data.eval_share), for evaluation; --eval names other rows.")
    note(*filter(None, (made.learns,)), *map(str, made.advised))
    note(f"Review and start it: {PROGRAM} {out}   (or {PROGRAM} train {out})")


def _asked(args: argparse.Namespace, base: Path) -> dict[str, Any]:
    """The options that the arguments set, with paths relative to the directory of the new file."""
    from core.config.document import ConfigDocument
    from core.config.schema import ModelSection, options

    model = args.model if args.model is not None else ModelSection().base
    # A model may be a hub name; only an existing path is changed.
    exists = args.model is not None and os.path.exists(os.path.expanduser(model))
    values: dict[str, Any] = {"model.base": _relative(model, base) if exists else model}
    for name, given in (("data.train", args.data), ("data.eval", args.eval)):
        if given:
            paths = [_relative(path, base) for path in given]
            values[name] = paths[0] if len(paths) == 1 else paths
    named = {"data.columns": args.columns, "train.objective": args.objective}
    values |= {name: value for name, value in named.items() if value is not None}
    document = ConfigDocument()
    document.apply(args.set)
    for option in options():
        if (value := document.get(option.name)) is not None:
            values[option.name] = value
    return values


def _relative(path: str, base: Path) -> str:
    """A path relative to a directory: relative where it is below it, else absolute."""
    whole, directory = os.path.abspath(os.path.expanduser(path)), os.path.abspath(base)
    return os.path.relpath(whole, directory) if whole.startswith(directory.rstrip("/") + "/") else whole


def _stem(path: str) -> str:
    """The stem of a data file's name: ``rows`` of ``data/rows.jsonl.gz``, ``name`` of ``dataset_info.json#name``."""
    file, _, entry = path.rpartition("#")
    return entry if file and entry else (os.path.basename(os.path.abspath(path)).split(".")[0] or "localtune")


def _draft(
    values: dict[str, Any],
    choice: Choice,
    held_out: HeldOut | None,
    advised: tuple[Advised, ...],
    remarks: Mapping[str, str],
) -> str:
    from core.presets.switch import note_line

    head = [
        note_line(choice.preset.name).removeprefix("# "),
        f"Made by '{PROGRAM} init' with the preset {choice.why}",
        "What is not written here has its default; docs/reference/configuration.md explains every option.",
    ]
    head += [f"Not written, for you to decide: {item}" for item in advised if not item.taken]
    notes = dict(choice.preset.notes)
    for item in advised:
        if item.taken:
            notes[item.advice.option] = f"{item.advice.models}: {item.advice.says} ({item.advice.source})"
    notes |= remarks
    if held_out is not None:
        notes |= held_out.notes
    return draft_config(values, head=head, notes=notes)


def _list(*, as_json: bool) -> int:
    from core.presets.library import presets

    if as_json:
        emit(
            [
                fields(preset, "name", "about", "aim", "memory_gb", "parameters", "values")
                for preset in presets().values()
            ]
        )
        return 0
    width = max(map(len, presets()))
    say(*(f"{preset.name:<{width}}  {preset.about}" for preset in presets().values()))
    return 0


_WIDTH = 110
_EVAL_EXAMPLE = '# eval = "held-out.jsonl"'


def draft_config(values: Mapping[str, Any], *, head: Sequence[str] = (), notes: Mapping[str, str] | None = None) -> str:
    """A TOML text with some options, each below its help.

    Args:
        values: ``section.key`` to value; options that do not exist are an error.
        head: Paragraphs for the top of the file.
        notes: More to say about an option, below its help.

    Raises:
        KeyError: If a value is for no option.
    """
    import tomlkit

    from core.config.document import as_item
    from core.config.schema import find_option, options

    for name in values:
        if find_option(name) is None:
            raise KeyError(name)
    lines = [line for paragraph in head for line in _comment(paragraph)]
    section = ""
    for option in options():
        is_example = option.name == "data.eval" and not values.keys() & {"data.eval", "data.eval_share"}
        if option.name not in values and not is_example:
            continue
        if option.section != section:
            section = option.section
            lines += ["", f"[{section}]"]
        lines += _comment(option.help)
        if note := (notes or {}).get(option.name):
            lines += _comment(note)
        if is_example:
            lines.append(_EVAL_EXAMPLE)
        else:
            lines.append(f"{option.key} = {tomlkit.item(as_item(values[option.name])).as_string()}")
    return "\n".join(lines).lstrip("\n") + "\n"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
    )
