"""Models of a table, as they are named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core import paths
from core.config.schema import MethodSection
from core.errors import UserError
from core.evaluation.targets import MOST, resolve_targets
from core.runs.record.store import Run
from tests.cases import cases
from tests.core.chat.test_session import add_adapter, add_checkpoint, make_run
from tests.core.export.test_result import make_result, write_result


@pytest.fixture
def base(tmp_path: Path) -> Path:
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    return directory


@pytest.fixture
def run(base: Path) -> Run:
    made = make_run("finished", str(base))
    add_adapter(made.adapter_path)
    for step in (20, 40):
        add_checkpoint(made, step)
    return made


def test_a_run_its_steps_and_its_base_are_distinguished(run: Run) -> None:
    found = resolve_targets([run.id, "tickets@20"], ["base"])
    assert [target.name for target in found] == [run.id, f"{run.id}@20", "base"]
    assert [target.source for target in found] == ["tuned", "tuned", "base"]
    assert found[0].loads == found[2].loads, "one loaded model answers as both"
    assert found[0].loads != found[1].loads
    assert len({target.identity for target in found}) == 3
    assert all(target.run == run for target in found)


def test_other_files_are_another_model(run: Run, base: Path) -> None:
    directory = shutil.copytree(base, paths.models_dir() / "mine")
    for name, changed in ((run.id, run.adapter_path), ("mine", directory)):
        (before,) = resolve_targets([name])
        (changed / "adapter_model.safetensors").write_bytes(b"other weights")
        (after,) = resolve_targets([name])
        assert before.name == after.name == name
        assert before.identity != after.identity


def test_a_model_is_a_path(base: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(base.parent)
    for name in (str(base), "base/", "./base"):
        (target,) = resolve_targets([name])
        assert (target.source, target.run) == ("base", None)
        assert target.loads == f"model {base}"


def test_an_exported_file_has_the_base_and_the_folder_of_the_run_that_it_was_made_of(run: Run, tmp_path: Path) -> None:
    written = []
    for place in ("one", "two"):
        write_result(make_result(tmp_path / place, run=run.id, step=20))
        written.append(tmp_path / place / "tickets.gguf")
        written[-1].touch()
    first, second, base = resolve_targets([str(path) for path in written], ["base"])
    assert [first.name, second.name, base.name] == ["tickets.gguf", str(written[1]), "base"]
    assert (first.source, first.run, first.trained and first.trained.step) == ("base", run, 20)
    assert first.loads != second.loads
    assert base.run == run
    with pytest.raises(UserError, match="is named twice"):
        resolve_targets([str(written[0]), str(written[0])])


def test_a_directory_that_is_called_as_another_model_is_gets_another_name(run: Run, base: Path) -> None:
    assert base.name == "base"
    found = resolve_targets([str(base), run.id], ["base"])
    assert [target.name for target in found] == ["base", run.id, "base (2)"]


@cases(
    ("names", "against", "said"),
    [
        ([], [], "No model is named"),
        (["tickets", "tickets"], [], "is named twice"),
        (["tickets"], ["base", "base"], "base is named twice"),
        (["tickets@7"], [], "has no checkpoint of step 7"),
        (["nobody"], [], "There is no run called nobody"),
        ([" "], [], "A model's name is empty"),
    ],
)
def test_what_cannot_be_compared_is_refused(run: Run, names: list[str], against: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve_targets(names, against)


def test_without_a_run_there_is_no_base(base: Path) -> None:
    with pytest.raises(UserError, match="no run whose base"):
        resolve_targets([str(base)], ["base"])


def test_a_table_has_so_many_columns(base: Path, tmp_path: Path) -> None:
    names = [str(tmp_path / f"m{number}") for number in range(MOST + 1)]
    for name in names:
        Path(name).mkdir()
    with pytest.raises(UserError, match=f"at most {MOST}"):
        resolve_targets(names)


def test_the_base_of_trained_weights_is_loaded_by_itself(base: Path) -> None:
    made = make_run("finished", str(base), method=MethodSection(name="full"))
    made.model_path.mkdir()
    (made.model_path / "config.json").write_text("{}")
    found = resolve_targets([made.id], ["base"])
    assert found[0].loads != found[1].loads
    assert found[1].loads == f"base {base}"
