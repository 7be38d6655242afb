"""The screen of the base models: found as they are, searched, completed, chosen, and fetched from a hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from core import paths
from core.config.document import ConfigDocument
from core.errors import UserError
from core.memory.planner import Fit
from core.models.find import STARTER_NAME, find_model
from core.models.inspection import STARTER_FACTS, ModelFacts
from core.models.places import FoundModel, Source
from core.runs.catalog.earlier import ModelCatalog
from tests.cases import cases
from tests.core.hub.conftest import hub as hub
from tests.core.hub.fake_hub import FakeHub, Repository
from tests.core.models.spoiling import copy_model, edit_json
from tests.core.worker.model.gguf_files import write_gguf
from tests.tui.harness import FORBIDDEN, HOSTILE, press, screen_text, shown, wait_for
from tests.tui.screens.opening import ScreenApp
from tui.screens.job import JobScreen
from tui.screens.models import ModelRow, ModelScreen, hub_line, model_details, model_line, tell_fit, verdict
from tui.widgets.forms.inputs import SafeInput
from tui.widgets.lists.choice_list import ChoiceList

GIGABYTE = 1_000_000_000


def row(
    name: str = "org/some-model",
    source: Source = "hub cache",
    *,
    place: str = "HF cache",
    fit: Fit | None = None,
    facts: ModelFacts | None = None,
) -> ModelRow:
    return ModelRow(FoundModel(name, name, Path("/somewhere/snapshots/abc"), source, place), facts, fit)


@cases(
    ("fit", "told"),
    [
        (Fit(2_600_000_000, 23_400_000_000, True), "fits, 2.6 of 23 GB"),
        (Fit(812_000_000, 23_400_000_000, True), "fits, 812 MB of 23 GB"),
        (Fit(44_300_000_000, 23_400_000_000, False), "✗ needs 44 of 23 GB"),
        (Fit(2_600_000_000, 900_000_000, False), "✗ needs 2.6 GB of 900 MB"),
        (Fit(2_600_000_000), "needs 2.6 GB"),
        (Fit(2_600_000_000, 23_400_000_000, True, is_rough=True), "fits, about 2.6 of 23 GB"),
        (Fit(44_300_000_000, 23_400_000_000, False, is_rough=True), "measuring …"),
        (Fit(reason="Because."), "memory unknown"),
    ],
)
def test_memory_is_reported_against_what_is_free(fit: Fit, told: str) -> None:
    assert tell_fit(fit)[0] == told


def test_the_verdict_names_what_keeps_a_model_from_being_trained_first() -> None:
    fits = Fit(GIGABYTE, 2 * GIGABYTE, True)
    assert verdict(row())[0] == "reading …"
    assert verdict(row(facts=STARTER_FACTS, fit=fits))[0] == "fits, 1.0 of 2.0 GB"
    flawed = STARTER_FACTS.flawed(UserError("It is damaged.", "Copy it again."))
    assert verdict(row(facts=flawed, fit=fits))[0] == "✗ cannot be used"
    assert "✗ It is damaged. Copy it again." in model_details(row(facts=flawed, fit=fits), 80).plain
    part = ModelFacts(is_incomplete=True, flaw="/somewhere/snapshots/abc lacks a.safetensors.", hint="Copy it.")
    assert verdict(row(facts=part))[0] == "! incomplete"
    details = model_details(row(facts=part), 80).plain
    assert details.endswith("! org/some-model lacks a.safetensors. Enter fetches it from the hub.")
    assert row(facts=part).is_fetched_anew
    assert not row(facts=part, source="directory").is_fetched_anew


@cases("width", [40, 54, 63, 64, 74, 99, 100, 120, 200])
@cases("name", ["smollm2-135m-instruct", "owner/" + "n" * 150, "模型" * 40, HOSTILE])
def test_a_line_has_the_width_and_nothing_leaks(width: int, name: str) -> None:
    facts = ModelFacts(7_600_000_000, HOSTILE, 99, True, HOSTILE, flaw=HOSTILE, hint=HOSTILE)
    for known in (None, STARTER_FACTS, facts):
        listed = row(name, "directory", place=name, facts=known, fit=Fit(GIGABYTE, 2 * GIGABYTE, True))
        line = model_line(listed, width, is_present=True).plain
        assert cell_len(line) <= max(width, 41)
        for text in (line, model_details(listed, width).plain, hub_line(name, width).plain):
            assert not FORBIDDEN & set(text)
        assert cell_len(model_details(listed, width).plain.split("\n")[0]) <= width


DIGEST = "cd" * 32


@pytest.fixture(scope="module")
def gguf(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tiny_model_dir, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, and no store of other programs but those in the private home."""
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    return directory


