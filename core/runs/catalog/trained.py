"""Trained models of a run, results and checkpoints, and how to load them.

While a checkpoint is read, a shared lock of the kernel makes a live run keep it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core import paths
from core.config.choices import FileType
from core.config.schema import WEIGHT_METHODS, Config
from core.errors import UserError
from core.paths import user_path
from core.runs.catalog.removal import directory_size
from core.runs.catalog.rows import modified
from core.runs.outlook.time_left import positive_count
from core.runs.record.events import FinishedEvent
from core.runs.record.history import RunHistory
from core.runs.record.state import in_words, last_events
from core.runs.record.store import Run, complete_checkpoints, find_run, read_labels, start_again
from core.small_files import hash_file, read_json
from core.text import one_line

_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def held_checkpoint(checkpoint: Path | None) -> Iterator[None]:
    """Inside, the run does not rotate a checkpoint out. The kernel releases the lock of a process that is killed.

    Args:
        checkpoint: Its directory; None for anything else, such as the result of a run.
    """
    with contextlib.ExitStack() as held:
        if checkpoint is not None:
            # If it is gone already, its reader reports that; a file system may have no locks.
            with contextlib.suppress(OSError):
                descriptor = os.open(checkpoint / "manifest.json", _FLAGS)
                held.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield


def is_held(checkpoint: Path) -> bool:
    """True if any process is inside :func:`held_checkpoint`; False if that is unknown."""
    try:
        descriptor = os.open(checkpoint / "manifest.json", _FLAGS)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


#: Most bytes of a checkpoint's manifest, which names a few dozen files.
_MANIFEST_LIMIT = 16 << 20


@dataclass(frozen=True)
class KeptCheckpoint:
    """A checkpoint of a run."""

    step: int
    path: Path
    bytes: int
    eval_loss: float | None
    """The loss of the evaluation at its step; None where there was none."""
    reasons: tuple[str, ...]
    """Why it is kept: ``best``, ``newest``, ``result``, ``middle``; empty for the other recent ones."""
    time: float
    """When it was written, in Unix seconds."""


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Manifest of a checkpoint; empty if it cannot be read. The worker verifies the hashes in it."""
    try:
        found = read_json(checkpoint / "manifest.json", _MANIFEST_LIMIT, finite=False)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def newest_manifest(run: Run) -> dict[str, Any]:
    """Manifest of the newest checkpoint of a run; empty without one."""
    return next((found for path in reversed(complete_checkpoints(run)) if (found := read_manifest(path))), {})


def kept_checkpoints(run: Run, history: RunHistory) -> list[KeptCheckpoint]:
    """The complete checkpoints of a run, the newest first.

    Args:
        run: The run.
        history: Its history.
    """
    paths = complete_checkpoints(run)
    losses = {event.step: event.loss for event in history.evals}
    best = _best_step(run, history)
    result = history.end.result_step if history.end is not None and history.end.adapter else None
    middle = _kept_middle(run, {best, newest_manifest(run).get("last_good")})
    found = []
    for path in reversed(paths):
        step = _step_of(path)
        named = {"best": step == best, "newest": path == paths[-1], "result": step == result, "middle": step == middle}
        found.append(
            KeptCheckpoint(
                step,
                path,
                directory_size(path),
                losses.get(step),
                tuple(name for name, is_so in named.items() if is_so),
                modified(path) / 1e9,
            )
        )
    return found


def _best_step(run: Run, history: RunHistory) -> int | None:
    """The step that the worker counts as the best, else the one with the least loss."""
    best = newest_manifest(run).get("best")
    if isinstance(best, dict) and type(best.get("step")) is int:
        return int(best["step"])
    return min(history.evals, key=lambda event: event.loss).step if history.evals else None


#: Suffix of the name of a run whose result ``eval.gate`` refuses.
REFUSED = " (result refused by eval.gate)"


