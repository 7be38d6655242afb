from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import paths
from core.chat.engine import ADAPTER_LIMIT, AdapterSpec, ChatEngine, ModelSpec
from core.chat.request import ChatRequest
from core.chat.session import Answer, EngineSession, GenerationSettings, LiveSession, Token, adapter_spec, open_session
from core.config.schema import Config, DataSection, MethodSection, ModelSection, TemplateSection
from core.errors import UserError
from core.runs.catalog.trained import TrainedFile, find_trained
from core.runs.record.state import RunState, hostname, own_identity
from core.runs.record.store import Run, create_run
from core.worker.process.control import Command, Controls, ControlServer
from tests.cases import cases

ASK = [{"role": "user", "content": "Count."}]
FAKE = str(Path(__file__).with_name("fake_engine.py"))


def make_run(state: str, base: str = "/models/base", keep_16bit: list[str] | None = None, **sections: Any) -> Run:
    model, data = ModelSection(base=base, keep_16bit=keep_16bit), DataSection(train="/data/rows.jsonl")
    run = create_run(Config(model=model, data=data, **sections), "tickets")
    pid, identity = own_identity()
    recorded = RunState(state=state, pid=pid, pid_started=identity, host=hostname(), updated=time.time())
    recorded.write(run.state_path)
    return run


def finished_run(**given: Any) -> Run:
    """A run with an adapter."""
    run = make_run("finished", **given)
    add_adapter(run.adapter_path)
    return run


def add_adapter(directory: Path, content: bytes = b"weights") -> None:
    directory.mkdir(parents=True)
    (directory / "adapter_model.safetensors").write_bytes(content)
    (directory / "adapter_config.json").write_text("{}")


def add_checkpoint(run: Run, step: int) -> Path:
    path = run.checkpoints_path / f"step-{step:08d}"
    add_adapter(path / "adapter")
    files = {
        str(file.relative_to(path)): {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in (path / "adapter").iterdir()
    }
    files["optimizer.pt"] = {"bytes": 10, "sha256": "0"}  # talking needs no optimizer
    (path / "manifest.json").write_text(json.dumps({"version": 1, "step": step, "files": files}))
    return path


def spec_of(target: Run | Path | str) -> ModelSpec:
    session = open_session(target)
    assert isinstance(session, EngineSession)
    return session.spec


def test_a_finished_run_answers_with_its_adapter() -> None:
    run = finished_run()
    add_checkpoint(run, 40)
    spec = spec_of(run)
    assert (spec.base, spec.adapter) == ("/models/base", str(run.adapter_path))
    assert (spec.method, spec.source_name, spec.template) == ("qlora", "adapter", None)
    session = open_session(run)
    assert (session.description, session.has_tuned) == (run.id, True)
    (run.adapter_path / "chat_template.jinja").write_text("{{ messages }}")
    assert spec_of(run).template == str(run.adapter_path / "chat_template.jinja")


def test_a_stopped_run_answers_as_its_newest_whole_checkpoint() -> None:
    run = make_run("stopped", template=TemplateSection(name="chatml"))
    for step in (20, 100, 120, 140, 160):
        add_checkpoint(run, step)
    name = "adapter/adapter_model.safetensors"
    (run.checkpoints_path / "step-00000160" / name).write_bytes(b"flipped")  # same size, other bytes
    (run.checkpoints_path / "step-00000140" / name).write_bytes(b"cut")
    (run.checkpoints_path / "step-00000120" / "manifest.json").unlink()
    spec = spec_of(run)
    assert spec.adapter == str(run.checkpoints_path / "step-00000100" / "adapter")
    assert (spec.source_name, spec.template) == ("step-100", "chatml")
    assert open_session(run).description == f"{run.id}, step-100"


def test_the_base_that_was_trained_on_is_known_from_the_checkpoint() -> None:
    run = finished_run()
    assert spec_of(run).base_sha256 is None
    for step, name in ((20, "older"), (40, "newer")):
        path = add_checkpoint(run, step) / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "base_sha256": name}))
    assert spec_of(run).base_sha256 == "newer"
    path.write_text("{")
    assert spec_of(run).base_sha256 == "older"


@cases("manifest", ["{", "[]", '{"files": {}}', '{"files": {"adapter/adapter_config.json": 3}}'])
def test_a_run_with_nothing_to_talk_to_says_so(manifest: str) -> None:
    run = make_run("failed")
    (add_checkpoint(run, 20) / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match="neither an adapter nor a whole checkpoint") as caught:
        open_session(run)
    assert caught.value.hint == f"To have one, start it again with 'localtune-tui train {run.config_path}'."


