"""Results of exports: the files and their verification, kept beside them as ``export.json``."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from core import paths
from core.export.request import Kind, Quant
from core.runs.record.sentences import slug_of
from core.runs.record.store import make_slug
from core.small_files import read_json
from core.text import one_line

#: Divergence from the untouched base, relative to that from the trained model, below which a file is the base itself;
#: and the least divergence of these two models, in nats, for the comparison.
_NEARER_TO_BASE, _LEARNED = 0.5, 1e-3


@dataclass(frozen=True)
class Figures:
    """Differences of a file from a model, over the positions of the answers."""

    mean_kl: float
    """Mean Kullback-Leibler divergence of the next token, in nats."""
    top1: float
    """Share of positions with the same likeliest token."""
    max_delta: float
    """Greatest difference of two logits, each row of them centered on its mean."""
    error: float
    """Mean square of these differences, divided by the mean square of the model's own centered logits."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of an independent reader of the file with the trained model in fp32.

    A figure that was not measured is None.
    """

    rows: int
    """Rows compared."""
    prompts_equal: bool
    """True if the rendered prompts of all rows have the same token ids."""
    mean_kl: float | None
    """Mean Kullback-Leibler divergence of the next token, in nats, over the positions of the answers."""
    top1: float | None
    """Share of these positions with the same likeliest token."""
    max_delta: float | None
    """Greatest difference of two logits, each row of them centered on its mean."""
    greedy_equal: int | None
    """Rows whose greedy answers are equal, token by token."""
    reader: str
    """The program that read the file, with its version."""
    greedy_rows: int | None = None
    """Rows answered greedily; plain text and tokens are not."""
    data: str = ""
    """Origin of the rows: ``eval``, ``held_out``, or ``training`` if nothing was held out."""
    arithmetic: str = "fp32"
    """Arithmetic of the trained model's measurement: ``fp32``, or that of training if fp32 does not fit."""
    quantized_base: bool = False
    """True if the model was trained on a base in 4 bits, which a merge may leave out."""
    plain: Figures | None = None
    """The file against the same adapter on the base in 16 bits, after training on 4 bits."""
    error: float | None = None
    """Mean square of the differences of logits, relative to the trained model's own; 0 if they are equal."""
    base_kl: float | None = None
    """Mean divergence of the file from the untouched base, in nats."""
    learned_kl: float | None = None
    """Mean divergence of the base from the trained model, in nats: the effect of training."""
    is_finite: bool = True
    """False if the file computes values that are no numbers; the other figures are of the rows before then."""

    @property
    def judged(self) -> Figures | None:
        """The figures that the bars apply to: against the model that was exported.

        That is the trained model; after training on a base in 4 bits, it may also be the same adapter on the base in 16
        bits, whichever is nearer. None if they cannot be distinguished from the effect of the arithmetic or the base.
        """
        own = None
        if None not in (self.mean_kl, self.top1, self.max_delta):
            own = Figures(self.mean_kl or 0.0, self.top1 or 0.0, self.max_delta or 0.0, self.error or 0.0)
        if self.plain is not None:
            return self.plain if own is None or self.plain.mean_kl <= own.mean_kl else own
        return own if self.arithmetic == "fp32" and not self.quantized_base else None

    @property
    def notes(self) -> list[str]:
        """Further findings, a sentence each."""
        told = []
        if self.data == "training":
            told.append("Nothing was held out, so it was compared on rows that were trained on.")
        if self.arithmetic != "fp32":
            told.append(
                f"The trained model does not fit in memory in fp32 and was measured in {self.arithmetic}, so what "
                "rounding adds is in the figures, and no bars are applied."
            )
        elif self.quantized_base and self.plain is None:
            told.append("The base in 16 bits does not fit in memory, so its rounding is in the figures, without bars.")
        found = self.judged
        if found is not None and self.learned_kl is not None and found.mean_kl > max(self.learned_kl, _LEARNED):
            told.append(
                f"Its weights are rounded so far ({found.mean_kl:.2g} nats) that it changes more than training did "
                f"({self.learned_kl:.2g} nats): take a wider type."
            )
        return told

    def failures(self, quant: Quant | None) -> list[str]:
        """The missed bars, a sentence each.

        Args:
            quant: The type of the file's weights; None for an adapter, whose weights are unchanged.
        """
        failed = []
        if not self.is_finite:
            failed.append("It computes values that are no numbers (NaN or infinite).")
        if not self.prompts_equal:
            failed.append("The file's tokenizer or template makes other tokens of a prompt than training did.")
        if self._is_base():
            failed.append("It answers like the base: the training is not in it.")
        found, bar = self.judged, BARS[quant or "F32"]
        name = quant or "an adapter"
        if found is None:
            return failed
        if bar.max_delta is not None and not found.max_delta <= bar.max_delta:
            failed.append(f"Its logits differ by up to {found.max_delta:.3g}; {name} allows {bar.max_delta:g}.")
        if bar.mean_kl is not None and not found.mean_kl <= bar.mean_kl:
            failed.append(f"Its mean divergence is {found.mean_kl:.3g} nats; {name} allows {bar.mean_kl:.3g}.")
        if bar.error is not None and not found.error <= bar.error:
            failed.append(
                f"Its logits have little to do with those of the model: they differ by {found.error:.0%} of them; "
                f"{name} allows {bar.error:.0%}."
            )
        if bar.top1 is not None and not found.top1 >= bar.top1:
            failed.append(
                f"The likeliest token is the same at {found.top1:.1%} of positions; {name} wants {bar.top1:.1%}."
            )
        return failed

    def _is_base(self) -> bool:
        """True if the file is nearer to the untouched base than to the trained model."""
        if self.base_kl is None or self.mean_kl is None or math.isnan(self.mean_kl):
            return False
        return self.mean_kl > _LEARNED and self.base_kl < _NEARER_TO_BASE * self.mean_kl