@dataclass(frozen=True)
class TrainedFile:
    """The file whose weights a model was trained with (``method.train_for``)."""

    type: Literal["Q8_0", "Q4_0"]
    """The type of its matrices; embeddings and head are Q8_0."""
    dtype: str | None
    """The torch dtype of the base's weights in training: ``bfloat16``; None if unknown."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model: the result of a run, or a checkpoint of it."""

    run: Run
    config: Config
    """The configuration of the run."""
    step: int | None
    """The step of the checkpoint; None for the result."""
    base: str
    """The model to load: the base of the run, or the directory of the result if it has all weights."""
    adapter: Path | None
    """A directory in PEFT's format; None if the run trained the model's own weights."""
    weights: Path | None
    """A checkpoint's safetensors file, whose weights replace weights of the base."""
    template: str | None
    """A chat template instead of the base's own: a Jinja file, or the name of a built-in one."""
    base_sha256: str | None
    """Fingerprint of the base in training; None if unknown, or if ``base`` is another model."""
    refused: str = ""
    """Missed bars of ``eval.gate``, if the run has checkpoints only; else empty."""
    file: TrainedFile | None = None
    """The file whose weights it was trained with; None for an adapter that is used beside its base."""
    judged: int | None = None
    """The step of the refused result, to which ``refused`` belongs; None if nothing was refused, or the record does
    not say."""

    @property
    def checkpoint(self) -> Path | None:
        """The directory of the checkpoint; None for the result."""
        if self.step is None:
            return None
        return self.adapter.parent if self.adapter else self.weights.parent.parent if self.weights else None

    @property
    def name(self) -> str:
        """Name of its answers: ``adapter``, ``model`` or ``step-N``."""
        if self.step is not None:
            return f"step-{self.step}"
        return "model" if self.adapter is None else "adapter"

    @property
    def label(self) -> str:
        """The run, the step of a checkpoint, and a note if the run's result was refused."""
        step = "" if self.step is None else f", {self.name}"
        refused = f" (the result, step {self.judged}, is refused by eval.gate)" if self._is_another else REFUSED
        return f"{self.run.id}{step}{refused if self.refused else ''}"

    @property
    def warning(self) -> str:
        """Warning that the result of the run was refused, with the reason; empty if it was not."""
        step = f", that of step {self.judged}," if self._is_another else ""
        return f"The result of this run{step} was refused by eval.gate: {self.refused}." if self.refused else ""

    @property
    def _is_another(self) -> bool:
        """True if its step is not the refused step."""
        return self.judged is not None and self.judged != self.step


def split_step(reference: str) -> tuple[str, int | None]:
    """``RUN@120`` as run and step; the step is None if none is named. A path with an ``@`` in it stays whole."""
    name, _, step = reference.rpartition("@")
    if not name or not step.isdecimal() or not step.isascii() or len(step) > 18 or os.path.exists(user_path(reference)):
        return reference, None
    return name, int(step)


def find_run_at(reference: str) -> tuple[Run, int | None]:
    """The run and the step of ``RUN`` or ``RUN@STEP``; a run is named as for :func:`core.runs.record.store.find_run`.

    Raises:
        UserError: If there is no such run.
    """
    name, step = split_step(reference)
    return find_run(name), step


def reference_to(run: Run, step: int | None = None) -> str:
    """``RUN`` or ``RUN@STEP``, by which :func:`find_run_at` finds it: the id, or the path of a run elsewhere."""
    name = run.id if run.path.parent == paths.runs_dir() else str(run.path.absolute())
    return name if step is None else f"{name}@{step}"