def test_targets_are_distinguished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished_run()
    for name in (run.id, "latest", "tickets", str(run.path)):
        assert spec_of(name).adapter == str(run.adapter_path)
    assert spec_of(run.path).adapter == str(run.adapter_path)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    assert spec_of("llama") == spec_of(Path("llama")) == ModelSpec(base=str(tmp_path / "llama"))
    session = open_session("smollm2-135m-instruct")
    assert (session.has_tuned, session.description) == (False, "smollm2-135m-instruct")
    assert spec_of("org/model").base == "org/model"
    prepared = paths.make_private_dir(paths.models_dir() / "mine")
    (prepared / "config.json").write_text("{}")
    assert spec_of("mine").base == "mine"
    with pytest.raises(UserError, match="no run called elsewhere"):
        open_session("elsewhere")

    add_checkpoint(run, 20)
    for reference in (f"{run.id}@20", f"{run.path}@20"):
        assert spec_of(reference).source_name == "step-20"
    with pytest.raises(UserError, match="has no checkpoint of step 21") as caught:
        open_session(f"{run.id}@21")
    assert caught.value.hint == "It has those of 20."


def engine_session(mode: str) -> EngineSession:
    return EngineSession(ModelSpec("x", adapter="y"), "some run", ChatEngine([sys.executable, FAKE, mode]))


def test_an_engine_session_loads_once_and_answers_safely() -> None:
    session = engine_session("answer")
    told: list[str] = []
    try:
        session.prepare(lambda detail, _done, _total: told.append(detail))
        session.prepare(lambda detail, _done, _total: told.append(detail))
        assert told == ["loading\ufffd"]
        assert list(session.generate(ASK, "tuned", GenerationSettings())) == [
            Token("One"),
            Token(" two\ufffd[2J"),
            Answer("One two\ufffd[2J", 2, 0.5, 4.0, "adapter", "stop"),
        ]
    finally:
        session.close()


def test_a_conversation_that_makes_no_sense_starts_no_engine() -> None:
    session = engine_session("answer")
    with pytest.raises(UserError, match="at least one message"):
        list(session.generate([], "base", GenerationSettings()))
    assert session._engine.pid is None


class Worker:
    """The control socket of a run, and a thread that answers as the training thread would."""

    def __init__(self, run: Run) -> None:
        self.controls = Controls()
        self.cancelled = threading.Event()
        self.asked: list[dict[str, Any]] = []
        self._server = ControlServer(run.socket_path, self.controls, lambda: {"state": "training"})
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._over.is_set():
            command = self.controls.wait(0.05)
            if command is not None:
                self._answer(command)

    def _answer(self, command: Command) -> None:
        self.asked.append(command.request.args)
        command.token("One\x1b[31m", "step-4")
        if command.request.args["max_new_tokens"] > 100:
            if command.cancelled.wait(60):
                self.cancelled.set()
            return
        command.answer(text="One\x1b[31m", tokens=1, first_token_seconds=0.1, tokens_per_second=9.0, source="step-4")

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._server.close()


@pytest.fixture
def live() -> Iterator[tuple[LiveSession, Worker]]:
    run = make_run("training")
    worker = Worker(run)
    session = open_session(run)
    assert isinstance(session, LiveSession)
    yield session, worker
    session.close()
    worker.close()


def test_a_live_run_answers_from_its_worker(live: tuple[LiveSession, Worker]) -> None:
    session, worker = live
    session.prepare(lambda _detail, _done, _total: None)
    settings = GenerationSettings(50, 0.5, 0.9)
    found = list(session.generate(ASK, "base", settings))
    assert found == [Token("One\ufffd[31m"), Answer("One\ufffd[31m", 1, 0.1, 9.0, "step-4", "stop")]
    (asked,) = worker.asked
    told = {"messages": ASK, "source": "base", "max_new_tokens": 50, "temperature": 0.5, "top_p": 0.9}
    assert {name: asked[name] for name in told} == told
    # All settings are sent: the configuration would fill in missing ones.
    assert ChatRequest.from_args(asked).settings == settings


def test_cancelling_reaches_the_worker_and_keeps_what_was_said(live: tuple[LiveSession, Worker]) -> None:
    session, worker = live
    answers = session.generate(ASK, "tuned", GenerationSettings(200))
    assert next(answers) == Token("One\ufffd[31m")
    session.cancel()
    (answer,) = answers
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish, answer.source) == ("One\ufffd[31m", "cancelled", "step-4")
    assert answer.first_token_seconds > 0, "what was measured until then"
    assert answer.tokens_per_second == 0, "one token has no speed"
    assert worker.cancelled.wait(60)
    # The session goes on.
    assert isinstance(list(session.generate(ASK, "tuned", GenerationSettings(50)))[-1], Answer)

    # Leaving an answer cancels it too.
    worker.cancelled.clear()
    answers = session.generate(ASK, "tuned", GenerationSettings(200))
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert worker.cancelled.wait(60)


