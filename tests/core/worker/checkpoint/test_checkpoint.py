"""Checkpoints that are whole or do not exist."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from core.config.schema import MethodSection, TrainSection
from core.errors import UserError
from core.runs.catalog.trained import held_checkpoint
from core.small_files import hash_file
from core.worker.checkpoint import checkpoint as checkpoints
from core.worker.model.adapters import attach_adapters, load_adapter
from core.worker.model.model import load_model, trainable_parameters
from core.worker.optim.optim import make_optimizer
from tests.cases import cases
from tests.families import forked
from tests.small_disk import small_disk
from tests.unprivileged import unprivileged

FACTS: dict[str, Any] = {"config_sha256": "c", "overrides": {"train.learning_rate": 1e-3}, "best": None}
FILES = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors", "manifest.json", "optimizer.pt", "rng.pt")


Damage = Callable[[Path], object]
Files = dict[str, Any]


class Training:
    """A tiny model in the middle of its training."""

    def __init__(self, directory: Path, *, seed: int = 0, optimizer: Any = "adamw", **method: Any) -> None:
        loaded = load_model(directory, method="lora", precision="fp32", device="cpu")
        section = MethodSection(**{"rank": 2, "dropout": 0.2} | method)
        self.model = attach_adapters(loaded.model, section, seed=seed)
        train = TrainSection(learning_rate=1e-2, optimizer=optimizer)
        self.optimizer = make_optimizer(trainable_parameters(self.model), train)

    def step(self) -> float:
        ids = torch.randint(0, 300, (2, 12))
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def save(self, where: Path, step: int) -> checkpoints.Checkpoint:
        return checkpoints.save_checkpoint(
            where, model=self.model, optimizer=self.optimizer, step=step, facts=dict(FACTS)
        )


@pytest.fixture(scope="module")
def training(tiny_model_dir: Path) -> Training:
    training = Training(tiny_model_dir)
    training.step()
    return training


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, training: Training) -> Path:
    """Two checkpoints, never touched."""
    where = tmp_path_factory.mktemp("saved") / "checkpoints"
    for step in (10, 20):
        training.save(where, step)
    return where


def copied(saved: Path, tmp_path: Path) -> Path:
    """Two checkpoints, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


EIGHT_BITS = {"optimizer": "adamw_8bit", "rank": 80}  # from 4096 elements on a moment is kept in 8 bits


@cases(
    ("mapped", "options"),
    [
        (False, {}),
        (False, {"dora": True}),
        (False, EIGHT_BITS),
        (False, {**EIGHT_BITS, "optimizer": "paged_adamw_8bit"}),
        # As on a GPU, which copies the states out of the file.
        (True, {}),
        (True, EIGHT_BITS),
    ],
)
def test_restore_is_exact(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mapped: bool, options: dict[str, Any]
) -> None:
    original = Training(tiny_model_dir, **options)
    torch.manual_seed(3)
    for _ in range(3):
        original.step()
    written = original.save(tmp_path, 3)
    expected = [original.step() for _ in range(3)], np.random.random(), random.random()
    other = Training(tiny_model_dir, seed=9, **options)
    other.step()
    load = checkpoints.load_tensors
    monkeypatch.setattr(checkpoints, "load_tensors", lambda path, **_: load(path, mapped=mapped))
    checkpoints.restore(checkpoints.verify_checkpoint(written.path), model=other.model, optimizer=other.optimizer)
    assert ([other.step() for _ in range(3)], np.random.random(), random.random()) == expected
    for mine, theirs in zip(trainable_parameters(original.model), trainable_parameters(other.model), strict=True):
        assert torch.equal(mine, theirs)


@cases("fewer", [True, False])
def test_adapters_on_other_layers_are_refused_by_name_and_can_be_used_as_they_are(
    tiny_model_dir: Path, tmp_path: Path, fewer: bool
) -> None:
    few, more = ["q_proj"], ["q_proj", "v_proj"]
    then, now = (few, more) if fewer else (more, few)
    training = Training(tiny_model_dir, target_modules=then)
    training.step()
    saved = training.save(tmp_path, 1)
    other, larger = Training(tiny_model_dir, target_modules=now), Training(tiny_model_dir, target_modules=then, rank=4)
    with pytest.raises(UserError, match="does not fit this model"):
        checkpoints.restore(saved, model=larger.model, optimizer=larger.optimizer)
    said = f"its adapters are on other layers; it {'lacks' if fewer else 'has'} .*v_proj"
    with pytest.raises(UserError, match=said) as refusal:
        checkpoints.restore(saved, model=other.model, optimizer=other.optimizer)
    assert "can be exported and talked to as it is" in refusal.value.hint
    base = load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu").model
    used = load_adapter(base, saved.adapter_path, trainable=False)
    trained = training.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in used.state_dict().items())


def _cut(left: int) -> Damage:
    return lambda path: os.truncate(path, left if left >= 0 else path.stat().st_size + left)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0b100
    path.write_bytes(raw)


