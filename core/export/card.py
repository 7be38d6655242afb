"""Model cards: a README.md in the hub's style for what a run has made, without its data and without paths."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.config.schema import WEIGHT_METHODS, options
from core.errors import UserError
from core.export.agreement import Agreement
from core.export.base import BaseModel
from core.export.kinds import Kind, Quant
from core.hub_uri import is_hub_entry
from core.models.architecture.gguf_header import read_gguf_header
from core.models.files import read_record
from core.models.find import model_path
from core.paths import user_path
from core.runs.chain import chain_head
from core.runs.history import read_history
from core.runs.names import slug_of
from core.runs.result import result_of
from core.runs.trained import TrainedModel, manifest_of
from core.small_files import hash_file, read_small
from core.text import one_line
from core.units import format_bytes, format_count, format_duration, format_fixed, format_number

CARD = "README.md"
_CARD_LIMIT = 1 << 20
#: Sections whose options say what was trained and how; the others are of the machine, or name files.
_TOLD = ("method", "train", "memory", "checkpoint")
_RELATIONS: dict[Kind, str] = {"gguf": "quantized", "ollama": "quantized"}
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
_MOST_FILES = 20


@dataclass(frozen=True)
class CardFacts:
    """Facts that a model card tells beside those in the run's own files."""

    trained: TrainedModel
    kind: Kind
    quant: Quant | None
    base: BaseModel
    license: str | None
    """Its license, where that is known."""
    agreement: Agreement | None = None
    notes: Sequence[str] = ()
    files: Sequence[str] = ()
    """The names of the files that it stands beside."""

    @property
    def is_adapter(self) -> bool:
        """Whether it is of an adapter alone."""
        is_alone = self.kind in ("adapter", "card") or (self.kind == "gguf" and self.quant is None)
        return is_alone and self.trained.adapter is not None