def cached(repository: str, source: Path, commit: str = "a" * 40) -> Path:
    """A model in the Hugging Face cache, its files linked to blobs, as that library does it."""
    place = Path.home() / ".cache/huggingface/hub" / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
    (place / "blobs").mkdir()
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, place / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def in_ollama(gguf: Path) -> None:
    store = Path.home() / ".ollama" / "models"
    (store / "blobs").mkdir(parents=True)
    shutil.copy(gguf, store / "blobs" / f"sha256-{DIGEST}")
    manifest = store / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{DIGEST}"}
    manifest.write_text(json.dumps({"layers": [layer]}))


def line_of(pilot: Pilot[None], text: str) -> str:
    """The line of the screen with a text."""
    return next((line for line in screen_text(pilot.app).splitlines() if text in line), "")


async def read_all(pilot: Pilot[None]) -> None:
    """Wait until every model has been read."""
    await wait_for(pilot, lambda: "on this machine" in screen_text(pilot.app))
    await wait_for(pilot, lambda: "reading …" not in screen_text(pilot.app))


@asynccontextmanager
async def choosing(
    document: ConfigDocument | None = None, *, size: tuple[int, int] = (80, 24)
) -> AsyncIterator[tuple[Pilot[None], ScreenApp]]:
    """The app, once every model has been read."""
    app = ScreenApp(ModelScreen(ModelCatalog(), document or ConfigDocument()))
    async with app.run_test(size=size) as pilot:
        await read_all(pilot)
        yield pilot, app


async def agree(pilot: Pilot[None]) -> None:
    """Agree to ask the hub, and then to the download."""
    await press(pilot, "y", until="download it")
    await pilot.press("y")


async def type_text(pilot: Pilot[None], text: str) -> None:
    line = pilot.app.screen.query_one(SafeInput)
    line.value = text
    line.cursor_position = len(text)
    await pilot.pause()


async def test_models_of_every_kind_are_listed_with_their_memory(work: Path, tiny_model_dir: Path, gguf: Path) -> None:
    copy_model(tiny_model_dir, paths.models_dir() / "mine")
    cached("org/cached", tiny_model_dir)
    broken = cached("org/torn", tiny_model_dir, "b" * 40)
    os.unlink(os.path.realpath(broken / "model.safetensors"))
    shutil.copy(gguf, work / "here.gguf")
    copy_model(tiny_model_dir, Path.home() / "models" / "stowed")
    packed = copy_model(tiny_model_dir, work / "packed")
    edit_json(packed / "config.json", quantization_config={"quant_method": "hqq", "nbits": 4})
    in_ollama(gguf)
    async with choosing(size=(80, 30)) as (pilot, _):
        for name in ("mine", "cached", "here.gguf", "tiny:latest"):
            assert "fits, " in line_of(pilot, name), name
        assert "! incomplete" in line_of(pilot, "torn")
        assert "✗ cannot be used" in line_of(pilot, "packed")
        assert "first run" in line_of(pilot, STARTER_NAME)
        assert "prepared" in line_of(pilot, "mine")
        assert "HF cache" in line_of(pilot, "cached")
        assert "chat" in line_of(pilot, "here.gguf")
        assert "Ollama" in line_of(pilot, "tiny:latest")
        assert "~/models" in line_of(pilot, "stowed")
        assert "▸ ●" in line_of(pilot, STARTER_NAME[:12])
        await press(pilot, *"packed", until="saved quantized (HQQ), which cannot be")


