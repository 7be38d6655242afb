from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from core import paths
from core.chat.candidates import find_candidates
from core.chat.engine import ChatEngine
from core.chat.exported import READER, find_exported
from core.chat.request import ChatRequest, GenerationSettings, QuestionError
from core.chat.session import Answer, EngineSession, open_session
from core.errors import UserError
from core.evaluation.evaluation import EvaluationRequest
from tests.core.export.test_result import make_result, write_result
from tests.core.export.tiny_gguf import write_tiny_gguf
from tests.core.export.trained_run import make_trained_run, merged_model, write_rows
from tests.llama_gguf import finish
from tests.progress import quiet
from tests.waiting import wait_for

pytest.importorskip("llama_cpp_py_sync")

ASK = [{"role": "user", "content": "the ticket"}]


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """The tiny model as a GGUF file, with nothing beside it."""
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", *merged_model(tiny_model_dir, None))


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, gguf_file: Path) -> Iterator[ChatEngine]:
    """The reader with the file loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(tmp_path_factory.mktemp("reader-home")))
        patch.setenv("OMP_NUM_THREADS", "1")
        engine = ChatEngine(READER, [str(gguf_file)])
        told: list[tuple[str, Any, Any]] = []
        engine.load(_spec(gguf_file), lambda *progress: told.append(progress))
        assert told[0][0] == "loading llama.cpp"
        assert told[-1] == ("loading the file", 100, 100)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def _spec(path: Path) -> Any:
    exported = find_exported(path, asked=True)
    assert exported is not None
    return exported.spec


def make_export(directory: Path, gguf_file: Path, run: str = "gone", quant: str | None = "F32") -> Path:
    write_result(make_result(directory, run=run, quant=quant))
    shutil.copy(gguf_file, directory / "tiny.gguf")
    return directory


def test_only_what_was_exported_is_read_by_llama_cpp(tmp_path: Path, gguf_file: Path, tiny_model_dir: Path) -> None:
    assert find_exported(gguf_file) is None
    assert find_exported(tiny_model_dir) is None
    assert find_exported(tmp_path / "nothing") is None
    directory = make_export(tmp_path / "export", gguf_file)
    for target in (directory, directory / "tiny.gguf"):
        exported = find_exported(target)
        assert exported is not None
        assert (exported.path, exported.spec.source_name) == (directory / "tiny.gguf", "tiny.gguf")
        session = open_session(target)
        assert isinstance(session, EngineSession)
        assert (session.description, session.has_tuned) == ("tiny.gguf", False)
        session.close()
    with pytest.raises(UserError, match="is no GGUF file"):
        open_session(tiny_model_dir, llama=True)
    (directory / "second.gguf").write_bytes(b"GGUF")
    assert find_exported(directory) is None


def test_a_prompt_set_is_put_to_an_exported_file(tmp_path: Path, gguf_file: Path, tiny_model_dir: Path) -> None:
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows"), eval_data=write_rows(tmp_path / "eval"))
    export = make_export(tmp_path / "export", gguf_file, run.id)
    evaluation = EvaluationRequest((str(export / "tiny.gguf"),), limit=2, max_new_tokens=4).prepare()
    assert evaluation.folder.parent == run.path
    record = evaluation.run()
    assert (record.state, list(record.answers)) == ("done", ["tiny.gguf"])
    assert all(answer is not None and answer.tokens > 0 for answer in record.answers["tiny.gguf"])


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "adapter.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    finish(writer)
    session = open_session(path, llama=True)
    with pytest.raises(UserError, match="is an adapter alone"):
        session.prepare(quiet)
    session.close()


def test_an_export_answers_beside_the_run_that_it_is_from(
    tmp_path: Path, gguf_file: Path, tiny_model_dir: Path
) -> None:
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"))
    paths.exports_dir().mkdir()
    directory = make_export(paths.exports_dir() / "tickets-gguf-f32", gguf_file, run.id)
    make_export(paths.exports_dir() / "another", gguf_file, "another")
    make_export(paths.exports_dir() / "tickets-adapter-gguf", gguf_file, run.id, quant=None)
    source = str(directory / "tiny.gguf")
    assert [each.source for each in find_candidates(run)] == ["tuned", "base", source]
    session = open_session(run)
    try:
        said = {name: list(session.generate(ASK, name, GenerationSettings(12)))[-1] for name in ("base", source)}
    finally:
        session.close()
    answers = [answer for answer in said.values() if isinstance(answer, Answer)]
    assert [answer.source for answer in answers] == ["base", "tiny.gguf"]
    assert answers[0].text == answers[1].text, "the file is of the base, and nothing is rounded in it"
    with pytest.raises(UserError, match="closed"):
        list(session.generate(ASK, source, GenerationSettings(1)))


def test_what_stays_of_a_conversation_changes_no_answer(reader: ChatEngine) -> None:
    settings = GenerationSettings(16)
    longer = [*ASK, {"role": "assistant", "content": "low"}, {"role": "user", "content": "and now?"}]
    first = list(reader.generate(ChatRequest(ASK, "base", settings)))[-1]
    second = list(reader.generate(ChatRequest(longer, "base", settings)))[-1]
    assert list(reader.generate(ChatRequest(ASK, "base", settings)))[-1]["text"] == first["text"]
    assert list(reader.generate(ChatRequest(longer, "base", settings)))[-1]["text"] == second["text"]
    assert second["prompt_tokens"] > first["prompt_tokens"]


def test_a_file_scores_as_transformers_scores(reader: ChatEngine, tiny_model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(tiny_model_dir)("the ticket " * 90)["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    log = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    asked = ChatRequest([], "base", GenerationSettings(1), prompt=ids, logprobs=1, echo=True)
    *told, end = reader.generate(asked)
    scores = [score for message in told for score in message.get("logprobs", ())]
    assert scores[0]["logprob"] is None
    wanted = log[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    # llama.cpp keeps keys and values in fp16.
    assert [score["logprob"] for score in scores[1 : len(ids)]] == pytest.approx(wanted, abs=0.02)
    assert (len(scores), end["prompt_tokens"]) == (len(ids) + 1, len(ids))
    *told, end = reader.generate(replace(asked, reads_only=True))
    assert ("".join(message.get("token", "") for message in told).split()[:2], end["tokens"]) == (["the", "ticket"], 0)
    with pytest.raises(QuestionError, match="the token 99999"):
        list(reader.generate(replace(asked, prompt=[99999])))


def test_all_settings_of_sampling_are_honored(reader: ChatEngine) -> None:
    def ask(**settings: Any) -> dict[str, Any]:
        return list(reader.generate(ChatRequest(ASK, "base", GenerationSettings(24, **settings))))[-1]

    likeliest = ask()["text"]
    assert ask(temperature=2.0, top_k=1)["text"] == likeliest
    assert ask(temperature=2.0, top_p=1e-6)["text"] == likeliest
    assert ask(temperature=2.0, min_p=0.999)["text"] == likeliest
    drawn = [ask(temperature=2.0, seed=seed)["text"] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({ask(temperature=1.5, top_p=0.9)["text"] for _ in range(4)}) > 1
    assert ask(repetition_penalty=5.0)["text"] != likeliest
    assert ask(frequency_penalty=2.0, presence_penalty=2.0)["text"] != likeliest
    assert ask(logit_bias={"70": 100.0})["text"] != likeliest
    end = likeliest[3:5]
    stopped = ask(stop=(end,))
    assert (stopped["text"], stopped["finish"]) == (likeliest[: likeliest.index(end)], "stop")
    assert stopped["context_limit"] == 512


def test_an_answer_can_be_cancelled(reader: ChatEngine) -> None:
    def cancelled() -> bool:
        # The likeliest tokens of this model go round in circles until there is no room.
        answers = reader.generate(ChatRequest(ASK, "base", GenerationSettings(450)))
        next(answers)
        reader.cancel()
        return bool(list(answers)[-1]["finish"] == "cancelled")

    wait_for(cancelled, 60, "a cancel that comes before the end of the answer")
    assert reader.ping()


def test_a_conversation_that_is_too_long_is_refused_and_the_reader_goes_on(reader: ChatEngine) -> None:
    long = [{"role": "user", "content": "the ticket " * 400}]
    with pytest.raises(QuestionError, match="the model reads at most 512") as refused:
        list(reader.generate(ChatRequest(long)))
    assert refused.value.code == "context_length_exceeded"
    assert list(reader.generate(ChatRequest(ASK, "base", GenerationSettings(4))))[-1]["tokens"] <= 4


def test_answers_with_escapes_are_harmless(tmp_path: Path, tiny_model_dir: Path) -> None:
    # Every token of several characters is an escape that clears the screen; bytes stay, so that prompts have tokens.
    path = write_tiny_gguf(
        tmp_path / "evil.gguf",
        *merged_model(tiny_model_dir, None),
        change_token=lambda number, text: text if number < 3 or len(text) == 1 else f"ě[2J{number}",
    )
    session = open_session(path, llama=True)
    with ChatEngine(READER, [str(path)]) as engine:
        engine.load(_spec(path), lambda *_: None)

        def has_escapes(settings: GenerationSettings) -> bool:
            return "\x1b[2J" in list(engine.generate(ChatRequest(ASK, "base", settings)))[-1]["text"]

        # Some answers end before their first escape.
        settings = next(filter(has_escapes, (GenerationSettings(100, 3.0, seed=seed) for seed in range(20))))
    try:
        *pieces, answer = session.generate(ASK, "base", settings)
    finally:
        session.close()
    assert pieces
    assert not any("\x1b" in piece.text for piece in (*pieces, answer))


def test_another_template_than_that_of_the_training_is_reported(
    tmp_path: Path, tiny_model_dir: Path, gguf_file: Path
) -> None:
    run = make_trained_run(tiny_model_dir, write_rows(tmp_path / "rows.jsonl"))
    directory = make_export(tmp_path / "export", gguf_file, run.id)
    told: list[str] = []
    for content, count in (("", 0), ("{{ messages[0]['content'] }}", 1)):
        if content:
            (run.adapter_path / "chat_template.jinja").write_text(content)
        session = open_session(directory)
        told.clear()
        session.prepare(lambda detail, _done, _total: told.append(detail))
        session.close()
        assert len([detail for detail in told if "other prompts than that of the training." in detail]) == count