def passed_over(where: Path) -> str:
    """The sentence about the newer of two checkpoints, which is damaged."""
    found, (sentence,) = checkpoints.newest_valid(where)
    assert found is not None
    assert found.step == 10
    return sentence


@cases("name, damage", itertools.product(FILES, [Path.unlink, _cut(-2), _cut(0), _flip]))
def test_any_damage_to_any_file_brings_the_older_checkpoint(
    saved: Path, tmp_path: Path, name: str, damage: Damage
) -> None:
    where = copied(saved, tmp_path)
    damage(where / "step-00000020" / name)
    sentence = passed_over(where)
    assert sentence.startswith("step-00000020")
    assert sentence.endswith(".")
    damage(where / "step-00000010" / name)
    found, damaged = checkpoints.newest_valid(where)
    assert found is None
    assert [sentence.split(":")[0].split()[0] for sentence in damaged] == ["step-00000020", "step-00000010"]


def _rewritten(files: Callable[[Files], object] = lambda files: files, **changes: Any) -> Damage:
    """A manifest that says something else, and whose own hash is right."""

    def damage(path: Path) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        manifest |= {"files": files(manifest["files"]), **changes}
        manifest["manifest_sha256"] = checkpoints.hash_manifest(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return damage


def _with_the_manifest_of_another(path: Path) -> None:
    shutil.copy(path.parent / "step-00000010" / "manifest.json", path / "manifest.json")


def _with_the_files_of_another(path: Path) -> None:
    shutil.rmtree(path)
    shutil.copytree(path.parent / "step-00000010", path)


def _with_more_named(path: Path) -> None:
    outside = path.parent.parent / "outside"
    outside.write_text("x")
    _rewritten(lambda files: {**files, "../../outside": {"bytes": 1, "sha256": hash_file(outside)}})(path)


def _with_less_named(name: str) -> Damage:
    def damage(path: Path) -> None:
        _rewritten(lambda files: {other: facts for other, facts in files.items() if other != name})(path)
        (path / name).unlink()

    return damage


def _moved_away(path: Path) -> None:
    """The same content, but it lies elsewhere, where it may change."""
    target = path.parents[2] / "elsewhere"
    path.rename(target)
    path.symlink_to(target)


def _replaced(name: str, make: Damage) -> Damage:
    def damage(path: Path) -> None:
        (path / name).unlink()
        make(path / name)

    return damage


def _with_the_manifest(text: str) -> Damage:
    return lambda path: (path / "manifest.json").write_text(text)


@cases(
    "damage, says",
    [
        (_with_the_manifest_of_another, "manifest.json is that of another checkpoint"),
        (_with_the_files_of_another, "manifest.json is that of another checkpoint"),
        (_rewritten(step=21), "that of another checkpoint"),
        (_rewritten(lambda _: []), "that of another checkpoint"),
        (_rewritten(lambda files: dict.fromkeys(files, 1)), "that of another checkpoint"),
        (_rewritten(version=99), "written by another version"),
        (_with_more_named, "lacks ../../outside"),
        *((_with_less_named(name), "that of another checkpoint") for name in (FILES[1], "optimizer.pt", "rng.pt")),
        (lambda path: (path / "notes.txt").write_text("x"), "notes.txt is not part of the checkpoint"),
        (lambda path: (path / "adapter" / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin is not part of"),
        (lambda path: (path / "adapter" / "more.pt").symlink_to("/dev/zero"), "adapter/more.pt is a link"),
        *((lambda path, name=name: _moved_away(path / name), f"{name} is a link") for name in (*FILES, "adapter")),
        (_moved_away, "is a link, not a checkpoint"),
        (_replaced("rng.pt", lambda path: path.symlink_to(path)), "rng.pt is a link"),
        (_replaced("rng.pt", Path.mkdir), "lacks rng.pt"),
        (_replaced("optimizer.pt", os.mkfifo), "optimizer.pt is not a file"),
        (_replaced("manifest.json", os.mkfifo), "has no valid manifest"),
        *((_with_the_manifest(text), "has no valid manifest") for text in ("", "null", "[]", "{}", "[" * 100_000)),
        (_with_the_manifest('{"step": 1, "files": {}, "version": 1}'), "has no valid manifest"),
    ],
)
def test_what_was_changed_by_hand_is_passed_over_and_said(
    saved: Path, tmp_path: Path, damage: Damage, says: str
) -> None:
    where = copied(saved, tmp_path)
    damage(where / "step-00000020")
    sentence = passed_over(where)
    assert says in sentence
    assert sentence.startswith("step-00000020")


@cases("name", ["manifest.json", "optimizer.pt", "adapter"])
def test_an_unreadable_checkpoint_is_skipped(saved: Path, tmp_path: Path, name: str) -> None:
    where = copied(saved, tmp_path)
    (where / "step-00000020" / name).chmod(0)
    with unprivileged():
        sentence = passed_over(where)
    (where / "step-00000020" / name).chmod(0o700)
    assert "Permission denied" in sentence or "no valid manifest" in sentence


def test_no_flipped_bit_of_a_manifest_is_believed(saved: Path, tmp_path: Path) -> None:
    path = copied(saved, tmp_path) / "step-00000010" / "manifest.json"
    raw = path.read_bytes()
    sound = json.loads(raw)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        try:
            found = checkpoints.verify_checkpoint(path.parent)
        except UserError:
            continue
        assert found.manifest == sound, f"byte {place}"


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    assert checkpoints.newest_valid(tmp_path / "none") == (None, [])
    (tmp_path / ".step-00000030.1.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert checkpoints.newest_valid(tmp_path) == (None, [])
    (tmp_path / "step-00000001").write_text("a file")
    found, damaged = checkpoints.newest_valid(tmp_path)
    assert found is None
    assert damaged == ["step-00000001 has no valid manifest."]


def test_a_full_disk_is_an_error_and_leaves_nothing(training: Training, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        with pytest.raises(OSError, match="No space left"):
            training.save(disk / "checkpoints", 1)
        assert list((disk / "checkpoints").iterdir()) == []
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save_tensors({"state": torch.ones(100_000)}, Path("/dev/full"))


def _kilobytes(name: str) -> int:
    """A line of this process's memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _saved_and_loaded(path: Path) -> tuple[int, int]:
    """Kilobytes that 128 MiB of states take, beside themselves, while they are written and when they are read."""
    states = {number: torch.rand(1 << 21) for number in range(16)}
    checkpoints.save_tensors({}, path)
    # The highest point so far is forgotten.
    Path("/proc/self/clear_refs").write_text("5")
    before = _kilobytes("VmHWM")
    checkpoints.save_tensors(states, path)
    saving, before = _kilobytes("VmHWM") - before, _kilobytes("RssAnon")
    found = checkpoints.load_tensors(path, mapped=True)
    assert all(torch.equal(tensor, states[number]) for number, tensor in found.items())
    return saving, _kilobytes("RssAnon") - before


@pytest.mark.long
def test_states_are_not_copied_whole_to_be_written_or_to_be_read(tmp_path: Path) -> None:
    saving, loading = forked.call(_saved_and_loaded, tmp_path / "optimizer.pt", log=tmp_path / "log")
    assert saving < 40 << 10, "of 128 MiB"
    assert loading < 40 << 10, "but for what lies in the file"


def test_the_estimate_of_a_checkpoint_covers_its_tensors(training: Training, saved: Path) -> None:
    path = saved / "step-00000010"
    tensors = sum((path / name).stat().st_size for name in ("optimizer.pt", "adapter/adapter_model.safetensors"))
    estimate = checkpoints.size_estimate(training.model)
    assert estimate <= tensors <= 2 * estimate


@cases(
    ("there", "keep", "newest", "protected", "left"),
    [
        ([10, 20, 30], 2, 30, (), [20, 30]),
        # 20 and 30 were damaged, the run continued from 10, and 15 is new.
        ([10, 15, 20, 30], 2, 15, (), [10, 15]),
        ([1, 2, 3, 4, 5], 1, 4, (2, 4, 5, 9), [2, 4]),
    ],
)
def test_old_checkpoints_and_leftovers_are_deleted(
    there: list[int], keep: int, newest: int, protected: tuple[int, ...], left: list[int], tmp_path: Path
) -> None:
    names = {step: checkpoints.checkpoint_name(step) for step in there}
    for name in (*names.values(), ".step-00000005.77.tmp", "notes"):
        (tmp_path / name).mkdir()
    checkpoints.rotate(tmp_path, keep, newest=tmp_path / names[newest], protected=protected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", *(names[step] for step in left)]


def test_a_checkpoint_that_an_export_reads_stays_for_one_rotation_unless_after_the_newest(tmp_path: Path) -> None:
    paths = [tmp_path / checkpoints.checkpoint_name(step) for step in (1, 2, 3, 4)]
    for path in paths:
        path.mkdir()
        (path / "manifest.json").write_text("{}")
    with held_checkpoint(paths[0]), held_checkpoint(paths[3]):
        assert sorted(checkpoints.rotate(tmp_path, 1, newest=paths[2])) == [paths[1], paths[3]]
    checkpoints.rotate(tmp_path, 1, newest=paths[2])
    assert list(tmp_path.iterdir()) == [paths[2]]


def test_links_are_rotated_out_and_their_targets_stay(tmp_path: Path) -> None:
    outside, directory = tmp_path / "outside", tmp_path / "checkpoints"
    (outside / "mine").mkdir(parents=True)
    (directory / "step-00000003").mkdir(parents=True)
    for name in ("step-00000001", "step-00000009", ".step-00000002.7.tmp"):
        (directory / name).symlink_to(outside)
    checkpoints.rotate(directory, 1, newest=directory / "step-00000003")
    assert [path.name for path in directory.iterdir()] == ["step-00000003"]
    assert [path.name for path in outside.iterdir()] == ["mine"]
