"""LLaMA-Factory: datasets and their mixing weights."""

from __future__ import annotations

from pathlib import Path

from core.data.registries.llama_factory import read_llama_factory
from core.errors import UserError
from core.hub.store import NotFetchedError
from core.hub_uri import is_hub_id
from core.importers import trainer
from core.importers.data_files import PLACEHOLDER, Written, count_entries, put_sources, relative_to, write_dataset
from core.importers.redact import shown
from core.importers.translation import Translation
from core.models.find import hub_cache_dir

REGISTRY = "dataset_info.json"

_ONLINE, _REMOTE = "ONLINE", "REMOTE:"
#: Most registry entries checked; each check reads the whole file.
_CHECKED = 50
# Columns of a dataset without a registry entry.
_ALPACA = {"user": "instruction", "context": "input", "assistant": "output"}


def datasets(work: Translation) -> None:
    """Convert the datasets, the held-out share, and the mixing weights.

    Raises:
        UserError: If a value is of the wrong kind, or ``dataset_dir`` is not a name of the Hub.
    """
    if not work.boolean("split_special_tokens"):
        trainer.special_tokens_act(work)
    directory = work.text("dataset_dir") or "data"
    names, held = work.texts("dataset"), work.texts("eval_dataset")
    registry = _registry(work, directory)
    if names:
        put_sources(work, "dataset", "data.train", _sources(work, directory, registry, names))
    else:
        work.change("dataset", "data.train", PLACEHOLDER, "The file names no dataset: put your data.")
    if held:
        put_sources(work, "eval_dataset", "data.eval", _sources(work, directory, registry, held))
    if directory == _ONLINE and (names or held):
        work.change("dataset_dir", "data.columns", _ALPACA, "The columns of a dataset of the Hub without a registry.")
    elif registry is None:
        work.drop("dataset_dir", f"Put that {REGISTRY} into a directory, name it here, and import again.")
    elif work.has("dataset_dir"):
        work.note_change("dataset_dir", "data.train", f"The directory of {REGISTRY}, which data.train names.")
    trainer.held_out(work, "val_size", has_rows=bool(held))
    _mix(work)


def _registry(work: Translation, directory: str) -> Path | None:
    """Path of the registry; None without one, or if it is not downloaded."""
    if directory == _ONLINE:
        return None
    if not directory.startswith(_REMOTE):
        return work.places.locate(directory) / REGISTRY
    repository = directory.removeprefix(_REMOTE)
    if not is_hub_id(repository):
        work.refuse("dataset_dir", f"names no repository of the Hub: {shown('dataset_dir', repository)}")
    # LLaMA-Factory downloads it to here.
    found = hub_cache_dir().glob(f"datasets--{repository.replace('/', '--')}/snapshots/*/{REGISTRY}")
    return max(found, key=lambda path: path.lstat().st_mtime, default=None)


def _sources(work: Translation, directory: str, registry: Path | None, names: list[str]) -> list[Written]:
    if directory == _ONLINE:
        return [write_dataset(work, name) for name in names]
    if registry is None:
        where = shown("dataset_dir", directory.removeprefix(_REMOTE), 120)
        note = f"An entry of a {REGISTRY} of the Hub, in {where}, which is not here."
        return [Written(name, note, False) for name in names]
    return [_source(work, registry, name, is_checked=place < _CHECKED) for place, name in enumerate(names)]


def _source(work: Translation, registry: Path, name: str, *, is_checked: bool) -> Written:
    """Entry of the registry, as ``dataset_info.json#name``; checked if the registry exists."""
    text = work.places.write(registry, f"#{name}")
    if not registry.is_file():
        return Written(text, f"There is no {shown('dataset_dir', str(registry), 120)}.", False)
    if not is_checked:
        return Written(text, "", True)
    note = f"An entry of {REGISTRY}. {relative_to(work)}"
    try:
        source = read_llama_factory(registry, name)
    except NotFetchedError as error:
        return Written(text, note, True, (str(error.entry),))
    except UserError as error:
        return Written(text, str(error), False)
    if not source.path.exists():
        return Written(text, f"The file of {shown('dataset', name, 60)} is not there: {source.path}.", False)
    if source.columns is not None and source.columns.media:
        media = ", ".join(shown("columns", column, 40) for column in source.columns.media)
        note = f"{note} Only text is read: rows with anything in {media} are not used."
    return Written(text, note, True)


def _mix(work: Translation) -> None:
    """Convert the mixing weights of the entries.

    ``max_samples`` takes that many rows of each entry; ``interleave_under`` draws from all until the first is used up,
    ``interleave_over`` until all are.
    """
    most = work.integer("max_samples")
    strategy = str(work.values.get("mix_strategy", "concat")).strip().lower()
    raw = work.values.get("interleave_probs")
    parts = raw.split(",") if isinstance(raw, str) else raw if isinstance(raw, list) else []
    shares = [share for part in parts if (share := _as_share(part)) is not None]
    if strategy == "concat":
        work.keep("mix_strategy")
        work.drop("interleave_probs", "It counts only with mix_strategy: interleave_under or interleave_over.")
    counts = count_entries(work)
    if counts is None or not all(counts) or not work.has("dataset"):
        for key in ("max_samples", "mix_strategy", "interleave_probs"):
            work.drop(key, "All rows are used: their number is not known yet. Set data.weights.")
        return
    taken = [min(count, most) if most and most > 0 else count for count in counts]
    if strategy in ("interleave_under", "interleave_over"):
        wanted = shares or [1 / len(counts)] * len(counts)
        if len(wanted) != len(counts):
            return
        pick = min if strategy == "interleave_under" else max
        drawn = pick(rows / share for rows, share in zip(taken, wanted, strict=True))
        _put_weights(work, "mix_strategy", counts, [max(round(drawn * share), 1) for share in wanted])
        for key in ("interleave_probs", "max_samples"):
            if work.has(key):
                work.note_change(key, "data.weights", "See mix_strategy.")
        return
    for key in ("mix_strategy", "interleave_probs"):
        work.drop(key, "Each row is used once in an epoch; data.weights sets how often those of an entry are.")
    if taken == counts:
        work.keep("max_samples", reason="No entry has more.")
    else:
        _put_weights(work, "max_samples", counts, taken)


def _put_weights(work: Translation, key: str, counts: list[int], taken: list[int]) -> None:
    """Set ``data.weights`` to use the given number of rows of each entry."""
    # Enough digits for exactly that number of rows.
    weights = [round(rows / count, len(str(count)) + 1) for rows, count in zip(taken, counts, strict=True)]
    few = ", ".join(f"{rows} of {count}" for rows, count in zip(taken[:4], counts, strict=False))
    more = ", …" if len(taken) > 4 else ""
    work.change(key, "data.weights", weights, f"{few}{more} rows in an epoch; train.seed decides which.")


def _as_share(part: object) -> float | None:
    try:
        number = float(str(part))
    except ValueError:
        return None
    return number if 1e-6 <= number <= 1 else None
