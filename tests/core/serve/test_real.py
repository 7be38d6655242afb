"""Real answers over HTTP: two runs on one base, of a tiny model, as transformers and PEFT give them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import openai
import psutil
import pytest

from core.runs.record.store import Run
from tests.core.export.trained_run import make_trained_run
from tests.core.serve.conftest import RunningServer, end, start
from tests.forking import Forks
from tests.tiny_model import write_tiny_adapter
from tests.waiting import wait_for

QUESTION = [{"role": "user", "content": "the ticket"}]
SCHEMA = {
    "type": "object",
    "properties": {"area": {"enum": ["billing", "login"]}, "urgent": {"type": "boolean"}, "ref": {"type": "null"}},
    "required": ["area", "urgent", "ref"],
    "additionalProperties": False,
}


@dataclass
class Served:
    """A server of two runs on one base."""

    server: RunningServer
    model: Path
    runs: list[Run]

    def ask(self, model: str, messages: Any = QUESTION, **options: Any) -> Any:
        options = {"max_tokens": 12, **options}
        return self.server.client().chat.completions.create(model=model, messages=messages, **options)

    def expected(self, adapter: Path | None, messages: Any = QUESTION, tokens: int = 12) -> tuple[str, list[int]]:
        """transformers' answer, and the tokens of the prompt."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.model)
        network: Any = AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32)
        if adapter is not None:
            network = PeftModel.from_pretrained(network, str(adapter))
        if isinstance(messages, str):
            ids = tokenizer(messages)["input_ids"]
        else:
            ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
        out = network.generate(input_ids=torch.tensor([ids]), max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True), ids

    @property
    def engines(self) -> list[psutil.Process]:
        """Its helpers: each is the first process of its session."""
        children = psutil.Process(self.server.process.pid).children(recursive=True)
        return [child for child in children if os.getsid(child.pid) == child.pid]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, forks: Forks) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("serve")
    runs = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALTUNE_HOME", str(directory / "home"))
        for number in (1, 2):
            runs.append(make_trained_run(tiny_model_dir, directory / "rows.jsonl"))
            write_tiny_adapter(tiny_model_dir, runs[-1].adapter_path, seed=number)
    command = ["-m", "tui", "serve", *(run.id for run in runs), "--port", "0", "--json"]
    server = start(command, popen=forks.popen, LOCALTUNE_HOME=str(directory / "home"))
    yield Served(server, tiny_model_dir, runs)
    end(server)


def test_each_run_and_the_base_answer_as_transformers_does(served: Served) -> None:
    first, second = served.runs
    base = served.model.name
    assert served.server.models == [first.id, base, second.id]
    answers = set()
    for name, adapter, said in (
        (first.id, first.adapter_path, "adapter"),
        (second.id, second.adapter_path, second.id),
        (base, None, "base"),
    ):
        wanted, ids = served.expected(adapter)
        found = served.ask(name)
        assert (found.choices[0].message.content, found.usage.prompt_tokens) == (wanted, len(ids))
        assert (found.usage.completion_tokens, found.choices[0].finish_reason) == (12, "length")
        assert found.system_fingerprint == said
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in served.ask(name, stream=True))
        assert streamed == wanted
        answers.add(wanted)
    assert len(answers) == 3
    assert len(served.engines) == 1, "the base is loaded once"


def test_a_text_is_gone_on_with(served: Served) -> None:
    wanted, ids = served.expected(None, "the ticket area")
    found = served.server.client().completions.create(
        model=served.model.name, prompt="the ticket area", max_tokens=12, temperature=0
    )
    assert (found.choices[0].text, found.usage.prompt_tokens) == (wanted, len(ids))


def test_prompts_are_scored_as_transformers_scores_them(served: Served) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(served.model)
    network: Any = AutoModelForCausalLM.from_pretrained(served.model, dtype=torch.float32).requires_grad_(False)
    client = served.server.client()
    texts = ["the ticket area", "the ticket " * 90]
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    asked = {"model": served.model.name, "echo": True, "logprobs": 3, "temperature": 0}
    by_ids = client.completions.create(prompt=prompts, max_tokens=1, **asked)
    alone = client.completions.create(prompt=texts, max_tokens=0, **asked)
    for choice, read, ids, text in zip(by_ids.choices, alone.choices, prompts, texts, strict=True):
        log = network(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        wanted = log[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
        found = choice.logprobs
        assert [found.token_logprobs[0], found.top_logprobs[0]] == [None, None]
        assert found.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-4)
        assert found.token_logprobs[-1] == pytest.approx(float(log[-1].max()), abs=1e-4)
        assert [max(top.values()) for top in found.top_logprobs[1:]] == pytest.approx(
            log.max(-1).values.tolist(), abs=1e-4
        )
        assert "".join(found.tokens) == choice.text
        assert choice.text[: found.text_offset[-1]] == read.text == text
        assert read.logprobs.token_logprobs == found.token_logprobs[:-1]
    with pytest.raises(openai.BadRequestError, match="the token 999999"):
        client.completions.create(prompt=[1, 999999], max_tokens=1, **asked)


def test_answers_come_with_their_log_probabilities(served: Served) -> None:
    def text_of(tokens: Any) -> str:
        return bytes(byte for token in tokens for byte in token.bytes).decode("utf-8", "replace")

    def scored(**options: Any) -> Any:
        return served.ask(served.runs[0].id, logprobs=True, top_logprobs=2, **options)

    choice = scored().choices[0]
    tokens = choice.logprobs.content
    assert len(tokens) == 12
    assert text_of(tokens) == choice.message.content
    assert all(token.top_logprobs[0].logprob == token.logprob for token in tokens), "greedy"
    # Those of the model itself, whatever changes the choice.
    first = scored(temperature=2.0, seed=3, frequency_penalty=2).choices[0].logprobs.content[0]
    assert first.top_logprobs == tokens[0].top_logprobs
    stop = choice.message.content[7:10]
    cut = scored(stop=[stop]).choices[0]
    assert text_of(cut.logprobs.content).startswith(cut.message.content)
    assert len(cut.logprobs.content) < 12


def test_seeds_and_stops_are_followed(served: Served) -> None:
    def drawn(seed: int, **options: Any) -> Any:
        return served.ask(served.runs[0].id, temperature=1.5, seed=seed, max_tokens=30, **options)

    text = drawn(5).choices[0].message.content
    assert drawn(5).choices[0].message.content == text
    assert drawn(6).choices[0].message.content != text
    stop = text[10:13]
    cut = drawn(5, stop=[stop])
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_answer_follows_a_schema_whatever_the_model_would_say(served: Served, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "ticket", "strict": True, "schema": SCHEMA}}
    found = served.ask(served.runs[0].id, response_format=form, temperature=1.0, seed=seed, max_tokens=400)
    assert found.choices[0].finish_reason == "stop"
    jsonschema.validate(json.loads(found.choices[0].message.content), SCHEMA)


