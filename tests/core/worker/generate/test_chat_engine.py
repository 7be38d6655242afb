from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import pytest

from core.chat.engine import AdapterSpec, ChatEngine, ModelSpec
from core.chat.request import ChatRequest, GenerationSettings
from core.errors import UserError
from core.worker.generate import chat_engine
from core.worker.generate.stops import whole_pieces
from tests.progress import quiet
from tests.tiny_model import write_tiny_adapter
from tests.waiting import wait_for

ASK = [{"role": "user", "content": "the ticket"}]
LONG = ChatRequest(ASK, settings=GenerationSettings(450))


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """An adapter that changes the tiny model's answers."""
    return write_tiny_adapter(tiny_model_dir, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, adapter_dir: Path) -> Iterator[ChatEngine]:
    """A real engine with the tiny model and its adapter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(tmp_path_factory.mktemp("engine-home")))
        found = ChatEngine()
        found.load(spec(tiny_model_dir, adapter_dir), quiet)
    yield found
    found.close()


def spec(base: Path, adapter: Path | None, **more: Any) -> ModelSpec:
    return ModelSpec(
        str(base), str(adapter) if adapter else None, precision="fp32", device="cpu", source_name="step-7", **more
    )


def test_an_answer_can_be_cancelled_in_the_middle(engine: ChatEngine) -> None:
    answers = engine.generate(LONG)
    next(answers)
    assert engine.ping()
    engine.cancel()
    last = list(answers)[-1]
    assert last["finish"] == "cancelled"
    assert 0 < last["tokens"] < 400


def test_neither_a_refusal_nor_an_interrupt_of_the_terminal_ends_it(engine: ChatEngine) -> None:
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGINT)
    with pytest.raises(UserError, match="reads at most 512"):
        list(engine.generate(ChatRequest([{"role": "user", "content": "ticket " * 600}])))
    assert list(engine.generate(ChatRequest(ASK, settings=GenerationSettings(3))))[-1]["tokens"] == 3


def test_four_bit_weights_and_a_template_of_ones_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('the template was used') }}")
    with ChatEngine() as engine:
        facts = engine.load(ModelSpec(str(tiny_model_dir), method="qlora", device="cpu"), quiet)
        assert facts["device"] == "cpu"
        answer = list(engine.generate(ChatRequest(ASK, "tuned", GenerationSettings(5))))[-1]
        # Without an adapter there is only the base, whatever was asked for.
        assert answer["source"] == "base"
        assert answer["tokens"] == 5
        engine.load(ModelSpec(str(tiny_model_dir), device="cpu", template="mistral"), quiet)
        named = list(engine.generate(ChatRequest(ASK, settings=GenerationSettings(5))))[-1]
        assert named["prompt_tokens"] != answer["prompt_tokens"]
        engine.load(ModelSpec(str(tiny_model_dir), device="cpu", template=str(template)), quiet)
        with pytest.raises(UserError, match="the template was used"):
            list(engine.generate(ChatRequest(ASK)))
        with pytest.raises(UserError, match="is not on this machine"):
            engine.load(ModelSpec("no-such-model"), quiet)
        with pytest.raises(UserError, match="No model is loaded"):
            list(engine.generate(ChatRequest(ASK)))


NOISY = """
import os
from core.worker.generate import chat_engine
from core.worker.process import environment
def noise():
    print('a library prints')
    os.write(1, b'and so does C code\\n')
    try:
        input('and one asks')
    except EOFError:
        print('and gets no answer')
