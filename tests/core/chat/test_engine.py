from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import paths
from core.chat import engine as engine_module
from core.chat.engine import LOGS_KEPT, ChatEngine, ModelSpec
from core.chat.request import ChatRequest
from core.errors import UserError
from tests.waiting import has_ended, wait_for

ASK = ChatRequest([{"role": "user", "content": "Count."}])
MakeEngine = Callable[[str], ChatEngine]
FAKE = str(Path(__file__).with_name("fake_engine.py"))


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    made: list[ChatEngine] = []

    def make(mode: str) -> ChatEngine:
        made.append(ChatEngine([sys.executable, FAKE, mode]))
        made[-1].start()
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def is_gone(engine: ChatEngine) -> bool:
    assert engine.pid is not None
    return has_ended(engine.pid)


def test_loading_passes_the_model_on_and_reports_progress_safely(make_engine: MakeEngine) -> None:
    told: list[tuple[str, int | None, int | None]] = []
    spec = ModelSpec(base="/models/some", adapter="/runs/a/adapter", method="qlora", source_name="step-3")
    answer = make_engine("answer").load(spec, lambda *progress: told.append(progress))
    assert told == [("loading\ufffd", 1, 2)]
    assert answer["base"] == "/models/some"
    assert answer["source_name"] == "step-3"


def test_an_answer_comes_in_pieces_and_messages_of_others_are_not_mixed_in(make_engine: MakeEngine) -> None:
    *pieces, answer = make_engine("garbage").generate(ASK)
    assert [piece["token"] for piece in pieces] == ["One", " two\x1b[2J"]
    assert answer["finish"] == "stop"


def test_a_refusal_is_the_engines_sentence(make_engine: MakeEngine) -> None:
    with pytest.raises(UserError) as caught:
        list(make_engine("refuse").generate(ASK))
    assert (caught.value.message, caught.value.hint) == ("Not today.", "Try tomorrow.")


def test_leaving_an_answer_cancels_it(make_engine: MakeEngine) -> None:
    engine = make_engine("endless")
    engine.cancel()  # there is nothing yet
    answers = engine.generate(ASK)
    assert next(answers)["token"] == "One"
    answers.close()
    assert engine.ping()
    # The engine ends with a complaint when nobody cancels; the next answer comes at once because it was cancelled.
    assert list(engine.generate(ASK))[-1]["finish"] == "cancelled"


def test_the_death_of_the_engine_names_its_last_words(make_engine: MakeEngine) -> None:
    engine = make_engine("die")
    with pytest.raises(UserError) as caught:
        list(engine.generate(ASK))
    assert "killed by signal 9: the last words\ufffd[31m" in caught.value.message
    assert str(engine.log_path) in caught.value.hint
    with pytest.raises(UserError, match="killed by signal 9"):
        engine.load(ModelSpec("x"), print)


def test_an_engine_that_says_nothing_is_given_up(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "TOKEN_SECONDS", 0.3)
    engine = make_engine("endless")
    with pytest.raises(UserError, match="has not answered"):
        list(engine.generate(ASK))
    assert engine.ping()


@pytest.mark.parametrize("leaves", [False, True])
def test_an_engine_that_does_not_hear_a_cancel_is_ended(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(engine_module, "CANCEL_SECONDS", 0.05)
    # The next process answers.
    (tmp_path / "first").touch()
    engine = make_engine(f"hung {tmp_path / 'first'}")
    answers = engine.generate(ASK)
    next(answers)
    assert not engine.is_hung
    if leaves:
        answers.close()
        wait_for(lambda: engine.is_hung and is_gone(engine), 10, "the engine to end")
    else:
        engine.cancel()
        with pytest.raises(UserError, match=r"did not end within 0.05 s of being cancelled") as caught:
            list(answers)
        assert "Ask again" in caught.value.hint
    assert (engine.is_hung, engine.is_open) == (True, False)
    with engine.anew() as other:
        other.start()
        assert list(other.generate(ASK))[-1]["finish"] == "stop"


def test_one_in_its_place_is_started_with_the_same_files(tmp_path: Path) -> None:
    model = str(tmp_path / "model.gguf")
    with ChatEngine([sys.executable, FAKE, "answer"], [model]) as engine, engine.anew() as other:
        other.start()
        command_line = Path(f"/proc/{other.pid}/cmdline")
        # It is empty for a moment, while the process becomes another program.
        wait_for(lambda: command_line.read_bytes().endswith(f"{model}\0".encode()), 10, "its command line")


@pytest.mark.parametrize("mode", ["endless", "refuse"])
def test_one_that_has_answered_is_left_alone(
    make_engine: MakeEngine, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "CANCEL_SECONDS", 0.2)
    engine = make_engine(mode)
    before = set(threading.enumerate())
    answers = engine.generate(ASK)
    with contextlib.suppress(UserError):
        next(answers)
        engine.cancel()
        list(answers)
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert not [timer for timer in timers if timer not in before and not timer.finished.is_set()]
    assert engine.ping()


@pytest.mark.parametrize("mode", ["answer", "deaf"])
def test_closing_ends_the_process(make_engine: MakeEngine, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "CLOSE_SECONDS", 0.3)
    engine = make_engine(mode)
    assert engine.ping()
    engine.close()
    assert is_gone(engine)
    with pytest.raises(UserError, match="closed"):
        engine.start()
    engine.close()


def test_closing_from_another_thread_ends_a_waiting_answer(make_engine: MakeEngine) -> None:
    engine = make_engine("endless")
    answers = engine.generate(ASK)
    next(answers), next(answers)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(UserError, match="closed"):
        next(answers)
    closing.join()


def test_logs_are_private_and_few(make_engine: MakeEngine) -> None:
    for _ in range(LOGS_KEPT + 2):
        engine = make_engine("answer")
        assert engine.ping()
        engine.close()
    logs = sorted((paths.home() / "logs").iterdir())
    assert len(logs) == LOGS_KEPT
    assert logs[-1] == engine.log_path
    assert logs[-1].stat().st_mode & 0o777 == 0o600


def test_a_program_that_cannot_be_started_is_reported() -> None:
    with pytest.raises(UserError, match="cannot be started"):
        ChatEngine(["/nonexistent/program"]).start()


def test_the_engine_ends_when_the_app_is_killed() -> None:
    program = (
        "import sys, time\n"
        "from core.chat.engine import ChatEngine\n"
        f"engine = ChatEngine([sys.executable, {FAKE!r}, 'answer'])\n"
        "engine.start()\n"
        "print(engine.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    app = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert app.stdout is not None
    pid = int(app.stdout.readline())
    app.kill()
    app.wait()
    app.stdout.close()
    wait_for(lambda: has_ended(pid), 10, "the engine to end with the app")