async def test_the_present_model_is_under_the_cursor_and_enter_keeps_it(work: Path, tiny_model_dir: Path) -> None:
    model = copy_model(tiny_model_dir, work / "own")
    copy_model(tiny_model_dir, work / "another")
    async with choosing(ConfigDocument('model.base = "own"\n', work / "a.toml")) as (pilot, app):
        assert "▸ ● own" in screen_text(app)
        await press(pilot, "enter", until=lambda: app.answers)
    assert app.answers == [model]


async def test_typing_finds_and_esc_chooses_nothing(work: Path, tiny_model_dir: Path) -> None:
    for name in ("alpha", "beta", "betamax"):
        copy_model(tiny_model_dir, paths.models_dir() / name)
    async with choosing() as (pilot, app):
        await press(pilot, "B", "e", "t", until=lambda: "alpha" not in screen_text(app))
        assert "▸   beta " in screen_text(app)
        await press(pilot, "down", until="▸   betamax")
        await press(pilot, "up", "enter", until=lambda: app.answers)
        app.push_screen(ModelScreen(ModelCatalog(), ConfigDocument()), app.answers.append)
        await wait_for(pilot, lambda: isinstance(app.screen, ModelScreen))
        await press(pilot, "escape", until=lambda: len(app.answers) == 2)
    assert app.answers == ["beta", None]


async def test_tab_completes_names_and_paths(work: Path, tiny_model_dir: Path) -> None:
    for name in ("smart-one", "smart-two"):
        copy_model(tiny_model_dir, paths.models_dir() / name)
    copy_model(tiny_model_dir, work / "deep" / "down" / "below" / "own")
    async with choosing() as (pilot, app):
        line = app.screen.query_one(SafeInput)
        await pilot.press("s", "m", "a", "tab")
        assert line.value == "smart-"
        await pilot.press("t", "tab")
        assert line.value == "smart-two"
        await type_text(pilot, "./de")
        for _ in range(4):
            await pilot.press("tab")
        assert line.value == "./deep/down/below/own/"
        # A typed path is a model as well as any, wherever it is.
        await wait_for(pilot, lambda: "fits, " in line_of(pilot, "▸"))
        await press(pilot, "enter", until=lambda: app.answers)
    assert app.answers == [work / "deep" / "down" / "below" / "own"]


async def test_a_text_that_names_nothing_can_be_taken_and_says_what_was_meant(work: Path, tiny_model_dir: Path) -> None:
    prepared = copy_model(tiny_model_dir, paths.models_dir() / "mine")
    (work / "mine").mkdir()
    async with choosing(size=(120, 30)) as (pilot, app):
        await press(pilot, *"smolxyz", until=f"no such model is here; did you mean {STARTER_NAME}?")
        await press(pilot, "enter", until=lambda: app.answers)
        # A name that means another directory here is chosen by its path.
        app.push_screen(ModelScreen(ModelCatalog(), ConfigDocument()), app.answers.append)
        await wait_for(pilot, lambda: isinstance(app.screen, ModelScreen))
        await read_all(pilot)
        await press(pilot, *"mine", "enter", until=lambda: len(app.answers) == 2)
    assert app.answers == ["smolxyz", prepared]


async def test_what_cannot_be_searched_is_reported(work: Path, monkeypatch: pytest.MonkeyPatch, gguf: Path) -> None:
    in_ollama(gguf)
    monkeypatch.setattr("core.models.places.os.access", lambda _path, _mode: False)
    async with choosing(size=(120, 30)) as (pilot, _):
        assert "1 model of Ollama in ~/.ollama/models cannot be read by this user." in screen_text(pilot.app)


# From a hub.


def files_of(model: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}