def test_a_run_that_has_ended_meanwhile_says_so() -> None:
    run = make_run("training")
    session = open_session(run)
    RunState(state="finished", updated=time.time()).write(run.state_path)
    with pytest.raises(UserError, match="is finished"):
        list(session.generate(ASK, "tuned", GenerationSettings()))
    session.close()


@pytest.fixture
def on_base(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Run, EngineSession, list[AdapterSpec | str]]]:
    """A run with an adapter, a session on it, and the adapters that are added, or removed by their names."""
    run = finished_run()
    session = open_session(run)
    assert isinstance(session, EngineSession)
    session._engine = ChatEngine([sys.executable, FAKE, "answer"])
    told: list[AdapterSpec | str] = []
    monkeypatch.setattr(session._engine, "add", told.append)
    monkeypatch.setattr(session._engine, "remove", told.append)
    yield run, session, told
    session.close()


def test_another_adapter_is_loaded_onto_the_base_once(on_base: tuple[Run, EngineSession, list[Any]]) -> None:
    run, session, told = on_base
    path = add_checkpoint(run, 20) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_sha256": "sha256:1"}))
    source = f"{run.id}@20"
    for _ in range(2):
        assert isinstance(list(session.generate(ASK, source, GenerationSettings()))[-1], Answer)
    assert told == [AdapterSpec(source, str(path.with_name("adapter")), source, None, "sha256:1")]


def test_the_adapter_asked_longest_ago_makes_room_for_another(on_base: tuple[Run, EngineSession, list[Any]]) -> None:
    run, session, told = on_base
    sources = [f"{run.id}@{step}" for step in range(1, ADAPTER_LIMIT + 1)]
    for step in range(1, ADAPTER_LIMIT + 1):
        add_checkpoint(run, step)
    # The result of the run is an adapter as well. The first one is asked again before there are too many.
    for source in (*sources[:-1], sources[0], sources[-1]):
        assert isinstance(list(session.generate(ASK, source, GenerationSettings()))[-1], Answer)
    names = [each if isinstance(each, str) else f"+{each.name}" for each in told]
    assert names == [*(f"+{source}" for source in sources[:-1]), sources[1], f"+{sources[-1]}"]


def test_who_shares_no_base_is_refused_in_a_sentence() -> None:
    base = ModelSpec("/models/base", method="lora")
    run = finished_run()
    with pytest.raises(UserError, match="was trained on its base in 4 bits, and it is loaded in 16 bits") as caught:
        adapter_spec(find_trained(run), run.id, base)
    assert f"localtune-tui chat {run.id}" in caught.value.hint
    kept = finished_run(keep_16bit=["layers.0.*"])
    assert spec_of(kept).keep_16bit == ("layers.0.*",)
    with pytest.raises(UserError, match=r"other layers in 16 bit \(model\.keep_16bit\)"):
        adapter_spec(find_trained(kept), kept.id, ModelSpec("/models/base", method="qlora"))
    assert adapter_spec(find_trained(kept), kept.id, spec_of(kept)).name == kept.id
    for_file = finished_run(method=MethodSection(name="lora", train_for="q4_0"))
    with pytest.raises(UserError, match="with the weights of a Q4_0 file, and shares none with others"):
        adapter_spec(find_trained(for_file), for_file.id, base)
    assert spec_of(for_file).file == TrainedFile("Q4_0", None)
    whole = make_run("finished", method=MethodSection(name="full"))
    (whole.model_path).mkdir()
    (whole.model_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="trains the weights themselves"):
        adapter_spec(find_trained(whole), whole.id, base)


def test_a_checkpoint_beside_a_live_run_answers_from_an_engine(
    live: tuple[LiveSession, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    session, worker = live
    run = finished_run()
    asked: list[str] = []

    def stream(self: EngineSession, request: ChatRequest) -> Iterator[dict[str, str]]:
        asked.append(request.source)
        # The base is loaded alone, and the checkpoint is an adapter among others on it.
        assert self.spec.adapter is None
        yield {"token": "from the engine"}

    monkeypatch.setattr(EngineSession, "stream", stream)
    for source in (run.id, f"{run.id}@9"):
        assert list(session.generate(ASK, source, GenerationSettings(5))) == [Token("from the engine")]
    assert asked == [run.id, f"{run.id}@9"]
    assert worker.asked == []