def find_trained(run: Run, step: int | None = None) -> TrainedModel:
    """Trained model of a run. Files of a checkpoint are compared with its manifest.

    Args:
        run: The run.
        step: Step of a checkpoint. The default is the result, or the checkpoint that was taken in its place. Without a
            result, it is the checkpoint that ``eval.gate`` has refused, if any, else the newest complete checkpoint.

    Raises:
        UserError: If the run has none, or its configuration cannot be read.
    """
    config = run.config()
    trains_weights = config.method.name in WEIGHT_METHODS
    judged = _judged_step(run)
    step = next((each for each in (step, taken_step(run), judged) if each is not None), None)
    adapter, weights, base = None, None, config.model.base
    if trains_weights:
        found, found_step = _find_weights(run, step)
        if found == run.model_path:
            base = str(found)
        else:
            weights = found
    else:
        adapter, found_step = _find_adapter(run, step)
    return TrainedModel(
        run=run,
        config=config,
        step=found_step,
        base=base,
        adapter=adapter,
        weights=weights,
        template=_find_template(run, config),
        base_sha256=_find_base_hash(run) if base == config.model.base else None,
        # A result that is there has passed, whatever the file of the state says.
        refused=run.state().refused if found_step is not None else "",
        judged=judged,
        file=None if config.method.train_for is None else _find_file(run, config.method.train_for, found_step),
    )


def _find_file(run: Run, wanted: FileType, step: int | None) -> TrainedFile | None:
    """File type that a step was trained for, by its checkpoint; the newest checkpoint decides for the result."""
    manifest = newest_manifest(run)
    if step is not None:
        manifest = next((read_manifest(path) for _, path in _candidates(run, step)), {})
    kind: Literal["Q8_0", "Q4_0"] = "Q8_0" if wanted == "q8_0" else "Q4_0"
    if "file" not in manifest:  # all checkpoints of a finished run may be gone
        return TrainedFile(kind, None)
    found = manifest["file"]
    return TrainedFile(kind, str(found.get("dtype"))) if isinstance(found, dict) else None


def _find_template(run: Run, config: Config) -> str | None:
    """The chat template of the training: as saved with the result or with its variables, else the file or name in the
    configuration.
    """
    output = run.model_path if config.method.name in WEIGHT_METHODS else run.adapter_path
    saved = (output / "chat_template.jinja", run.template_path)
    found = next((str(path) for path in saved if path.is_file()), None)
    return found or config.template.file or config.template.name


def _find_adapter(run: Run, step: int | None) -> tuple[Path, int | None]:
    """The adapter at a step; without one the final adapter, else that of the newest complete checkpoint."""
    if step is None and is_adapter(run.adapter_path):
        return run.adapter_path, None
    for number, checkpoint in _candidates(run, step):
        if is_adapter(checkpoint / "adapter") and matches_manifest(checkpoint, "adapter/"):
            return checkpoint / "adapter", number
    raise _nothing_trained(run, step, "an adapter")


def _find_weights(run: Run, step: int | None) -> tuple[Path, int | None]:
    """The trained weights at a step; else the final model, else the weights of the newest complete checkpoint."""
    if step is None and (run.model_path / "config.json").is_file():
        return run.model_path, None
    for number, checkpoint in _candidates(run, step):
        weights = checkpoint / "weights" / "trained.safetensors"
        if weights.is_file() and matches_manifest(checkpoint, "weights/"):
            return weights, number
    raise _nothing_trained(run, step, "a model")


def checkpoint_steps(run: Run) -> list[int]:
    """The steps of the complete checkpoints, ascending."""
    return [_step_of(path) for path in complete_checkpoints(run)]


def middle_step(steps: Sequence[int], last: int) -> int:
    """The step nearest to half of the last one; the earlier of two.

    Args:
        steps: The steps, at least one.
        last: The last step.
    """
    return min(steps, key=lambda step: (abs(2 * step - last), step))


def _kept_middle(run: Run, protected: Collection[int | None]) -> int | None:
    """The step kept as that of the middle; None if it is among the last ones, or kept for another reason."""
    values, steps = run.values(), checkpoint_steps(run)
    keep, total = positive_count(values.get("checkpoint.keep")), run.state().total_steps
    if values.get("method.name") in WEIGHT_METHODS or keep is None or not steps[:-keep]:
        return None
    middle = middle_step(steps, total)
    return middle if middle in steps[:-keep] and middle not in protected else None


