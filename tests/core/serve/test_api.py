"""The API as OpenAI's own client sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml

from core.serve.logprobs import Logprobs
from tests.cases import cases
from tests.core.serve.conftest import RunningServer

REFUSED = yaml.safe_load(Path(__file__).with_name("refused.yaml").read_text(encoding="utf-8"))
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def ask(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": content}]


def test_models_are_listed_with_their_base(played: RunningServer) -> None:
    client = played.client()
    listed = client.models.list().data
    assert [model.id for model in listed] == ["run-1", "tiny"]
    assert listed[0].model_dump()["parent"] == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="There are: run-1, tiny"):
        client.models.retrieve("gpt-9")


def test_an_answer_comes_whole_and_as_the_model_wrote_it(played: RunningServer) -> None:
    answer = played.client().chat.completions.create(model="run-1", messages=ask("say Hello there."))
    assert answer.choices[0].message.content == "Hello there."
    assert (answer.choices[0].finish_reason, answer.model, answer.system_fingerprint) == ("stop", "run-1", "step-7")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (16, 4, 20)

    text = "\x1b[31m\u202e\u2028é\ud83d\ude00[b]\r\n\x00" + "é" * 2000
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    answer = played.client().chat.completions.create(model="tiny", messages=ask(f"say {text}"))
    assert answer.choices[0].message.content == text


def test_an_answer_is_streamed_with_its_usage(played: RunningServer) -> None:
    client = played.client()
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="run-1", messages=ask("say Hello there."), stream=True, stream_options=options
        )
    )
    assert [chunk.choices[0].delta.content for chunk in chunks[1:-2]] == ["Hel", "lo ", "the", "re."]
    assert (chunks[0].choices[0].delta.role, chunks[-2].choices[0].finish_reason) == ("assistant", "stop")
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], 20)
    assert len({chunk.id for chunk in chunks}) == 1
    without = list(client.chat.completions.create(model="run-1", messages=ask("say Hello."), stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in without)


def test_texts_are_gone_on_with(played: RunningServer) -> None:
    client = played.client()
    answer = client.completions.create(model="tiny", prompt="say one two")
    assert (answer.choices[0].text, answer.object) == ("one two", "text_completion")
    pieces = client.completions.create(model="tiny", prompt=["say one two"], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "one two"


def test_answers_of_one_request_have_their_places(played: RunningServer) -> None:
    client = played.client()
    found = client.completions.create(model="tiny", prompt=["say one", "say two"], n=2)
    assert [(choice.index, choice.text) for choice in found.choices] == list(enumerate(["one", "one", "two", "two"]))
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (14, 4), "each prompt counts once"
    drawn = client.chat.completions.create(model="tiny", messages=ask("seed"), n=3, seed=7)
    assert [choice.message.content for choice in drawn.choices] == ["7", "8", "9"]
    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=ask("seed"), n=2, seed=7, stream=True, stream_options=options
        )
    )
    said = [(choice.index, choice.delta.content, choice.finish_reason) for chunk in chunks for choice in chunk.choices]
    wanted = [(0, "", None), (0, "7", None), (0, None, "stop"), (1, "", None), (1, "8", None), (1, None, "stop")]
    assert (said, chunks[-1].usage.completion_tokens) == (wanted, 2)
    with pytest.raises(openai.BadRequestError, match="at most 128 answers, and this one 130"):
        client.completions.create(model="tiny", prompt=["say x"] * 65, n=2)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be at least 1, or 0 with echo"):
        client.completions.create(model="tiny", prompt="say x", max_tokens=0)


def test_log_probabilities_have_both_forms(played: RunningServer) -> None:
    client = played.client()
    with_top = {"messages": ask("say Hello"), "logprobs": True, "top_logprobs": 1}
    chat = client.chat.completions.create(model="tiny", **with_top).choices[0].logprobs
    assert [token.token for token in chat.content] == ["Hel", "lo"]
    assert (chat.content[0].logprob, chat.content[0].bytes) == (-0.5, list(b"Hel"))
    assert [(other.token, other.logprob) for other in chat.content[0].top_logprobs] == [("other", -0.1)]
    chunks = client.chat.completions.create(model="tiny", stream=True, **with_top)
    parts = [choice.logprobs for chunk in chunks for choice in chunk.choices if choice.logprobs is not None]
    assert [token for part in parts for token in part.content] == chat.content
    text = client.completions.create(model="tiny", prompt="say Hello", logprobs=0).choices[0].logprobs
    assert (text.tokens, text.token_logprobs, text.text_offset) == (["Hel", "lo"], [-0.5, -0.5], [0, 3])
    assert text.top_logprobs == [{"Hel": -0.5}, {"lo": -0.5}]


def test_a_character_of_several_tokens_has_one_place_in_the_text() -> None:
    tokens, rest = ("a", "\xc3", "\xa9", "b"), {"logprob": -1.0, "top": list[Any]()}
    scores: list[dict[str, Any]] = [{"token": token, **rest} for token in tokens]
    taken = Logprobs("text").take(scores)
    assert (taken["tokens"], taken["text_offset"]) == (["a", "bytes:\\xc3", "bytes:\\xa9", "b"], [0, 1, 1, 2])
    assert Logprobs("chat").take(scores)["content"][1]["bytes"] == [0xC3]


def test_calls_of_tools_are_distinguished_from_text(played: RunningServer) -> None:
    client = played.client()
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    question = ask(f"say I add. {call}")
    answer = client.chat.completions.create(model="run-1", messages=question, tools=TOOLS)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I add.")
    (called,) = choice.message.tool_calls
    assert (called.type, called.function.name, json.loads(called.function.arguments)) == ("function", "add", {"a": 1})
    chunks = list(client.chat.completions.create(model="run-1", messages=question, tools=TOOLS, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    (streamed,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert (text.strip(), streamed.function.name) == ("I add.", "add")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # Without tools, and with a tool that was not offered, it is text.
    plain = client.chat.completions.create(model="run-1", messages=question)
    assert plain.choices[0].message.content == f"I add. {call}"
    other = [{"type": "function", "function": {"name": "other", "parameters": {"type": "object"}}}]
    chunks = list(client.chat.completions.create(model="run-1", messages=question, tools=other, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == f"I add. {call}"


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_answer_has_its_calls_alone(played: RunningServer, stream: bool) -> None:
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'

    def ask_for(said: str, **options: object) -> tuple[str, int, str]:
        asked = {"model": "run-1", "messages": ask(f"say {said}"), "tools": TOOLS, "stream": stream, **options}
        answer = played.client().chat.completions.create(**asked)
        parts = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        told = [part.delta if stream else part.message for part in parts]
        calls = [call for each in told for call in each.tool_calls or []]
        return "".join(each.content or "" for each in told), len(calls), parts[-1].finish_reason

    both = f"<think>\n\n</think>\n\n{call}\n{call}"
    assert ask_for(both, tool_choice="required") == ("", 2, "tool_calls")
    assert ask_for(both, tool_choice={"type": "function", "function": {"name": "add"}}) == ("", 1, "tool_calls")
    assert ask_for(both, parallel_tool_calls=False)[1:] == (1, "tool_calls")
    # A call that was cut off is text, for the client to see why.
    assert ask_for(call[:20], tool_choice="required") == (call[:20], 0, "stop")


@cases(
    ("path", "changes", "param"),
    [
        *(("chat/completions", *row) for row in REFUSED["fields"]),
        *(("responses", *row) for row in REFUSED["responses"]),
    ],
)
def test_what_is_not_offered_or_makes_no_sense_is_refused_in_a_sentence(
    played: RunningServer, path: str, changes: dict[str, object], param: str
) -> None:
    body = {"model": "run-1", "input" if path == "responses" else "messages": ask("say x"), **changes}
    found = httpx2.post(
        f"{played.url}/{path}",
        content=json.dumps(body),
        headers={"Authorization": f"Bearer {played.key}", "Content-Type": "application/json"},
    )
    error = found.json()["error"]
    assert (found.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert error["message"].endswith(".")


def test_settings_that_change_nothing_are_accepted(played: RunningServer) -> None:
    answer = played.client().chat.completions.create(
        model="run-1",
        messages=[{"role": "developer", "content": [{"type": "text", "text": "Be brief."}]}, *ask("say x")],
        n=1,
        logprobs=False,
        presence_penalty=0,
        frequency_penalty=0.0,
        max_completion_tokens=10**9,
        seed=-(10**12),
        stop=["", "END"],
        user="me",
        metadata={"a": "b"},
        response_format={"type": "text"},
        tool_choice="none",
        tools=TOOLS,
        extra_body={"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].message.content == "x"


def test_errors_of_the_model_become_those_of_the_client(played: RunningServer) -> None:
    client = played.client()
    with pytest.raises(openai.BadRequestError, match=r"too long. Shorten it") as refused:
        client.chat.completions.create(model="run-1", messages=ask("refuse"))
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=ask("say x"))
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError) as mistaken:
        client.chat.completions.create(model="run-1", messages=ask("mistake"))
    assert "secret" not in str(mistaken.value)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="run-1", messages=ask("refuse"), stream=True)


def test_a_session_that_dies_is_reported_and_opened_again(played: RunningServer) -> None:
    client = played.client()

    def opened() -> int:
        counts = client.completions.create(model="tiny", prompt="counts").choices[0].text
        return int(json.loads(counts)[0])

    before = opened()
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError, match="killed by signal 9") as dead:
            client.chat.completions.create(model="run-1", messages=ask("die"), stream=stream)
        assert (dead.value.status_code, dead.value.response.headers["retry-after"]) == (503, "5")
    assert opened() == before + 2