def write_card(facts: CardFacts) -> str:
    """The text of a model card.

    Raises:
        UserError: If the run's files cannot be read.
    """
    parts = [
        _front(facts),
        f"# {slug_of(facts.trained.run.id) or facts.trained.run.id}",
        _what(facts),
        _section("Data", _data(facts.trained)),
        _section("Training", _training(facts.trained)),
        _section("Measured", _measured(facts)),
        _section("Use", _use(facts)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def base_license(base: str, directory: Path | None) -> str | None:
    """The license of a base model: as its record, its card or its GGUF file has it; None where none has one.

    Args:
        base: As ``model.base``.
        directory: Where its files are, if known.
    """
    found: object = None
    if directory is not None:
        found = (read_record(directory) or {}).get("license") or _license_of_card(directory / CARD)
    path = model_path(base)
    if not found and os.path.isfile(path):
        with contextlib.suppress(UserError):
            found = read_gguf_header(path).metadata.get("general.license")
    return found.lower() if isinstance(found, str) and _LICENSE.fullmatch(found) else None


def _license_of_card(path: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = read_small(path, _CARD_LIMIT).decode("utf-8")
        front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        named = re.search(r"^license:\s*['\"]?([^'\"\s#]+)", front[1], re.MULTILINE) if front else None
        return named[1] if named else None
    return None


def _front(facts: CardFacts) -> str:
    library = {"merged": "transformers", "gguf": "gguf", "ollama": "gguf"}.get(facts.kind)
    if library is None:
        library = "peft" if facts.is_adapter else "transformers"
    relation = "adapter" if facts.is_adapter else _RELATIONS.get(facts.kind, "finetune")
    method = facts.trained.config.method
    tags = ["localtune", "text-generation", *({method.name} if method.name not in WEIGHT_METHODS else ())]
    tags += ["dora"] if method.dora else []
    values: dict[str, Any] = {
        # A hub takes no card whose base is none of its own.
        "base_model": facts.base.hub_id,
        "base_model_relation": None if facts.base.hub_id is None else relation,
        "library_name": library,
        "license": facts.license,
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    # JSON is YAML, whatever is in a name.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
    return "\n".join(["---", *lines, "---"])


def _what(facts: CardFacts) -> str:
    weights = f" ({facts.quant})" if facts.quant else ""
    what = {"gguf": f"A GGUF file{weights}", "ollama": f"A model for Ollama{weights}"}.get(facts.kind)
    if facts.is_adapter:
        what = f"An adapter ({_method(facts.trained.config.method)})"
    step = "" if facts.trained.step is None else f", as of step {facts.trained.step}"
    return f"{what or f'A fine-tuned model{weights}'} of {_code(facts.base.name)}{step}, made with localtune-tui."


def _method(method: Any) -> str:
    name = {"qlora": "QLoRA", "lora": "LoRA", "full": "all weights", "freeze": "some layers"}[method.name]
    if method.name in WEIGHT_METHODS:
        return name
    return f"{name}{', DoRA' if method.dora else ''}{', rsLoRA' if method.rslora else ''}, rank {method.rank}"


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n\n".join([f"## {title}", *lines]) if lines else ""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{one_line(text, 200).replace('`', ' ')}`"


def _data(trained: TrainedModel) -> list[str]:
    rows = []
    if (event := read_history(trained.run).data) is not None:
        rows += [("rows", format_count(event.rows)), ("used", format_count(event.used))]
        rows += [("tokens", f"{format_count(event.tokens)}, {format_count(event.supervised_tokens)} of them learned")]
        if event.held_out_rows:
            rows.append(("held out", format_count(event.held_out_rows)))
    manifest = manifest_of(trained.run)
    for key, name in (("data_sha256", "SHA-256 of the rows"), ("held_out_sha256", "SHA-256 of those held out")):
        if isinstance(value := manifest.get(key), str) and value:
            rows.append((name, _code(value)))
    rows += list(_files(trained))
    return [_table(("", ""), rows)] if rows else []


def _files(trained: TrainedModel) -> Iterator[tuple[str, str]]:
    """The data files by their hashes, where they are as they were when the run began; entries of a hub by name."""
    named = trained.config.data.train
    started = trained.run.created
    for entry in ([named] if isinstance(named, str) else list(named))[:_MOST_FILES]:
        if is_hub_entry(str(entry)):
            yield "dataset", _code(str(entry))
            continue
        path = user_path(str(entry))
        try:
            facts = os.stat(path)
            if not os.path.isfile(path) or started is None or facts.st_mtime > started.timestamp() + 1:
                continue
            yield f"SHA-256 of a file of {format_bytes(facts.st_size)}", _code(hash_file(path))
        except OSError:
            continue


def _training(trained: TrainedModel) -> list[str]:
    history, state = read_history(trained.run), trained.run.state()
    result = result_of(trained.run, state, history)
    steps = trained.step if trained.step is not None else result.step
    facts = [_method(trained.config.method), f"{steps} optimizer steps", f"{format_duration(result.seconds)} of work"]
    told = [", ".join(facts) + ". Options that differ from the defaults:", *_options(trained)]
    if (head := chain_head(trained.run.path)) is not None:
        told.append(f"The hash chain of the run ends with `{head}`.")
    return told


def _options(trained: TrainedModel) -> list[str]:
    values = trained.run.values()
    defaults = {option.name: option.default for option in options()}
    shown = [
        (name, _code(json.dumps(value, ensure_ascii=False)))
        for name, value in sorted(values.items())
        if name.partition(".")[0] in _TOLD and name in defaults and value != defaults[name] and not _is_path(value)
    ]
    return [_table(("option", "value"), shown)] if shown else []


def _is_path(value: object) -> bool:
    return isinstance(value, str) and os.sep in value


def _measured(facts: CardFacts) -> list[str]:
    parts = []
    run = facts.trained.run
    result = result_of(run, run.state(), read_history(run))
    if result.measures:
        rows = [
            (measure.name, measure.words(measure.before), measure.words(measure.after)) for measure in result.measures
        ]
        parts.append(_table(("on held-out rows", result.before, result.after), rows))
    if facts.agreement is not None:
        parts.append("The file against the model that was trained, read by another program:")
        parts.append(_table(("", ""), agreement_rows(facts.agreement)))
    return [*parts, *facts.notes]


def agreement_rows(agreement: Agreement) -> list[tuple[str, str]]:
    """The figures of an agreement, each with its name."""
    rows = [("rows", str(agreement.rows)), ("same prompts, token by token", "yes" if agreement.prompts_equal else "no")]
    if agreement.mean_kl is not None:
        rows.append(("mean divergence", f"{format_number(agreement.mean_kl)} nats"))
    if agreement.learned_kl is not None:
        rows.append(("divergence of the base", f"{format_number(agreement.learned_kl)} nats: what was learned"))
    if agreement.top1 is not None:
        rows.append(("same likeliest token", f"{format_fixed(100 * agreement.top1, 1)} %"))
    if agreement.greedy_equal is not None:
        of = "" if agreement.greedy_rows is None else f" of {agreement.greedy_rows}"
        rows.append(("same greedy answers", f"{agreement.greedy_equal}{of}"))
    if agreement.plain is not None:
        rows.append(("divergence, base in 16 bit", f"{format_number(agreement.plain.mean_kl)} nats"))
    if agreement.data:
        where = {"eval": "data.eval", "held_out": "those held out", "training": "training rows: none was held out"}
        rows.append(("rows from", where.get(agreement.data, one_line(agreement.data, 40))))
    return [*rows, ("read by", one_line(agreement.reader, 80))]


def _use(facts: CardFacts) -> list[str]:
    if facts.kind == "gguf":
        name = next((name for name in facts.files if name.endswith(".gguf")), "model.gguf")
        if not facts.is_adapter:
            return [f"```sh\nllama-server -m {name}\n```"]
        return [f"```sh\nllama-server -m BASE.gguf --lora {name}\n```", _where(facts.base, "BASE.gguf")]
    if facts.kind == "ollama":
        return [f"```sh\nollama create {slug_of(facts.trained.run.id) or 'mine'} -f Modelfile\n```"]
    loader = facts.base.auto_class
    if not facts.is_adapter:
        code = (
            f"from transformers import {loader}, AutoTokenizer\n\n"
            f'model = {loader}.from_pretrained(".")\n'
            'tokenizer = AutoTokenizer.from_pretrained(".")'
        )
        return [f"```python\n{code}\n```"]
    base = facts.base
    place = json.dumps(base.hub_id or "BASE", ensure_ascii=False)
    file = "" if base.gguf_file is None else f", gguf_file={json.dumps(base.gguf_file, ensure_ascii=False)}"
    code = (
        "from peft import PeftModel\n"
        f"from transformers import {loader}, AutoTokenizer\n\n"
        f"base = {loader}.from_pretrained({place}{file})\n"
        'model = PeftModel.from_pretrained(base, ".")\n'
        'tokenizer = AutoTokenizer.from_pretrained(".")'
    )
    return [f"```python\n{code}\n```", *([] if base.hub_id else [_where(base, "BASE")])]


def _where(base: BaseModel, place: str) -> str:
    """What a place in the code stands for: the base, and where it is from."""
    is_file = place.endswith(".gguf")
    if base.gguf_file is None:
        return f"`{place}` is the base model{' as a GGUF file' if is_file else ''}: {_code(base.name)}."
    package = "" if base.package is None else f" in the Python package {_code(base.package)}"
    what = "the file" if is_file else "the directory of the file"
    return f"`{place}` is {what} that the base was read from: {_code(base.gguf_file)}{package}."