@dataclass(frozen=True)
class Bar:
    """Limits for the agreement of a file; None if there is none."""

    max_delta: float | None = None
    mean_kl: float | None = None
    top1: float | None = None
    error: float | None = None


#: The first three were measured with llama.cpp on a model of 135 million parameters, with room for rounding. The cost
#: of fewer bits depends on the model, and is reported. Their bars are wide, and only catch broken files: that model,
#: which is small and had been in 4 bits before, so that it loses much, reached 0.002, 0.007, 0.04, 0.03 and 0.19;
#: a file of another model reaches 1 and more.
BARS: dict[Quant, Bar] = {
    "F32": Bar(max_delta=0.01),
    "F16": Bar(mean_kl=1e-4, top1=0.99),
    "BF16": Bar(mean_kl=2e-3),
    "Q8_0": Bar(error=0.1),
    "Q6_K": Bar(error=0.1),
    "Q5_K_M": Bar(error=0.4),
    "Q4_K_M": Bar(error=0.4),
    "Q4_0": Bar(error=0.8),
}


Proof = Literal["proven", "unproven", "failed"]

#: The record of an export, in its directory.
RECORD = "export.json"
_VERSION = 1
#: Least share of equal answers that is called most of them.
_MOSTLY = 0.5
_RECORD_LIMIT = 4 << 20


