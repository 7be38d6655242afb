"""The recorded contracts, and those of the code as it is: ``python -m tests.contracts.collect`` writes them into
``contracts.json``.

Contracts that only a run can show stay as they are. If a module moves, only its import here changes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import tomli

from core import paths
from core.audit.result import Audit, ChainResult, Difference, SpanResult
from core.chat.session import Answer
from core.commands import COMMANDS, load_command
from core.commands import chat as chat_command
from core.commands import eval as eval_command
from core.commands import fetch as fetch_command
from core.commands import queue as queue_command
from core.commands import sweep as sweep_command
from core.commands.common import EXIT_BROKEN_PIPE, EXIT_ERROR, EXIT_INTERRUPTED, EXIT_LOST, EXIT_USAGE
from core.commands.control import describe
from core.commands.demo import summarize_demo
from core.commands.follow import Followed
from core.commands.parser import ArgumentParser
from core.commands.verify import EXIT_DIFFERS
from core.config.choices import AIMS, TRACKERS
from core.config.document import dump_config
from core.config.live import CHANGEABLE
from core.config.schema import Config, Option, options
from core.evaluation.lm_eval import Figure, HarnessModel, HarnessResult
from core.evaluation.prompt_set import PromptItem
from core.evaluation.record import Answered, EvaluationRecord
from core.evaluation.run_answers import answers_of_runs, answers_to_json
from core.evaluation.table import EvaluationTable
from core.hardware.snapshot import Device
from core.hub.job import FetchPlan
from core.hub.store import REFS_NAME, Record
from core.hub_uri import parse_entry
from core.models.description import RECORD_NAME
from core.notify import NotifySettings
from core.presets.library import presets
from core.queue.entry import STATES, QueueEntry
from core.queue.estimate import total_of
from core.queue.store import queue_path
from core.queue.sweep import SweepRow
from core.queue.view import EntryView, QueueView
from core.runs.catalog.compare import compare_runs, read_record, to_json
from core.runs.control import protocol
from core.runs.record import events
from core.runs.record.chain import CHAIN_NAME
from core.runs.record.state import ACTIVE_STATES, END_STATES, EXIT_CODES, EXIT_REFUSED, INFERRED_STATES, Rank, RunState
from core.runs.record.store import LOCK_VARIABLE, Run, create_run, labels_path
from core.selftest.report import Check, Report
from core.tracking.position import Position
from core.worker.checkpoint.checkpoint import FORMAT_VERSION, MANIFEST, STATE_FILES, WEIGHTS, checkpoint_name
from core.worker.checkpoint.checkpointer import FIXED_SECTIONS, config_hash
from tests.contracts.talking import JSON
from tui.__main__ import main
from tui.keys import KEYS, SCOPES
from tui.settings import GLYPH_SETS, Settings

ROOT = Path(__file__).parents[2]
HOME = Path(__file__).with_name("run_at_4b94b32") / "home"
WRITTEN = Path(__file__).with_name("contracts.json")
#: Contracts that only a run shows, not the code; ``test_continues.py`` looks at them.
SEEN_IN_A_RUN = (
    "files of a finished run",
    "keys of a manifest",
    "keys of state.json",
    "answers on the control socket",
    "a refusal on the control socket",
    "fields of a run's summary",
)
#: Values for the fields of events that have to have one, by annotation.
_SOME: dict[str, object] = {"str": "", "int": 1, "float": 1.0, "dict[str, int]": {}, "list[dict[str, Any]]": []}
#: Configurations whose hash is known. Checkpoints hold it, so that a run goes on with the configuration it began with.
_CONFIGS: dict[str, Any] = tomli.loads(Path(__file__).with_name("configurations.toml").read_text(encoding="utf-8"))


def written_down() -> dict[str, JSON]:
    """Each contract by name."""
    found: dict[str, JSON] = json.loads(WRITTEN.read_text(encoding="utf-8"))
    return found


def assert_contract(name: str, found: JSON) -> None:
    """Fail if something differs from a contract; the message has the difference, line by line. The order of keys in an
    object does not count, that of a list does."""
    wanted, now = (
        json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
        for value in (written_down()[name], found)
    )
    changes = difflib.unified_diff(wanted, now, WRITTEN.name, "the code", lineterm="")
    assert wanted == now, "\n".join([f"The contract '{name}' has changed:", *changes])


def keys_of(value: JSON) -> JSON:
    """The keys in a value, with the objects of a list merged; any other value is an empty text."""
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items()}
    if isinstance(value, list):
        merged: dict[str, JSON] = {}
        for item in value:
            if isinstance(item, dict):
                merged |= {key: keys_of(inner) for key, inner in item.items() if not merged.get(key)}
        return {"each": merged} if merged else ""
    return ""


def contracts(home: Path) -> dict[str, Callable[[], JSON]]:
    """Each contract by name, with a function that reads it from the code.

    Args:
        home: A copy of the home with a run; ``LOCALTUNE_HOME`` in the environment when something is read.
    """
    run = Run(next(home.glob("runs/*-contracts")))
    return {
        "names in a run directory": lambda: names(run),
        "a new run": new_run,
        "states": states,
        "exit codes of a run": lambda: dict(EXIT_CODES),
        "exit codes of a command": lambda: {
            "error": EXIT_ERROR,
            "usage": EXIT_USAGE,
            "lost": EXIT_LOST,
            "interrupted": EXIT_INTERRUPTED,
            "broken pipe": EXIT_BROKEN_PIPE,
            "refused": EXIT_REFUSED,
            "differs": EXIT_DIFFERS,
        },
        "fields of state.json": lambda: fields(RunState),
        "events": lambda: {kind.type: event_fields(kind) for kind in event_types(events.Event)},
        "lines of events": lambda: {
            kind.type: events.encode_event(an_event(kind)) for kind in event_types(events.Event)
        },
        "phases": lambda: list(get_args(events.PhaseName)),
        "fields of a device in a hardware event": lambda: list(Device(index=0, kind="cpu", name="").to_dict()),
        "control commands": lambda: list(protocol.COMMANDS),
        "a control request": lambda: protocol.encode_request(protocol.Request("1", "set", {"a": 1})).decode(),
        "options that a run takes while it is on": lambda: list(CHANGEABLE),
        "options": lambda: {option.name: option_of(option) for option in options()},
        "run.toml of as little as can be": lambda: dump_config(config("as little as can be")),
        "sections in the configuration hash": lambda: list(FIXED_SECTIONS),
        "configuration hashes": lambda: {name: config_hash(config(name)) for name in _CONFIGS},
        "presets": lambda: {name: preset.aim for name, preset in presets().items()},
        "aims of presets": lambda: list(AIMS),
        "trackers": lambda: list(TRACKERS),
        "fields of a tracker's position": lambda: fields(Position),
        "commands": lambda: {name: arguments(name) for name in COMMANDS},
        "options of the app": lambda: usage("tui"),
        "arguments of the worker": lambda: usage("core.worker"),
        "arguments of a tracker": lambda: usage("core.tracking"),
        "fields of --json": lambda: json_fields(run),
        "keys": lambda: {key.id: key.keys for key in KEYS},
        "scopes of keys": lambda: list(SCOPES),
        "notify.toml": lambda: fields(NotifySettings),
        "fields of an entry of the queue": lambda: fields(QueueEntry),
        "states of an entry of the queue": lambda: [*sorted(STATES)],
        "settings.toml": lambda: fields(Settings) | {"glyph sets": list(GLYPH_SETS)},
        "the home": lambda: places(home),
        "records of what was fetched": lambda: {
            "record": RECORD_NAME,
            "refs": REFS_NAME,
            "of a dataset": keys_of(json.loads(Record("owner/name", "0" * 40, {}).to_json())),
        },
        "modules that are run": lambda: {
            name: importlib.util.find_spec(f"{name}.__main__") is not None
            for name in ("core.worker", "core.tracking", "core.queue", "tui")
        },
        "project": project,
    }


def config(name: str) -> Config:
    """A configuration whose hash is known."""
    return Config.model_validate(_CONFIGS[name])


def states() -> dict[str, JSON]:
    """The states of a run."""
    return {"active": [*sorted(ACTIVE_STATES)], "ended": [*sorted(END_STATES)], "inferred": [*sorted(INFERRED_STATES)]}


def places(home: Path) -> dict[str, JSON]:
    """Paths and modes in the home."""
    return {
        "models": paths.models_dir().relative_to(home).as_posix(),
        "datasets": paths.datasets_dir().relative_to(home).as_posix(),
        "runs": paths.runs_dir().relative_to(home).as_posix(),
        "queue": queue_path().relative_to(home).as_posix(),
        "trash": paths.trash_dir().relative_to(home).as_posix(),
        "mode of directories": oct(paths.DIRECTORY_MODE),
        "mode of files": oct(paths.FILE_MODE),
    }


def names(run: Run) -> dict[str, JSON]:
    """Paths in a run directory, as the code names them."""
    found: dict[str, JSON] = {
        name: path.relative_to(run.path).as_posix()
        for name, path in (
            ("configuration", run.config_path),
            ("state", run.state_path),
            ("events", run.events_path),
            ("log", run.log_path),
            ("checkpoints", run.checkpoints_path),
            ("adapter", run.adapter_path),
            ("model", run.model_path),
            ("labels", labels_path(run.path)),
            ("hash chain", run.path / CHAIN_NAME),
        )
    }
    return found | {
        "a checkpoint": checkpoint_name(120),
        "manifest": MANIFEST,
        "version of a manifest": FORMAT_VERSION,
        "states in a checkpoint": list(STATE_FILES),
        "weights in a checkpoint": WEIGHTS,
        "control socket": Run(Path("/r")).socket_path.name,
        "variable with the lock": LOCK_VARIABLE,
    }


def new_run() -> dict[str, JSON]:
    """The directory of a run that is to be started."""
    run = create_run(config("as little as can be"), "My Tickets, v2")
    files: dict[str, JSON] = {path.name: oct(path.stat().st_mode & 0o777) for path in sorted(run.path.iterdir())}
    state = json.loads(run.state_path.read_text(encoding="utf-8"))
    return {
        "id": re.sub(r"\d", "9", run.id.removesuffix("-my-tickets-v2")) + "-my-tickets-v2",
        "mode": oct(run.path.stat().st_mode & 0o777),
        "files": files,
        "state": state["state"],
    }


def fields(kind: type) -> dict[str, JSON]:
    """The fields of a dataclass, each with its type and default."""
    found: dict[str, JSON] = {}
    for item in dataclasses.fields(kind):
        default = "" if item.default is dataclasses.MISSING else f" = {item.default!r}"
        found[item.name] = f"{item.type}{default}"
    return found


def event_types(base: type[events.Event]) -> list[type[events.Event]]:
    """All types of events."""
    found = [kind for below in base.__subclasses__() for kind in (below, *event_types(below))]
    return sorted((kind for kind in found if kind.type), key=lambda kind: kind.type)


def an_event(kind: type[events.Event]) -> events.Event:
    """An event of a type with its required fields."""
    required = [item for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING and item.name != "t"]
    event: events.Event = kind(t=0.5, **{item.name: _SOME.get(str(item.type)) for item in required})
    return event


def event_fields(kind: type[events.Event]) -> dict[str, JSON]:
    """Its fields as they are called in the file, each with its type and default."""
    # Written in the order of their declaration, after time and type.
    written = [name for name in json.loads(events.encode_event(an_event(kind))) if name not in ("t", "type")]
    declared = {name: said for name, said in fields(kind).items() if name != "t"}
    return dict(zip(written, declared.values(), strict=True))


def option_of(option: Option) -> str:
    """The accepted values of an option, in words."""
    limits = (
        (option.minimum, "above" if option.above else "from"),
        (option.maximum, "below" if option.below else "to"),
    )
    return "".join(
        (
            option.type,
            " or absent" if option.optional else "",
            ", required" if option.required else f" = {option.default!r}",
            f" of {', '.join(option.choices)}" if option.choices else "",
            " and no others" if option.closed else "",
            *(f" {word} {limit:.15g}" for limit, word in limits if limit is not None),
        )
    )


def arguments(command: str) -> dict[str, JSON]:
    """The words and flags that a command takes."""
    parser = ArgumentParser(prog=command)
    load_command(command).add_arguments(parser)
    return _taken(parser)


def _taken(parser: argparse.ArgumentParser) -> dict[str, JSON]:
    found: dict[str, JSON] = {}
    for action in parser._actions:
        if action.dest == "help":
            continue
        if isinstance(action, argparse._SubParsersAction):
            for below, taken in action.choices.items():
                found |= {f"{below} {name}": takes for name, takes in _taken(taken).items()}
            continue
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        choices = "" if action.choices is None else f" of {', '.join(map(str, action.choices))}"
        default = f" = {action.default!r}" if action.default not in (None, False, argparse.SUPPRESS) else ""
        takes = f" {action.nargs}" if action.nargs else ""
        found[name] = f"{action.dest}{takes}{choices}{default}"
    return found


def usage(module: str) -> list[JSON]:
    """The flags and words that ``python -m MODULE --help`` lists."""
    process = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    listed = re.findall(r"^  (-[-\w]+|\w+|\{\S+\})(?=[, \n])", process.stdout, re.MULTILINE)
    return [word for word in dict.fromkeys(listed) if word not in COMMANDS]


def printed(*words: str) -> str:
    """The output of a command with ``--json``."""
    with contextlib.redirect_stdout(io.StringIO()) as found, contextlib.redirect_stderr(io.StringIO()) as told:
        main([*words, "--json"])
    assert found.getvalue(), told.getvalue()
    return found.getvalue()


def an_audit() -> dict[str, JSON]:
    """An audit that has found something."""
    differences = (Difference(what="A row was changed."),)
    chain = ChainResult(differences=differences, notes=("It has no end.",))
    span = SpanResult(begin=0, end=1, outcome="differs", differences=differences)
    return Audit(run="r", chain=chain, inputs=differences, spans=(span,), notes=(), seed=1, seconds=1.0).to_dict()


def json_fields(run: Run) -> dict[str, JSON]:
    """The keys of the commands' JSON, as far as they need no training."""
    data = str(next(run.path.parents[1].glob("datasets/*/*/train.jsonl")))
    other = run.path / "other.yaml"
    other.write_text(f"base_model: tiny-llama\ndatasets:\n- path: {data}\n  type: alpaca\n", encoding="utf-8")
    followed = Followed(run, run.state())
    for step in (0, 1):
        followed.apply(events.EvalEvent(step=step, loss=1.0, perplexity=1.0, seconds=1.0))
    rows: dict[str, JSON] = json.loads(printed("data", data, "--model", "tiny-llama", "--row", "1"))
    plan: dict[str, JSON] = json.loads(printed("plan", str(run.config_path), "--cards", "2"))
    listed: list[dict[str, JSON]] = json.loads(printed("init", "--list"))
    fetched = FetchPlan("hf://datasets/a/b", "0" * 40, "/d", 1, 1, 0, "")
    # Emptied values have keys that are names or numbers from the data, or depend on the machine.
    return {
        "runs": keys_of(json.loads(printed("runs"))),
        "compare": keys_of(
            to_json(compare_runs([read_record(run)] * 2))
            | answers_to_json(answers_of_runs([run, run]))
            | dict.fromkeys(("data", "options", "answers"), "")
        ),
        "label": keys_of(json.loads(printed("label", run.id))),
        "status": keys_of(json.loads(printed("status", run.id)) | {"devices": "", "ranks": ""}),
        "a process in status": list(Rank(rank=0).to_dict()),
        "slurm": keys_of(json.loads(printed("slurm", str(run.config_path), "--output", str(run.path / "job.sbatch")))),
        "trash list": keys_of(json.loads(printed("trash", "list"))),
        "rm": keys_of(json.loads(printed("rm", "--failed", "--yes"))),
        "data": keys_of(rows | dict.fromkeys(("dropped", "turns", "scripts", "lengths"), "")),
        "plan": keys_of(
            plan | dict.fromkeys(("targets", "parts", "explanations", "advice", "notes", "remarks", "unmet"), "")
        ),
        "doctor": keys_of(json.loads(printed("doctor", "--quick"))),
        "verify": keys_of(an_audit()),
        "selftest": keys_of(Report({}, (Check("driver", "pass", "", 0.0),)).to_dict() | {"device": ""}),
        "init --list": keys_of([preset | {"values": ""} for preset in listed]),
        "init": keys_of(json.loads(printed("init", "--data", data, "--model", "tiny-llama", "--out", "-"))),
        "import": keys_of(json.loads(printed("import", str(other)))),
        "schema": sorted(json.loads(printed("schema"))),
        "pause, resume, stop": keys_of(describe(run, "pause", run.state())),
        "demo": keys_of(summarize_demo(followed) | {"phases": ""}),
        "chat": keys_of(chat_command.describe(Answer("", 1, 1.0, 1.0, "base"))),
        "eval": keys_of(an_evaluation() | dict.fromkeys(("means", "answered"), "")),
        "eval --with lm-eval": keys_of(a_benchmark()),
        "queue add": keys_of(queue_command.describe_added(QueueEntry(id=1, name="a"), total_of([]), runner=False)),
        "queue list": keys_of(queue_command.describe_queue(QueueView((EntryView(QueueEntry(id=1, name="a")),), None))),
        "queue results": keys_of(SweepRow(1, "done", None, {}).to_dict() | {"values": ""}),
        "queue sweep": keys_of(sweep_command.describe_sweep("s1", [1], total_of([]), runner=False)),
        "fetch": keys_of(fetch_command.describe(parse_entry("hf://datasets/a/b"), fetched, [])),
    }