async def test_a_model_of_a_hub_is_fetched_once_its_size_is_shown(
    work: Path, hub: FakeHub, tiny_model_dir: Path
) -> None:
    others = {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit"}
    hub.models["org/tiny"] = Repository({**files_of(tiny_model_dir), **others}, large={"model.safetensors"})
    async with choosing(size=(100, 30)) as (pilot, app):
        await press(pilot, *"org/tiny", until=lambda: "fetch from the hub" in line_of(pilot, "▸"))
        await press(pilot, "enter", until=lambda: isinstance(app.screen, JobScreen))
        # The key that chose it agrees to nothing.
        await press(pilot, "enter")
        assert hub.asked == []
        await press(pilot, "y", until=("hf://org/tiny is ", "Configuration, tokenizer and safetensors are taken."))
        assert hub.files_asked() == []
        await press(pilot, "y", until=lambda: app.answers)
    assert app.answers == ["org/tiny"]
    assert find_model("org/tiny") == paths.models_dir() / "org--tiny"
    # The screen downloads the same files as the command.
    assert set(hub.files_asked()) == set(files_of(tiny_model_dir))


async def test_what_the_configuration_names_is_offered_first(work: Path, hub: FakeHub, tiny_model_dir: Path) -> None:
    hub.models["org/tiny"] = Repository(files_of(tiny_model_dir), revisions=("main", "v1"))
    copy_model(tiny_model_dir, paths.models_dir() / "mine")
    async with choosing(ConfigDocument('model.base = "hf://org/tiny@v1"\n'), size=(100, 30)) as (pilot, app):
        await wait_for(pilot, lambda: "fetch from the hub" in line_of(pilot, "▸"))
        await press(pilot, "enter", until="hf://org/tiny@v1 is not on this machine.")
        await agree(pilot)
        await wait_for(pilot, lambda: app.answers)
    assert app.answers == ["hf://org/tiny@v1"]


@pytest.mark.long
async def test_an_incomplete_copy_is_fetched_whole(work: Path, hub: FakeHub, tiny_model_dir: Path) -> None:
    hub.models["org/tiny"] = Repository(files_of(tiny_model_dir))
    snapshot = cached("org/tiny", tiny_model_dir)
    os.unlink(os.path.realpath(snapshot / "model.safetensors"))
    async with choosing(size=(100, 30)) as (pilot, app):
        await press(pilot, *"tiny", until=lambda: "! incomplete" in line_of(pilot, "▸"))
        assert "Enter fetches it from the hub." in screen_text(app)
        await press(pilot, "enter", until="is not whole on this machine")
        await agree(pilot)
        await wait_for(pilot, lambda: app.answers)
    assert app.answers == ["org/tiny"]
    assert find_model("org/tiny") == paths.models_dir() / "org--tiny"


async def test_without_a_network_there_is_one_sentence(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with choosing() as (pilot, app):
        for said in ("HF_HUB_OFFLINE is set, so nothing is fetched.", "127.0.0.1:9 cannot be reached"):
            await type_text(pilot, "org/none")
            await press(pilot, "enter", until=lambda: isinstance(app.screen, JobScreen))
            await pilot.press("y")
            await wait_for(pilot, lambda said=said: said in screen_text(app))  # type: ignore[misc]
            await press(pilot, "escape", until=lambda: isinstance(app.screen, ModelScreen))
            monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
            monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert app.answers == []


async def test_a_long_reason_is_reported_whole(
    work: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        copy_model(tiny_model_dir, work / f"model-{number:02}")
    reason = " ".join(f"reason{number}" for number in range(36))

    def read(_catalog: ModelCatalog, model: FoundModel) -> ModelFacts:
        return ModelFacts(flaw=reason, hint="Take another.") if model.name == "model-23" else ModelFacts()

    monkeypatch.setattr(ModelCatalog, "read", read)
    async with choosing(ConfigDocument('model.base = "model-22"\n', work / "a.toml"), size=(60, 20)) as (pilot, app):
        models = app.screen.query_one(ChoiceList)
        before = models.size.height
        # The last model in the list, whose reason takes lines from the list that it is at the end of.
        await pilot.press(*["down"] * 30)
        for size in ((60, 20), (200, 50), (80, 24)):
            await pilot.resize_terminal(*size)
            await shown(pilot, "reason35", "Take another.")
            await wait_for(pilot, lambda: "▸" in line_of(pilot, "model-23 "))
            assert all(f"reason{number}" in screen_text(app) for number in range(36))
        await pilot.resize_terminal(60, 20)
        await wait_for(pilot, lambda: models.size.height < before)
        await press(pilot, "up", until=lambda: models.size.height == before)
        assert "▸" in line_of(pilot, "model-22 ")
