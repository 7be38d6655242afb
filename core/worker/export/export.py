"""Export job: from a run to the directory in its final place."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from core import paths
from core.directories import Progress, disk_error, new_directory
from core.errors import UserError
from core.export.card import CARD, BaseModel, CardFacts, base_license, describe_base, write_card
from core.export.llama_cpp import NotVerifiedError
from core.export.plan import COMPARING_BASE, HASHING, ExportPlan, WholeProgress, merged_quant, stages_of
from core.export.request import CONVERTED, MERGED_QUANTS, Kind, Quant
from core.export.result import RECORD, Agreement, ExportedFile, ExportResult
from core.jobs.process import Answers
from core.models.check import check_adapter
from core.models.description import is_composite, read_description, read_quantization
from core.models.find import find_model, model_path
from core.models.fingerprint import BaseFingerprint
from core.runs.catalog.trained import TrainedModel, held_checkpoint
from core.runs.record.sentences import slug_of
from core.runs.record.store import make_slug
from core.small_files import hash_file
from core.template.settings import mask_settings
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder
from core.worker.export.gguf.converter import check_arithmetic, fetch_converter
from core.worker.export.gguf.write import GgufOptions, calibration_rows, write_adapter_gguf, write_gguf
from core.worker.export.merge import BeyondRangeError
from core.worker.export.model_directory import Conversation, Merge, read_conversation, write_adapter, write_merged
from core.worker.export.verify.job import compare_export, measure_trained
from core.worker.model.model import load_tokenizer
from core.worker.model.support import resolve_base

#: Most rows to read; further ones hardly matter.
_MOST_ROWS = 1000


def read_rows(base: Path, trained: TrainedModel, conversation: Conversation, progress: Progress) -> Dataset:
    """Training rows; empty if the files can no longer be read.

    Args:
        base: The directory with the tokenizer.
        trained: The trained model.
        conversation: Template and stop tokens.
        progress: Called with the number of rows read.
    """
    config = trained.config
    template = None if conversation.is_own else conversation.template
    settings = mask_settings(config, str(base), template)
    encoder = Encoder(load_tokenizer(base), conversation.stop_ids, template, settings=settings)
    loader = Loader(config, encoder, progress=lambda count: progress("reading training rows", count, None))
    try:
        return loader.load(config.data.train, limit=_MOST_ROWS)
    except UserError:
        return Dataset()


def conversations(dataset: Dataset) -> list[list[dict[str, Any]]]:
    """The conversations among the rows, as messages for a chat template."""
    return [[message.fields() for message in example.messages] for example in dataset.examples if example.messages]


#: Names inside the hidden directory that becomes the export: the export itself, and temporary files beside it.
_MADE, _MERGED, _PROOF, _BASE, _DECODED = "made", "merged", "proof", "base.gguf", "decoded"


@dataclass(frozen=True)
class _Made:
    """A written export that is not in its place yet."""

    quant: Quant | None
    agreement: Agreement | None = None
    merged_from: str | None = None
    notes: tuple[str, ...] = ()


class Export:
    """An export.

    Args:
        plan: The plan.
        progress: Called with each stage, and the progress of the whole export.
    """

    def __init__(self, plan: ExportPlan, progress: Progress) -> None:
        self._plan, self._request, self._trained = plan, plan.request, plan.trained
        self._progress = WholeProgress(stages_of(plan), progress)

    def make(self) -> ExportResult:
        """Make the export.

        Returns:
            The export in its place.

        Raises:
            UserError: If it fails, or misses the bars of its agreement; it then leaves nothing behind.
        """
        # A run in training would delete the checkpoint long before the answers are compared.
        with held_checkpoint(self._trained.checkpoint):
            return self._make()

    def _make(self) -> ExportResult:
        began, plan = time.monotonic(), self._plan
        base, self._fingerprint = self._find_base()
        try:
            with new_directory(plan.target) as directory:
                made = directory / _MADE
                made.mkdir(mode=paths.DIRECTORY_MODE)
                self._answers = directory / _PROOF
                written = self._write(base, made, directory)
                self._refuse_others(written)
                result = self._record(base, made, written, began)
                for name in (_PROOF, _DECODED):
                    shutil.rmtree(directory / name, ignore_errors=True)
                for path in sorted(made.iterdir()):
                    path.rename(directory / path.name)
                made.rmdir()
        except OSError as error:
            hint = "Make room, or name a directory on another disk with --out."
            raise UserError(disk_error(plan.target.parent, error).message, hint) from error
        return result

    def _find_base(self) -> tuple[Path, str | None]:
        """The directory of the base, which must be the training's; and its fingerprint.

        Raises:
            UserError: If it is missing, unsupported or changed.
        """
        trained = self._trained
        base = resolve_base(trained.base, self._progress)
        if trained.adapter is not None:
            check_adapter(trained.adapter, base)
        if self._request.kind == "card":
            return base, trained.base_sha256
        if self._request.kind in ("gguf", "ollama"):
            # Before minutes of hashing and merging.
            check_arithmetic(base)
        self._progress(COMPARING_BASE, None, None)
        fingerprint = BaseFingerprint(base)
        if trained.base_sha256 is not None:
            fingerprint.require(trained.base_sha256, f"run {trained.run.id}")
        return base, fingerprint.value

    def _write(self, base: Path, made: Path, directory: Path) -> _Made:
        kind = self._request.kind
        if kind == "card":
            return _Made(None)
        conversation = read_conversation(base, self._trained)
        if kind == "adapter":
            write_adapter(base, self._trained, made, conversation)
            return self._proven(made, _Made(None))
        if kind == "merged":
            return self._write_merged(base, made, conversation)
        if self._request.adapter_only:
            return self._write_adapter_gguf(base, made, directory, conversation)
        return self._write_gguf(base, made, directory / _MERGED, conversation)

    def _write_merged(self, base: Path, made: Path, conversation: Conversation) -> _Made:
        """Write a merged model: in the requested type, else in the first type that meets its bar."""
        asked, missed = self._request.quant, list[str]()
        for quant in MERGED_QUANTS if asked is None else (asked,):
            is_last = quant in (asked, MERGED_QUANTS[-1])
            try:
                merge = self._merge(base, made, quant, conversation)
            except BeyondRangeError:
                if is_last:
                    raise
                failures = ["Its weights are beyond the range of the type."]
            else:
                why = f"Its weights are {quant}, because {', and '.join(missed)}."
                notes = (*merge.notes, why) if missed else merge.notes
                written = _Made(quant, merge.agreement, merge.way, notes)
                if merge.agreement is None:
                    written = self._proven(made, written)
                failures = [] if written.agreement is None else written.agreement.failures(quant)
                if is_last or not failures:
                    return written
            missed.append(f"as {quant} " + " and ".join(f"{one[0].lower()}{one[1:].rstrip('.')}" for one in failures))
            shutil.rmtree(made)
            made.mkdir(mode=paths.DIRECTORY_MODE)
        raise ValueError("there is no type of weights to try")

    def _compare(self, exported: Path, kind: Kind, quant: Quant | None, base: Path | None = None) -> Agreement:
        """Compare the export in a directory with the trained model, whose answers are measured once.

        Raises:
            NotVerifiedError: If there is no reader for its kind, or no comparison was asked for.
            UserError: If it cannot be read, or the rows or the base are gone.
        """
        if (reason := self._plan.unverified) is not None:
            raise reason
        if not self._answers.exists():
            self._answers.mkdir(mode=paths.DIRECTORY_MODE)
            whole = kind != "adapter"
            as_file = whole and base is None
            measure_trained(
                self._trained,
                self._answers,
                self._progress,
                self._request.rows,
                plain_base=whole,
                as_file=as_file,
                base_sha256=self._fingerprint,
            )
        return compare_export(exported, kind, quant, self._trained, self._answers, self._progress, base=base)

    def _merge(self, base: Path, place: Path, quant: Quant, conversation: Conversation) -> Merge:
        way = self._request.merge_from
        compare = partial(self._compare, kind="merged", quant=quant)
        return write_merged(base, self._trained, place, quant, way, conversation, compare, self._progress)

    def _write_gguf(self, base: Path, made: Path, merged: Path, conversation: Conversation) -> _Made:
        """Write a GGUF file of the merged model, which is then deleted; for Ollama also a Modelfile."""
        quant = self._request.weights or "Q8_0"
        # Before minutes of merging.
        if self._request.kind == "ollama":
            from core.worker.export.ollama.modelfile import check_carried

            check_carried(conversation)
        fetch_converter(self._progress)
        merge = self._merged_for(base, merged, conversation)
        file = self._trained.file
        is_exact = file is not None and quant == file.type
        is_calibrated = quant not in CONVERTED and not is_exact
        rows = Dataset()
        if is_calibrated or self._request.kind == "ollama":
            rows = read_rows(base, self._trained, conversation, self._progress)
        source = model_path(self._trained.config.model.base)
        options = GgufOptions(
            template=None if conversation.is_own else conversation.template,
            stops=conversation.stop_ids,
            name=self._slug,
            license=base_license(self._trained.config.model.base, base) or "",
            base_name=self._describe(base).name,
            base=base,
            base_gguf=source if os.path.isfile(source) else None,
            calibration=calibration_rows(row.input_ids.tolist() for row in rows.rows) if is_calibrated else (),
            is_exact=is_exact,
        )
        told = write_gguf(merged, made / self._file_name, quant, options, self._progress)
        shutil.rmtree(merged)
        written = _Made(quant, None, merge.way, (*merge.notes, *told))
        if self._request.kind != "ollama":
            return self._proven(made, written)
        from core.worker.export.ollama.create import create_and_ask
        from core.worker.export.ollama.modelfile import write_modelfile

        notes = write_modelfile(
            made / self._file_name, base, self._trained, conversation, options.license, conversations(rows)
        )
        written = self._proven(made, replace(written, notes=(*written.notes, *notes)))
        self._refuse_others(written)
        asked = create_and_ask(made, self._trained, quant, self._progress)
        return replace(written, notes=(*written.notes, *asked))

    def _merged_for(self, base: Path, place: Path, conversation: Conversation) -> Merge:
        """The merged model for a GGUF file; in 32 bits where its weights exceed the range of 16."""
        quant = merged_quant(self._request, self._trained)
        place.mkdir(mode=paths.DIRECTORY_MODE)
        try:
            return self._merge(base, place, quant, conversation)
        except BeyondRangeError:
            if quant == self._request.weights:
                raise
        shutil.rmtree(place)
        place.mkdir(mode=paths.DIRECTORY_MODE)
        return self._merge(base, place, "F32", conversation)

    def _write_adapter_gguf(self, base: Path, made: Path, directory: Path, conversation: Conversation) -> _Made:
        """Write a GGUF file of the adapter, verified with a GGUF file of the base, which is then deleted."""
        if self._trained.adapter is None:
            raise ValueError(f"{self._trained.label} has no adapter")
        base, base_gguf = self._decoded(base, directory / _DECODED, conversation), directory / _BASE
        write_adapter_gguf(self._trained.adapter, base, made / self._file_name, self._progress)
        if (reason := self._plan.unverified) is not None:
            return _Made(None, notes=(str(reason),))
        write_gguf(base, base_gguf, "F32", GgufOptions(), self._progress)
        written = self._proven(made, _Made(None), base_gguf)
        base_gguf.unlink()
        return written

    def _decoded(self, base: Path, place: Path, conversation: Conversation) -> Path:
        """The base in 16 bits for the converter, which reads no quantized files: decoded into a directory if needed."""
        quantization = read_quantization(base)
        if quantization is None:
            return base
        place.mkdir(mode=paths.DIRECTORY_MODE)
        untrained = replace(self._trained, adapter=None, weights=None, file=None)
        quant: Quant = "F16" if quantization.dtype == "F16" else "BF16"
        write_merged(base, untrained, place, quant, "base", conversation, _uncompared, self._progress)
        return place

    @property
    def _slug(self) -> str:
        # The directory of a run from elsewhere may have any name.
        return make_slug(slug_of(self._trained.run.id))

    @property
    def _file_name(self) -> str:
        """The name of a GGUF file: ``tickets-Q8_0.gguf``."""
        step = "" if self._trained.step is None else f"-{self._trained.name}"
        return f"{self._slug}{step}-{'adapter' if self._request.adapter_only else self._request.weights}.gguf"

    def _describe(self, base: Path) -> BaseModel:
        """The base of the training, which is not the merge's base if all weights are in the result."""
        trained = self._trained
        return describe_base(trained.config.model.base, base if trained.base == trained.config.model.base else None)

    def _proven(self, made: Path, written: _Made, base: Path | None = None) -> _Made:
        """The export with its measured agreement; with a note if there is no reader."""
        try:
            agreement = self._compare(made, self._request.kind, written.quant, base)
        except NotVerifiedError as error:
            return replace(written, notes=(*written.notes, str(error)))
        return replace(written, agreement=agreement)

    def _notes_of_file(self, quant: Quant | None) -> list[str]:
        """Notes on a model that was trained for another file than this one."""
        file = self._trained.file
        if file is None or self._request.kind == "card" or quant == file.type:
            return []
        if quant is None:
            return [f"It was trained for a merged {file.type} file; beside its base it answers without that rounding."]
        return [f"It was trained for a {file.type} file, whose weights this one holds in {quant}."]

    def _notes_of_parts(self, base: Path) -> list[str]:
        """Note on a result that is only the text part of its base."""
        trained = self._trained
        if trained.base == trained.config.model.base or self._request.kind not in ("merged", "card"):
            return []
        origin = find_model(trained.config.model.base)
        configs = [read_description(place / "config.json") or {} for place in (origin, base) if place is not None]
        if [is_composite(config) for config in configs] != [True, False]:
            return []
        return ["It is the language model of its base alone, without what that has for images or sound."]

    def _refuse_others(self, written: _Made) -> None:
        """Reject an export that does not answer as the trained model does.

        Raises:
            UserError: If so; it names the missed bar.
        """
        failures = [] if written.agreement is None else written.agreement.failures(written.quant)
        if failures:
            raise UserError(
                f"The export has failed, and nothing was put into {self._plan.target}: {' '.join(failures)}",
                "Choose a type with more bits, or report it.",
            )

    def _record(self, base: Path, made: Path, written: _Made, began: float) -> ExportResult:
        """Write the card and the record beside the files."""
        trained, kind = self._trained, self._request.kind
        described = self._describe(base)
        warning = (trained.warning,) if trained.warning else ()
        agreed = () if written.agreement is None else written.agreement.notes
        parts = self._notes_of_parts(base)
        notes = (*warning, *written.notes, *self._notes_of_file(written.quant), *parts, *agreed)
        facts = CardFacts(
            trained=trained,
            kind=kind,
            quant=written.quant,
            base=described,
            license=base_license(trained.config.model.base, base),
            agreement=written.agreement,
            notes=notes,
            files=sorted(os.listdir(made)),
        )
        (made / CARD).write_text(write_card(facts), encoding="utf-8")
        self._progress(HASHING, None, None)
        result = ExportResult(
            path=self._plan.target,
            kind=kind,
            quant=written.quant,
            run=trained.run.id,
            step=trained.step,
            base=described.name,
            base_sha256=self._fingerprint,
            merged_from=written.merged_from,
            files=tuple(_files(made)),
            agreement=written.agreement,
            notes=notes,
            seconds=time.monotonic() - began,
            created=time.time(),
        )
        self._progress(HASHING, 1, 1)
        (made / RECORD).write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        return result


def _uncompared(_merged: Path) -> Agreement:
    raise ValueError("there is nothing to choose")


def _files(directory: Path) -> Iterator[ExportedFile]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            yield ExportedFile(str(path.relative_to(directory)), path.stat().st_size, hash_file(path))


def export(job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Job that makes an export.

    Args:
        job: ``plan``, an :class:`~core.export.plan.ExportPlan`.
        answers: Receives the progress.

    Returns:
        An :class:`~core.export.result.ExportResult`.
    """
    return Export(ExportPlan.from_dict(job["plan"]), answers.progress).make().to_dict()