@dataclass(frozen=True)
class ExportedFile:
    """A file of an export."""

    name: str
    """Its path in the directory."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ExportResult:
    """A finished export."""

    path: Path
    kind: Kind
    quant: Quant | None
    """The type of the weights; None if it has no weights of the whole model."""
    run: str
    """The id of the run."""
    step: int | None
    """The step of the checkpoint; None for the result of the run."""
    base: str
    """The base model, as people name it."""
    base_sha256: str | None
    """Its fingerprint."""
    merged_from: str | None
    """``base`` or ``quantized``: the weights that the adapter was merged into; None if it was not merged."""
    files: tuple[ExportedFile, ...]
    agreement: Agreement | None
    """Comparison with the trained model; None if there was none."""
    notes: tuple[str, ...]
    """Remarks, a sentence each."""
    seconds: float
    created: float
    """Unix seconds."""
    chain: str | None = None
    """The head of the run's hash chain; None if it has none."""

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files)

    @property
    def verified(self) -> bool:
        """True if it was compared with the trained model, and reaches the bars."""
        return self.proof == "proven"

    @property
    def proof(self) -> Proof:
        """State of the comparison with the trained model: ``unproven`` before it, or where there was none."""
        if self.agreement is None:
            return "unproven"
        return "failed" if self.agreement.failures(self.quant) else "proven"

    @property
    def verdict(self) -> str:
        """The result of the proof in a sentence; empty for a card."""
        found, said = self.agreement, ""
        if found is None:
            said = "unproven."
        elif failures := found.failures(self.quant):
            said = f"no. {failures[0]}"
        elif found.greedy_equal is None:
            said = f"yes, by {found.rows} texts that it continues."
        else:
            of = found.rows if found.greedy_rows is None else found.greedy_rows
            share = found.greedy_equal / max(of, 1)
            word = "yes" if share == 1 else "mostly" if share >= _MOSTLY else "not word for word"
            said = f"{word}, {found.greedy_equal} of {of} agree."
        return "" if self.kind == "card" else f"Answers like the trained model: {said}"

    @property
    def commands(self) -> dict[str, str]:
        """Command lines that use the files, by program; empty for an adapter and a card."""
        if self.kind == "merged":
            return {"vLLM": f"vllm serve {shell_word(self.path)}", "curl": _curl(8000, str(self.path))}
        file = next((file.name for file in self.files if file.name.endswith(".gguf")), None)
        if file is None:
            return {}
        path = shell_word(self.path / file)
        if self.quant is None:
            return {"llama-server": f"llama-server -m BASE.gguf --lora {path} --port 8080", "curl": _curl(8080)}
        lines = {"llama-server": f"llama-server -m {path} --port 8080", "curl": _curl(8080)}
        if self.kind == "ollama":
            name = make_slug(slug_of(self.run))
            lines["Ollama"] = f"ollama create {name} -f {shell_word(self.path / 'Modelfile')} && ollama run {name}"
            return lines | {"curl": _curl(11434, name)}
        at = "" if self.step is None else f"@{self.step}"
        return lines | {"Ollama": f"localtune-tui export {shell_word(self.run + at)} --to ollama --quant {self.quant}"}

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "version": _VERSION,
            **asdict(self),
            "path": str(self.path),
            "bytes": self.bytes,
            "verified": self.verified,
            "proof": self.proof,
            "verdict": self.verdict,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any], path: Path | None = None) -> ExportResult:
        """From :meth:`to_dict`.

        Args:
            data: The values.
            path: Its present place; by default where it was written.

        Raises:
            ValueError: If it is invalid.
        """
        if data.get("version") != _VERSION:
            raise ValueError("no export of this version")
        return _reader().validate_python(data if path is None else {**data, "path": path})


def shell_word(text: object) -> str:
    """Foreign text as a word of a command line."""
    return shlex.quote(one_line(str(text), 4096))


def _curl(port: int, model: str | None = None) -> str:
    """A question to a server of OpenAI's API on this machine."""
    question = {"model": model} if model else {}
    body = json.dumps({**question, "messages": [{"role": "user", "content": "Hello"}]})
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    return f"curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"


@functools.cache
def _reader() -> TypeAdapter[ExportResult]:
    """Reader of JSON; keys of later versions are ignored."""
    return TypeAdapter(ExportResult)


def read_result(directory: Path) -> ExportResult | None:
    """The record of the export in a directory; None if there is none, or it is invalid."""
    try:
        data = read_json(directory / RECORD, _RECORD_LIMIT, finite=False)
        return ExportResult.from_dict(data, directory)
    except (OSError, ValueError, AttributeError):
        return None


def list_exports(run: str | None = None) -> list[ExportResult]:
    """The exports in the home, newest first.

    Args:
        run: The id of a run, for its exports only.
    """
    found = []
    with contextlib.suppress(OSError):
        for directory in paths.exports_dir().iterdir():
            if not directory.name.startswith(".") and (result := read_result(directory)) is not None:
                found.append(result)
    return sorted((e for e in found if run in (None, e.run)), key=lambda export: export.created, reverse=True)
