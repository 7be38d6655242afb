"""Export job: from a run to the directory in its final place."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from core import paths
from core.atomic import write_atomic
from core.directories import Progress, disk_error, hidden_directory, put_into_place
from core.errors import UserError
from core.export.card import CARD, BaseModel, CardFacts, base_license, describe_base, write_card
from core.export.plan import COMPARING_BASE, HASHING, ExportPlan, WholeProgress, merged_quant, stages_of
from core.export.request import CONVERTED, MERGED_QUANTS, Quant
from core.export.result import RECORD, Agreement, ExportedFile, ExportResult
from core.jobs.process import Answers
from core.models.check import check_adapter
from core.models.description import is_composite, read_description, read_quantization
from core.models.find import find_model, model_path
from core.models.fingerprint import BaseFingerprint
from core.runs.catalog.trained import TrainedModel, held_checkpoint
from core.runs.record.chain import chain_head
from core.runs.record.sentences import slug_of
from core.runs.record.store import make_slug, numbered
from core.small_files import hash_file
from core.template.settings import mask_settings
from core.worker.data.dataset import Dataset, Loader
from core.worker.data.encode import Encoder
from core.worker.export.gguf.converter import check_arithmetic, fetch_converter
from core.worker.export.gguf.write import GgufOptions, calibration_rows, write_adapter_gguf, write_gguf
from core.worker.export.merge import BeyondRangeError
from core.worker.export.model_directory import (
    Conversation,
    Way,
    read_conversation,
    way_to_merge,
    write_adapter,
    write_merged,
)
from core.worker.export.verify.job import compare_export, measure_trained
from core.worker.model.model import load_tokenizer
from core.worker.model.support import resolve_base
from core.worker.process.openmp import SpinControl

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


#: Names inside the hidden directory of an export: its files, the merged model that they are made of, files of the
#: proof, and files that have missed their bar.
_MADE, _MERGED, _PROOF, _MISSED = "made", "merged", "proof", "missed"
_BASE, _DECODED = "base.gguf", "decoded"


@dataclass(frozen=True)
class _Written:
    """The files of an export, before they are recorded."""

    quant: Quant | None
    way: Way | None = None
    notes: tuple[str, ...] = ()


class Export:
    """An export: its files in their place first, then their proof.

    Args:
        plan: The plan.
        progress: Called with each stage, and the progress of the whole export.
        placed: Called with True once the files are in their place, unproven; with False where they have missed their
            bar and others follow.
    """

    def __init__(self, plan: ExportPlan, progress: Progress, placed: Callable[[bool], object] = lambda _: None) -> None:
        self._plan, self._request, self._trained = plan, plan.request, plan.trained
        self._progress = WholeProgress(stages_of(plan), progress, plan.parameters)
        self._placed = placed
        self._began = time.monotonic()

    def make(self) -> ExportResult:
        """Make the export.

        Returns:
            The export in its place.

        Raises:
            UserError: If it cannot be written, which leaves nothing behind; if its proof fails, after which it has
                another name; or if its proof cannot be made, and it stays unproven.
        """
        # A run in training would delete the checkpoint long before the answers are compared.
        with held_checkpoint(self._trained.checkpoint):
            return self._make()

    def _make(self) -> ExportResult:
        base, self._fingerprint = self._find_base()
        target, missed = self._plan.target, list[str]()
        quants: tuple[Quant | None, ...] = (self._request.weights,)
        if self._request.kind == "merged" and self._request.quant is None:
            quants = MERGED_QUANTS
        try:
            with hidden_directory(target) as directory:
                for quant in quants:
                    is_last = quant == quants[-1]
                    try:
                        written, result = self._put(base, directory, quant, missed)
                    except BeyondRangeError:
                        if is_last:
                            raise
                        failures = ["Its weights are beyond the range of the type."]
                    else:
                        result = self._prove(base, directory, written, result)
                        if result.proof != "failed" or result.agreement is None:
                            return result
                        failures = result.agreement.failures(quant)
                        if is_last:
                            self._reject(failures)
                        self._placed(False)
                        os.rename(target, directory / _MISSED)
                    words = " and ".join(f"{one[0].lower()}{one[1:].rstrip('.')}" for one in failures)
                    missed.append(f"as {quant} {words}")
                    for name in (_MADE, _MISSED):
                        shutil.rmtree(directory / name, ignore_errors=True)
        except OSError as error:
            hint = "Make room, or name a directory on another disk with --out."
            raise UserError(disk_error(target.parent, error).message, hint) from error
        raise ValueError("there is no type of weights to try")

    def _put(
        self, base: Path, directory: Path, quant: Quant | None, missed: Sequence[str]
    ) -> tuple[_Written, ExportResult]:
        """Write the files and put them into their place, unproven."""
        made = directory / _MADE
        made.mkdir(mode=paths.DIRECTORY_MODE)
        written = self._write(base, made, directory, quant)
        if missed:
            written = replace(written, notes=(*written.notes, f"Its weights are {quant}, because {', '.join(missed)}."))
        if (reason := self._plan.unverified) is not None:
            written = replace(written, notes=(*written.notes, str(reason)))
        result = self._record(base, made, written)
        put_into_place(made, self._plan.target)
        self._placed(True)
        return written, result

    def _prove(self, base: Path, directory: Path, written: _Written, result: ExportResult) -> ExportResult:
        """Compare the files in their place with the trained model, and record the result."""
        target, kind = self._plan.target, self._request.kind
        if self._plan.unverified is None and kind != "card":
            try:
                result = self._record(base, target, written, self._compare(base, directory, written), result)
            except UserError as error:
                raise UserError(f"{error.message} The files stay in {target}, unproven.", error.hint) from error
        if kind == "ollama" and written.quant is not None and result.proof != "failed":
            from core.worker.export.ollama.create import create_and_ask

            asked = create_and_ask(target, self._trained, written.quant, self._progress)
            written = replace(written, notes=(*written.notes, *asked))
            result = self._record(base, target, written, result.agreement, result)
        return result

    def _compare(self, base: Path, directory: Path, written: _Written) -> Agreement:
        """The agreement of the files in their place with the trained model, whose answers are measured once."""
        kind, answers, base_gguf = self._request.kind, directory / _PROOF, None
        if self._request.adapter_only:
            base_gguf = directory / _BASE
            write_gguf(self._decoded(base, directory), base_gguf, "F32", GgufOptions(), self._progress)
        if not answers.exists():
            answers.mkdir(mode=paths.DIRECTORY_MODE)
            measure_trained(
                self._trained,
                answers,
                self._progress,
                self._request.rows,
                plain_base=written.way == "base",
                as_file=kind != "adapter" and base_gguf is None,
                base_sha256=self._fingerprint,
            )
        return compare_export(
            self._plan.target,
            kind,
            written.quant,
            self._trained,
            answers,
            self._progress,
            way=written.way,
            base=base_gguf,
        )

    def _reject(self, failures: Sequence[str]) -> NoReturn:
        """Rename files that do not answer as the trained model does.

        Raises:
            UserError: Always; it names the missed bars.
        """
        target = self._plan.target
        names = numbered(f"{target.name}-failed")
        place = next(place for name in names if not os.path.lexists(place := target.with_name(name)))
        os.rename(target, place)
        raise UserError(
            f"The export has failed, and its files are now in {place}: {' '.join(failures)}",
            "Choose a type with more bits, or report it.",
        )

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

    def _write(self, base: Path, made: Path, directory: Path, quant: Quant | None) -> _Written:
        kind = self._request.kind
        if kind == "card":
            return _Written(None)
        conversation = read_conversation(base, self._trained)
        if kind == "adapter":
            write_adapter(base, self._trained, made, conversation)
            return _Written(None)
        if self._request.adapter_only:
            if self._trained.adapter is None:
                raise ValueError(f"{self._trained.label} has no adapter")
            write_adapter_gguf(
                self._trained.adapter, self._decoded(base, directory), made / self._file_name, self._progress
            )
            return _Written(None)
        way = way_to_merge(base, self._trained, self._request.merge_from)
        merged_from = way if self._trained.adapter is not None else None
        if kind == "merged":
            if quant is None:
                raise ValueError("a merged model has a type")
            write_merged(base, self._trained, made, quant, way, conversation, self._progress)
            return _Written(quant, merged_from)
        return replace(self._write_gguf(base, made, directory / _MERGED, conversation, way), way=merged_from)

    def _write_gguf(self, base: Path, made: Path, merged: Path, conversation: Conversation, way: Way) -> _Written:
        """Write a GGUF file of the merged model, which is then deleted; for Ollama also a Modelfile."""
        quant = self._request.weights or "Q8_0"
        # Before minutes of merging.
        if self._request.kind == "ollama":
            from core.worker.export.ollama.modelfile import check_carried

            check_carried(conversation)
        fetch_converter(self._progress)
        self._merge(base, merged, conversation, way)
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
        if self._request.kind == "ollama":
            from core.worker.export.ollama.modelfile import write_modelfile

            written = made / self._file_name
            told += write_modelfile(written, base, self._trained, conversation, options.license, conversations(rows))
        return _Written(quant, notes=told)

    def _merge(self, base: Path, place: Path, conversation: Conversation, way: Way) -> None:
        """Write the merged model for a GGUF file; in 32 bits where its weights exceed the range of 16."""
        widest: Quant = "F32"
        for quant in (merged_quant(self._request, self._trained), widest):
            place.mkdir(mode=paths.DIRECTORY_MODE)
            try:
                write_merged(base, self._trained, place, quant, way, conversation, self._progress)
                return
            except BeyondRangeError:
                if quant in (widest, self._request.weights):
                    raise
                shutil.rmtree(place)

    def _decoded(self, base: Path, directory: Path) -> Path:
        """The base in 16 bits for the converter, which reads no quantized files: decoded into a directory if needed."""
        quantization, place = read_quantization(base), directory / _DECODED
        if quantization is None or place.exists():
            return base if quantization is None else place
        place.mkdir(mode=paths.DIRECTORY_MODE)
        untrained = replace(self._trained, adapter=None, weights=None, file=None)
        quant: Quant = "F16" if quantization.dtype == "F16" else "BF16"
        conversation = read_conversation(base, self._trained)
        write_merged(base, untrained, place, quant, "base", conversation, self._progress)
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

    def _record(
        self,
        base: Path,
        directory: Path,
        written: _Written,
        agreement: Agreement | None = None,
        before: ExportResult | None = None,
    ) -> ExportResult:
        """Write the card and the record beside the files.

        Args:
            base: The directory of the base.
            directory: The directory of the files.
            written: The files.
            agreement: Their agreement with the trained model, if measured.
            before: The record so far, with the hashes of the files.
        """
        trained, kind = self._trained, self._request.kind
        described = self._describe(base)
        warning = (trained.warning,) if trained.warning else ()
        agreed = () if agreement is None else agreement.notes
        parts = self._notes_of_parts(base)
        notes = (*warning, *written.notes, *self._notes_of_file(written.quant), *parts, *agreed)
        if before is None:
            self._progress(HASHING, None, None)
        result = ExportResult(
            path=self._plan.target,
            kind=kind,
            quant=written.quant,
            run=trained.run.id,
            step=trained.step,
            base=described.name,
            base_sha256=self._fingerprint,
            merged_from=written.way,
            files=tuple(_files(directory)) if before is None else before.files,
            agreement=agreement,
            notes=notes,
            seconds=time.monotonic() - self._began,
            created=time.time() if before is None else before.created,
            chain=chain_head(trained.run.path),
        )
        license_id = base_license(trained.config.model.base, base)
        write_atomic(directory / CARD, write_card(CardFacts(trained, result, described, license_id)))
        others = [file for file in result.files if file.name != CARD]
        files = sorted([*others, *_files(directory, CARD)], key=lambda file: file.name)
        result = replace(result, files=tuple(files))
        write_atomic(directory / RECORD, json.dumps(result.to_dict(), indent=1) + "\n")
        if before is None:
            self._progress(HASHING, 1, 1)
        return result


def _files(directory: Path, pattern: str = "*") -> Iterator[ExportedFile]:
    for path in sorted(directory.rglob(pattern)):
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
    SpinControl().start()
    plan = ExportPlan.from_dict(job["plan"])
    return Export(plan, answers.progress, lambda is_there: answers.send({"written": is_there})).make().to_dict()