def an_evaluation() -> dict[str, JSON]:
    """The JSON of ``eval`` for two models that have answered six prompts."""
    items = tuple(PromptItem(str(number), ({"role": "user", "content": "q"},), "a") for number in range(6))
    answered: list[Answered | None] = [Answered("a", scores={"exact_match": 1.0})] * 6
    names = ("a", "b")
    record = EvaluationRecord(
        "1", 0.0, "p", "0", 0, items, names, names, {}, {name: list(answered) for name in names}, "done"
    )
    return eval_command.summary(record, EvaluationTable.of(record), "")


def a_benchmark() -> dict[str, JSON]:
    """The JSON of ``eval --with lm-eval`` for one figure."""
    result = HarnessResult((Figure("t", "acc", "none", 0.5, 0.1),), "1", Path("/p"))
    return eval_command.harness_summary(HarnessModel("m", Path("/m")), result)


def project() -> dict[str, JSON]:
    """The installed names, by ``pyproject.toml``."""
    declared = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {
        "name": declared["project"]["name"],
        "scripts": declared["project"]["scripts"],
        "extras": sorted(declared["project"]["optional-dependencies"]),
        "packages in the wheel": declared["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }


def write() -> None:
    """Record the present code."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory) / "home"
        shutil.copytree(HOME, home)
        os.environ["LOCALTUNE_HOME"] = str(home)
        found = {**written_down(), **{name: read() for name, read in contracts(home).items()}}
    WRITTEN.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
