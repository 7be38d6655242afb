from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from core.data.conversation import Example, Message, RowError
from core.errors import UserError
from core.worker.template import Encoder, TokenizedRow, read_template

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] + '\n\n' + m['content'] | trim }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n\n' }}{% endif %}"
)
DROPS_REASONING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_STOP = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def talk(*contents: str, system: str = "") -> Example:
    roles = ["user", "assistant"] * len(contents)
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    return Example(messages=tuple([Message("system", system), *turns] if system else turns))


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encode(tokenizer: Any, example: Example, template: str | None = None) -> TokenizedRow:
    (row,) = Encoder(tokenizer, [tokenizer.eos_token_id], template).encode([example])
    assert isinstance(row, TokenizedRow), row
    return row


@pytest.mark.parametrize("template", [None, LLAMA3])
@pytest.mark.parametrize(
    "example",
    [talk("hi", "hello"), talk("a", "b", "c c", " d "), talk("q", "{}", system="be brief"), talk("ü ✓", "<b>")],
)
def test_what_is_learned_is_what_the_model_must_say_after_each_generation_prompt(
    tokenizer: Any, example: Example, template: str | None
) -> None:
    row = encode(tokenizer, example, template)
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id], template)
    learned = [int(token) for token, wanted in zip(row.input_ids, row.supervised, strict=True) if wanted]
    expected: list[int] = []
    for place, message in enumerate(example.messages):
        if message.role == "assistant":
            said = message.content.strip() if template else message.content
            expected += tokenizer(said, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            # The tokens before it are exactly those of the prompt that inference would give.
            before = [{"role": turn.role, "content": turn.content} for turn in example.messages[:place]]
            prompt = tokenizer(encoder.prompt(before), add_special_tokens=False)["input_ids"]
            if place <= 2:
                assert row.input_ids[: len(prompt)].tolist() == prompt
    assert learned == expected


def test_the_whole_row_is_the_rendered_conversation(tokenizer: Any) -> None:
    example = talk("one", "two", "three", "four")
    row = encode(tokenizer, example)
    rendered = tokenizer.apply_chat_template(
        [{"role": message.role, "content": message.content} for message in example.messages], tokenize=False
    )
    assert tokenizer.decode(row.input_ids.tolist()) == rendered


def test_the_stop_token_is_learned_and_what_follows_it_is_not(tokenizer: Any) -> None:
    row = encode(tokenizer, talk("hi", "hello"))
    last = max(place for place, learned in enumerate(row.supervised) if learned)
    assert row.input_ids[last] == tokenizer.eos_token_id
    assert last < len(row) - 1


def test_plain_text_is_learned_whole_and_ended(tokenizer: Any) -> None:
    row = encode(tokenizer, Example(text="just text"))
    assert row.supervised.all()
    assert row.input_ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "code"),
    [
        (DROPS_REASONING, "template_rewrites"),
        (NO_STOP, "no_stop_token"),
        ("{{ raise_exception('roles must alternate') }}", "template_error"),
    ],
)
def test_a_template_that_cannot_be_masked_exactly_is_refused_with_the_reason(
    tokenizer: Any, template: str, code: str
) -> None:
    example = talk("a", "<think>x</think>b", "c", "<think>y</think>d")
    (row,) = Encoder(tokenizer, [tokenizer.eos_token_id], template).encode([example])
    assert isinstance(row, RowError)
    assert row.code == code


def test_a_model_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        Encoder(tokenizer, [tokenizer.eos_token_id]).encode([talk("a", "b")])


def test_a_missing_template_file_is_named(tmp_path: Path) -> None:
    assert read_template(None) is None
    with pytest.raises(UserError, match=r"nowhere\.jinja"):
        read_template(str(tmp_path / "nowhere.jinja"))
