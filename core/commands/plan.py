"""``plan CONFIG`` and ``plan --model MODEL``: the memory that a run would need, part by part, and whether it fits."""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.commands.common import add_config, add_json_flag, card_memory, emit, fields, note, say, tell_measuring
from core.commands.plan_text import render
from core.errors import UserError

if TYPE_CHECKING:
    from core.config.document import ConfigDocument
    from core.config.facts import Unkept
    from core.config.rules import Remark
    from core.config.schema import Config
    from core.memory.plan import Machine
    from core.memory.rows import Rows
    from core.memory.strategy import Chosen
    from core.models.architecture.architecture import Architecture
    from core.runs.outlook.forecast import Forecast

#: Methods that ``--method`` takes.
METHODS = ("qlora", "lora", "full", "freeze")
#: Tokens of a row with ``--model`` by default, and the fewest and most, as for ``train.max_length``.
DEFAULT_LENGTH, SHORTEST, LONGEST = 2048, 8, 1 << 20
#: Most cards of a machine, as for ``distributed.processes``.
MOST_CARDS = 64
#: Most digits of a number that a flag takes.
MOST_DIGITS = 9
#: Data above this size is analyzed only on request.
QUICK_DATA_BYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_config(parser, optional=True)
    parser.add_argument("--model", metavar="MODEL")
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--length", metavar="TOKENS")
    parser.add_argument("--gpu-memory", metavar="SIZE")
    parser.add_argument("--cards", metavar="N")
    parser.add_argument("--lengths", choices=("auto", "always", "never"), default="auto")
    add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Plan; the exit code is 0 whether it fits or not."""
    from core.models.architecture.measuring import telling

    with telling(tell_measuring()):
        return _plan(args)


def _plan(args: argparse.Namespace) -> int:
    from core.config.derived import torchrun_line
    from core.memory.planner import make_plan
    from core.models.published import locate_shape
    from core.models.sandboxed import load_architecture, read_model
    from core.runs.outlook.forecast import forecast, this_machine

    document, has_rows = _document(args)
    config = document.validate()
    machine = this_machine(config, card_memory(args.gpu_memory))
    base = locate_shape(config.model.base)
    # A damaged model, or one with code of its own, is refused before its family is measured; other errors of the model
    # and of the options are found before the rows are measured. Both measurements may take a while.
    if isinstance(base, Path):
        read_model(base)
        _warn(base)
    architecture = load_architecture(base)
    is_here = args.gpu_memory is None
    remarks = _remarks(document, config, machine, architecture, is_here) if args.config is not None else []
    make_plan(architecture, config, machine)
    found = forecast(config, machine, _rows(config, args.lengths) if has_rows else None)
    wishes = _tell_wishes(config, found) if is_here and has_rows else []
    if args.json:
        emit(as_json(found, remarks, wishes))
        return 0
    # Without a terminal every line is whole.
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say(*render(found, columns, torchrun_line(config) if found.chosen is not None else ""))
    return 0


def _document(args: argparse.Namespace) -> tuple[ConfigDocument, bool]:
    """The configuration to plan for, and whether it has rows."""
    from core.config.document import ConfigDocument

    if args.model is None:
        if args.config is None:
            raise UserError("There is nothing to plan for.", "Name a configuration, or a model with --model DIR.")
        for flag, value in (("--method", args.method), ("--length", args.length)):
            if value is not None:
                option = {"--method": "method.name", "--length": "train.max_length"}[flag]
                raise UserError(
                    f"{flag} goes with --model.", f"With a configuration, --set {option}={value} does that."
                )
        document = ConfigDocument.load(Path(args.config))
    elif args.config is not None:
        raise UserError("Both a configuration and --model are given.", "Name one, or use --set model.base=….")
    else:
        document = ConfigDocument()
        document.set("model.base", args.model)
        document.set("method.name", args.method or "qlora")
        given = f"{DEFAULT_LENGTH}" if args.length is None else args.length
        length = _number("--length", given, "tokens", SHORTEST, LONGEST, DEFAULT_LENGTH)
        document.set("train.max_length", length)
    document.apply(args.set)
    if args.cards is not None:
        document.set("distributed.processes", _number("--cards", args.cards, "cards", 1, MOST_CARDS, 2))
    has_rows = document.get("data.train") is not None
    if not has_rows:
        # The option is required, and a plan can do without it.
        document.set("data.train", "rows.jsonl")
        if args.lengths == "always":
            raise UserError(
                "--lengths always needs rows, and data.train is not set.", "Set it, or leave --lengths out."
            )
    return document, has_rows


def _remarks(
    document: ConfigDocument, config: Config, machine: Machine, architecture: Architecture, is_here: bool
) -> list[tuple[Remark, str]]:
    """Findings of the rules between options, with their place in the file; printed as ``train`` prints them."""
    from core.commands.configuration import gather_facts

    facts = replace(gather_facts(config), model=architecture)
    facts = facts if is_here else facts.elsewhere()
    if machine.kind == "cuda" and facts.device is None:
        # The card may be in another machine.
        facts = replace(facts, device="cuda", device_bytes=machine.limit_bytes)
    found = [(remark, str(document.complaint(remark))) for remark in document.remarks(facts)]
    for remark, complaint in found:
        note(f"warning: {'A run would be refused: ' if remark.level == 'error' else ''}{complaint}")
    return found


def _tell_wishes(config: Config, found: Forecast) -> list[Unkept]:
    """The options of ``[night]`` that a run started now cannot meet; each is printed as a warning."""
    import time

    from core.runs.outlook.forecast import unmet

    wishes = list(unmet(config, found.estimate, time.time()))
    for wish in wishes:
        note(f"warning: {'A run would be refused without --yes: ' if wish.is_measured else ''}{wish}")
    return wishes


def _number(flag: str, text: str, noun: str, low: int, high: int, example: int) -> int:
    """The whole number of a flag, of at most :data:`MOST_DIGITS` digits."""
    from core.text import one_line

    number = int(text) if text.isdecimal() and len(text) <= MOST_DIGITS else -1
    if not low <= number <= high:
        message = f"{flag} {one_line(text, 40)} is not a number of {noun} from {low} to {high:,}."
        raise UserError(message, f"Write it as {example}.")
    return number


def _warn(base: Path) -> None:
    """Warn about a model that a run would refuse; a directory with only its ``config.json`` is enough here."""
    from core.models.description import check_quantization
    from core.models.sandboxed import check_model_config, check_model_directory

    if not base.is_dir() or not (base / "config.json").is_file():
        return
    only_described = not any(path.suffix != ".json" for path in base.iterdir())
    try:
        check_quantization(base, check_model_config(base))
        if not only_described:
            check_model_directory(base)
    except UserError as error:
        note(f"warning: A run would be refused: {error}")


def _rows(config: Config, wanted: str) -> Rows | None:
    """The lengths of the rows, where they can be measured."""
    from core.analysis.job import analyze
    from core.analysis.result import request_for
    from core.analysis.row_samples import tokenizer_directory
    from core.commands.live_line import busy
    from core.memory.rows import rows_of_lengths
    from core.template.builtin import template_source
    from core.text import one_line

    if wanted == "never":
        return None
    try:
        if wanted == "auto" and _is_large(config):
            note("The data is large, so its rows are not measured; --lengths measures them anyway.")
            return None
        directory = tokenizer_directory(config.model.base)
        if not (directory / "tokenizer.json").is_file():
            raise UserError(f"{directory} has no tokenizer.json.", "Copy it from where the model is from.")
        template = template_source(config.template.file, config.template.name)
        with busy("measuring the rows (--lengths never leaves it out)"):
            analysis = analyze(request_for(config, model=str(directory), template=template))
    except UserError as error:
        if wanted == "always":
            raise
        note(f"The rows are not measured: {error.message}")
        return None
    for problem in analysis.problems:
        if problem.kind.level == "drop":
            rows = "1 row is" if problem.count == 1 else f"{problem.count} rows are"
            note(f"warning: {rows} not used ({problem.code}). {one_line(problem.detail, 300)} {problem.hint}")
    return rows_of_lengths(analysis.lengths) if analysis.lengths is not None else None


def _is_large(config: Config) -> bool:
    """True if the training data is too large to be analyzed without a request; missing data counts as small."""
    entries = [config.data.train] if isinstance(config.data.train, str) else config.data.train
    total = 0
    for entry in entries:
        path = Path(entry)
        for file in (path,) if os.path.isfile(path) else path.rglob("*"):
            with contextlib.suppress(OSError):
                total += file.stat().st_size
            if total > QUICK_DATA_BYTES:
                return True
    return False


# JSON.


def as_json(
    found: Forecast, remarks: Sequence[tuple[Remark, str]] = (), wishes: Sequence[Unkept] = ()
) -> dict[str, Any]:
    """The result as described in ``docs/reference/commands.md``.

    Args:
        found: The plan with its estimate and advice.
        remarks: Findings of the rules between options, with their place in the file.
        wishes: The options of ``[night]`` that cannot be met.
    """
    from core.memory.batching import WHOLE

    plan = found.plan
    return {
        "model": str(found.base),
        "family": found.architecture.family,
        **fields(plan, "parameters", "trainable"),
        "targets": dict(plan.targets),
        **fields(plan, "device", "total_bytes", "reclaimable_bytes", "limit_bytes", "fits"),
        "parts": plan.by_name(),
        "explanations": {part.name: part.what for part in plan.parts},
        "peak": plan.phase,
        "gradient_checkpointing": plan.checkpointing,
        **fields(plan, "kept_layers", "layers"),
        "token_budget": plan.token_budget if plan.token_budget < WHOLE else None,
        "reason": plan.reason,
        "activation_offload": plan.offload,
        **fields(plan, "host_bytes", "states_host_bytes", "experts_host_bytes", "host_free_bytes"),
        "micro_batch": fields(plan.micro_batch, "rows", "length", "supervised"),
        "advice": [
            fields(advice, "changes", "text", "cost", "saves_bytes", "total_bytes", "fits") for advice in found.advice
        ],
        **fields(plan, "checkpoint_bytes", "disk_bytes", "disk_free_bytes", "disk_fits"),
        "estimate": asdict(found.estimate) if found.estimate is not None else None,
        "notes": list(found.notes),
        "cards": _cards_as_json(found.chosen) if found.chosen is not None else None,
        "unmet": [wish._asdict() for wish in wishes],
        "remarks": [
            {"level": remark.level, "options": list(remark.options), "text": complaint} for remark, complaint in remarks
        ],
    }


def _cards_as_json(chosen: Chosen) -> dict[str, Any]:
    sharing = chosen.sharing
    return {
        **fields(sharing.cards, "number", "here", "machines"),
        **fields(chosen, "strategy", "reason"),
        "zero_stage": sharing.stage if chosen.strategy == "deepspeed" else None,
        "offload": sharing.offload if sharing.shares else None,
        **fields(chosen, "rows", "fits", "host_bytes"),
        "host_fits": chosen.plan.host_fits,
        "wire_bytes": chosen.plan.wire_bytes,
    }