def test_a_conversation_with_tools_is_answered(served: Served) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": {"b": [1]}}'}}
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(20):
        deep = {"type": "object", "properties": {"a": deep}}
    tools[0]["function"]["parameters"] = deep  # type: ignore[index]
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]
    assert served.ask(served.runs[0].id, messages, tools=tools).usage.completion_tokens == 12


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_call_is_forced_whatever_the_model_would_say(served: Served, seed: int) -> None:
    tools = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": True}}
        for name in ("file", "drop")
    ]
    for choice in ({"type": "function", "function": {"name": "drop"}}, "required"):
        found = served.ask(
            served.runs[0].id, tools=tools, tool_choice=choice, temperature=1.0, seed=seed, max_tokens=480
        ).choices[0]
        assert (found.finish_reason, found.message.content) == ("tool_calls", None)
        for call in found.message.tool_calls:
            jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
            assert choice == "required" or call.function.name == "drop"


def test_responses_are_answers_of_chats(served: Served) -> None:
    responses, name = served.server.client().responses, served.runs[0].id
    wanted = served.ask(name, [{"role": "system", "content": "area"}, *QUESTION])
    asked = {"model": name, "input": "the ticket", "instructions": "area", "max_output_tokens": 12}
    found = responses.create(**asked)
    assert (found.output_text, found.status) == (wanted.choices[0].message.content, "incomplete")
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.usage.total_tokens == wanted.usage.total_tokens
    with responses.stream(**asked) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
    assert "".join(pieces) == found.output_text
    function = {"type": "function", "name": "drop", "parameters": SCHEMA, "strict": True}
    drawn = {**asked, "temperature": 1.0, "max_output_tokens": 480, "extra_body": {"seed": 1}}
    called = responses.create(tools=[function], tool_choice={"type": "function", "name": "drop"}, **drawn)
    (call,) = called.output
    assert (called.status, call.type, call.name) == ("completed", "function_call", "drop")
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    form = {"type": "json_schema", "name": "ticket", "strict": True, "schema": SCHEMA}
    jsonschema.validate(json.loads(responses.create(text={"format": form}, **drawn).output_text), SCHEMA)


def test_an_answer_at_the_end_is_continued(served: Served) -> None:
    found = served.ask(served.model.name, [*QUESTION, {"role": "assistant", "content": "The area is"}])
    prompt = served.ask(served.model.name).usage.prompt_tokens
    assert found.usage.prompt_tokens > prompt
    assert found.choices[0].message.content


def test_an_engine_that_is_killed_is_reported_and_started_again(served: Served) -> None:
    before = served.ask(served.runs[0].id).choices[0].message.content
    (engine,) = served.engines
    stream = served.ask(served.runs[0].id, stream=True, max_tokens=480)
    next(stream)
    engine.kill()
    with pytest.raises(openai.APIError, match="killed by signal 9"):
        list(stream)
    assert served.ask(served.runs[0].id).choices[0].message.content == before
    # Nobody misses an engine that is killed while nobody asks.
    (engine,) = served.engines
    engine.kill()
    # Its threads end one after another; the first is reported dead before the process is.
    is_dead = lambda: engine.status() == psutil.STATUS_ZOMBIE and engine.num_threads() <= 1  # noqa: E731
    wait_for(is_dead, 10, "the engine to be dead")
    assert served.ask(served.runs[1].id).usage.completion_tokens == 12


def test_ctrl_c_ends_the_engine_as_well(served: Served) -> None:
    served.ask(served.runs[0].id)
    (engine,) = served.engines
    served.server.process.send_signal(signal.SIGINT)
    assert served.server.process.wait(60) == 0
    wait_for(lambda: not engine.is_running(), 10, "the engine to end")