def has_result(run: Run) -> bool:
    """True if the result of a run is there: its adapter, or its model."""
    return is_adapter(run.adapter_path) or (run.model_path / "config.json").is_file()


def stand_in_step(run: Run) -> int | None:
    """The step of the checkpoint that stands in for the result of a run that has none; None where there is none."""
    return next((step for step, _ in _candidates(run, _judged_step(run))), None)


def _judged_step(run: Run) -> int | None:
    """The step of a result that ``eval.gate`` has refused; None if it refused none, or the record does not say which.
    A result that is on the disk has passed."""
    return result_step(run) if run.state().refused and not has_result(run) else None


def taken_step(run: Run) -> int | None:
    """The step of the checkpoint that the user has taken in place of the result; None for the result itself."""
    return read_labels(run.path).result if is_adapter(run.adapter_path) else None


def result_step(run: Run) -> int | None:
    """The step of a finished run's result, written or refused; None where the record does not say."""
    end = next(last_events(run.events_path, FinishedEvent), None)
    return end.result_step if end is not None else None


def _candidates(run: Run, step: int | None) -> list[tuple[int, Path]]:
    """Complete checkpoints with their steps, newest first; only the checkpoint of ``step`` if it is given."""
    found = [(_step_of(path), path) for path in reversed(complete_checkpoints(run))]
    return [(number, path) for number, path in found if step is None or number == step]


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _nothing_trained(run: Run, step: int | None, wanted: str) -> UserError:
    if step is None:
        return UserError(
            f"Run {run.id} {in_words(run.state().state)} and has neither {wanted} nor a whole checkpoint.",
            f"To have one, {start_again(run)}.",
        )
    steps, is_judged = checkpoint_steps(run), step == _judged_step(run)
    if step in steps:
        return UserError(
            f"The checkpoint of step {step} of run {run.id} is damaged: its files are not those of its manifest.",
            "It is what eval.gate has refused; name another one." if is_judged else "Take another one, or the result.",
        )
    kept = f"It has those of {', '.join(map(str, steps))}." if steps else "It has none."
    if step == taken_step(run):
        kept = f"It was taken as the result. {kept} Take the last step again: {take_command(run)}."
    judged = ", which eval.gate has refused" if is_judged else ""
    return UserError(f"Run {run.id} has no checkpoint of step {step}{judged}.", kept)


def take_command(run: Run, step: int | None = None) -> str:
    """The command that takes a checkpoint as the result of a run, or the result as it was written."""
    return f"localtune-tui label {run.id} --result {step or 0}"


def check_beginning(config: Config) -> None:
    """Refuse a ``model.adapter`` that is missing, or whose rank or scale is not that of ``method``.

    Raises:
        UserError: If so.
    """
    from core.models.check import ADAPTER_CONFIG
    from core.models.description import read_description

    if config.model.adapter is None:
        return
    adapter, method = Path(config.model.adapter), config.method
    saved = read_description(adapter / ADAPTER_CONFIG) if is_adapter(adapter) else None
    if saved is None:
        raise UserError(
            f"There is no adapter in {one_line(str(adapter), 300)} to begin from.",
            "Fix model.adapter, or leave it out.",
        )
    rank, alpha = _positive(saved.get("r")), _positive(saved.get("lora_alpha"))
    scale = alpha / (math.sqrt(rank) if saved.get("use_rslora") else rank)
    # With PiSSA the initial adapter is saved too.
    rank /= 2 if method.init == "pissa" else 1
    alpha = scale * (math.sqrt(method.rank) if method.rslora else method.rank)
    for name, has, wanted in (("rank", rank, method.rank), ("alpha", alpha, method.alpha)):
        if not math.isclose(has, wanted, rel_tol=1e-6):
            raise UserError(
                f"The adapter in {one_line(str(adapter), 300)} was trained with method.{name} = {has:g}, and "
                f"method.{name} is {wanted:g}.",
                f"Set method.{name} = {has:g}, or leave model.adapter out.",
            )