environment.prepare = noise
chat_engine.main()
"""


def test_what_libraries_print_or_ask_does_not_reach_the_protocol() -> None:
    ping = b'{"id": "1", "command": "ping"}\n'
    done = subprocess.run([sys.executable, "-c", NOISY], input=ping, capture_output=True, check=True)
    assert json.loads(done.stdout)["ok"] is True
    assert all(said in done.stderr for said in (b"a library prints", b"and so does C code", b"and gets no answer"))


def test_it_ends_with_its_input_in_the_middle_of_an_answer(tiny_model_dir: Path) -> None:
    engine = ChatEngine()
    engine.load(spec(tiny_model_dir, None), quiet)
    answers = engine.generate(LONG)
    next(answers)
    assert engine._helper is not None
    process = engine._helper.process
    engine._helper.stdin.close()
    wait_for(lambda: process.poll() == 0, 10, "the engine to end")
    engine.close()


def test_the_engine_does_not_import_torch_before_a_model_is_asked_for(tmp_path: Path) -> None:
    heavy = "[name for name in ('torch', 'transformers') if name in sys.modules]"
    program = f"import core.worker.generate.chat_engine, sys; print({heavy})"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """Another adapter on the same base, of another rank."""
    return write_tiny_adapter(tiny_model_dir, tmp_path_factory.mktemp("other"), seed=8, rank=2, std=0.5)


def said(engine: ChatEngine, source: str, tokens: int = 16) -> tuple[str, str]:
    answer = list(engine.generate(ChatRequest(ASK, source, GenerationSettings(tokens))))[-1]
    return answer["text"], answer["source"]


def test_several_adapters_answer_from_one_base(
    tiny_model_dir: Path, adapter_dir: Path, other_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALTUNE_HOME", str(tmp_path))
    alone = {}
    with ChatEngine() as engine:
        for name, directory in (("tuned", adapter_dir), ("other@3", other_dir)):
            engine.load(spec(tiny_model_dir, directory), quiet)
            alone[name] = said(engine, "tuned")[0]
            alone["base"] = said(engine, "base")[0]
        engine.load(spec(tiny_model_dir, adapter_dir), quiet)
        assert said(engine, "tuned")[0] == alone["tuned"]
        engine.add(AdapterSpec("other@3", str(other_dir), "step-3"))
        for source, name in (("base", "base"), ("other@3", "step-3"), ("tuned", "step-7"), ("other@3", "step-3")):
            assert said(engine, source) == (alone[source], name)
        assert len(set(alone.values())) == 3
        engine.remove("other@3")
        with pytest.raises(UserError, match="no source other@3"):
            said(engine, "other@3")
        assert said(engine, "tuned")[0] == alone["tuned"]
        # A base alone takes adapters as well.
        engine.load(ModelSpec(str(tiny_model_dir), precision="fp32", device="cpu"), quiet)
        engine.add(AdapterSpec("other@3", str(other_dir), "step-3"))
        assert said(engine, "other@3") == (alone["other@3"], "step-3")
        assert said(engine, "base")[0] == said(engine, "tuned")[0] == alone["base"]


def test_an_adapter_of_another_base_is_refused_and_the_others_answer_on(
    engine: ChatEngine, adapter_dir: Path, tmp_path: Path
) -> None:
    before = said(engine, "tuned")
    with pytest.raises(UserError, match="other@9 was trained on another base model"):
        engine.add(AdapterSpec("other@9", str(adapter_dir), "step-9", base_sha256="sha256:" + "0" * 64))
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in adapter_dir.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    config = json.loads((broken / "adapter_config.json").read_text())
    config["target_modules"] = ["q_proj"]
    (broken / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has factors that it has no place for"):
        engine.add(AdapterSpec("broken", str(broken), "x"))
    assert said(engine, "tuned") == before


def test_a_turn_reads_only_what_is_new_and_says_the_same(engine: ChatEngine, adapter_dir: Path) -> None:
    def ask(messages: list[dict[str, str]], source: str = "tuned") -> dict[str, Any]:
        return list(engine.generate(ChatRequest(messages, source, GenerationSettings(12))))[-1]

    question = [{"role": "user", "content": "the ticket " * 90}]
    # A question to the base unfolds the adapter for good, which drops the cache.
    assert ask(question, "base")["source"] == "base"
    first = ask(question)
    longer = [*question, {"role": "assistant", "content": first["text"]}, {"role": "user", "content": "and now"}]
    second = ask(longer)
    assert second["reused_tokens"] == whole_pieces(first["prompt_tokens"]) > 0
    # Another source has keys and values of its own.
    assert ask(longer, "base")["text"] != second["text"]
    again = ask(longer)
    assert again["reused_tokens"] == whole_pieces(again["prompt_tokens"])
    assert again["text"] == second["text"]
    other = ask([{"role": "user", "content": "something else"}])
    assert other["reused_tokens"] == 0
    assert ask(longer)["text"] == second["text"], "nothing of the other conversation is left in it"
    engine.add(AdapterSpec("other@9", str(adapter_dir), "step-9"))
    anew = ask(longer)
    assert (anew["text"], anew["reused_tokens"]) == (second["text"], 0), "loading may repack weights in 4 bits"


def test_layers_that_the_run_kept_in_16_bit_are_loaded_so(tiny_model_dir: Path) -> None:
    args = {"method": "qlora", "precision": "fp32", "device": "cpu", "keep_16bit": ["layers.0.*"]}
    loaded, _ = chat_engine.load_trained(tiny_model_dir, args, lambda _: None)
    quantized = {name for name, module in loaded.model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    assert quantized
    assert not any(".layers.0." in name for name in quantized)