def _positive(value: Any) -> float:
    return float(value) if type(value) in (int, float) and value > 0 else math.nan


def base_of_adapter(adapter: Path) -> str | None:
    """The hash of the base that an adapter in a run was trained on; None where no run has recorded it."""
    run = next((place for place in adapter.parents[:3] if (place / "run.toml").is_file()), None)
    return None if run is None else _find_base_hash(Run(run))


def _find_base_hash(run: Run) -> str | None:
    """The hash of the base model in the newest checkpoint; None where none has it."""
    found = newest_manifest(run).get("base_sha256")
    return None if found is None else str(found)


def is_adapter(directory: Path) -> bool:
    """True if a directory has an adapter in PEFT's format."""
    return all((directory / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors"))


def matches_manifest(checkpoint: Path, part: str) -> bool:
    """True if the files of a part of a checkpoint match its manifest, by size and SHA-256.

    Args:
        checkpoint: The checkpoint's directory.
        part: The beginning of the files' names: ``adapter/``.
    """
    try:
        files: dict[str, Any] = read_manifest(checkpoint)["files"]
        expected = {name: facts for name, facts in files.items() if name.startswith(part)}
        if any(".." in Path(name).parts for name in expected):
            return False
        return bool(expected) and all(
            (checkpoint / name).stat().st_size == facts["bytes"]
            and hash_file(checkpoint / name) == str(facts["sha256"])
            for name, facts in expected.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def python_code(result: Path, *, is_model: bool) -> str:
    """Python code that loads a result with PEFT and Transformers.

    Args:
        result: Directory of the adapter or the model.
        is_model: Whether it is a whole model.
    """
    loader = _loader(result if is_model else Path(_base_of(result)))
    if is_model:
        return "\n".join(
            [
                f"from transformers import {loader}, AutoTokenizer",
                f"model = {_quoted(result)}",
                "tokenizer = AutoTokenizer.from_pretrained(model)",
                f"model = {loader}.from_pretrained(model)",
            ]
        )
    # Adapters of checkpoints have no tokenizer beside them; it is that of the base.
    has_tokenizer = os.path.isfile(result / "tokenizer_config.json")
    return "\n".join(
        [
            "from peft import PeftModel",
            f"from transformers import {loader}, AutoTokenizer",
            f"base = {_quoted(_base_of(result))}",
            f"adapter = {_quoted(result)}",
            f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if has_tokenizer else 'base'})",
            f"model = {loader}.from_pretrained(base)",
            "model = PeftModel.from_pretrained(model, adapter)",
        ]
    )


def _loader(model: Path) -> str:
    """The class of transformers by which a model is loaded with all its parts."""
    from core.models.description import auto_class, read_description

    try:
        return auto_class(read_description(model / "config.json") or {})
    except (UserError, ValueError):  # a path may have a zero byte
        return auto_class({})


def _base_of(adapter: Path) -> str:
    """The base model that an adapter was trained on, as its configuration names it."""
    from core.models.check import ADAPTER_CONFIG
    from core.models.description import read_description

    try:
        name = (read_description(adapter / ADAPTER_CONFIG) or {}).get("base_model_name_or_path")
    except (UserError, ValueError):  # a path may have a zero byte
        name = None
    return name if isinstance(name, str) and name else "the base model"


def _quoted(path: Path | str) -> str:
    """A path as a Python string literal; :func:`ascii` makes one of any path."""
    text = os.fspath(path)
    return f'"{text}"' if text.isprintable() and '"' not in text and "\\" not in text else ascii(text)
