import json
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

import sample_data
from core.data.conversation import Example, Message, RowError
from core.errors import UserError
from core.template.builtin import template_source
from core.template.mask import Masker
from core.template.tokenizer import MaskedRow, load_tokenizer
from core.worker.data.encode import Encoder, TokenizedRow, stop_token_ids
from tests.hostile_templates import SLOW
from tests.tiny_model import CHATML

DROPS_REASONING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['role'] == 'assistant' and not loop.last %}{{ message['content'].split('</think>')[-1] }}"
    "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SLOW_ON_BAD = CHATML + "{% if messages[0].content == 'bad' %}" + SLOW + "{% endif %}"


def talk(*contents: str, system: str = "") -> Example:
    roles = ["user", "assistant"] * len(contents)
    turns = [Message(role, content) for role, content in zip(roles, contents, strict=False)]
    return Example(messages=tuple([Message("system", system), *turns] if system else turns))


@pytest.fixture
def tokenizer(tiny_model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def encode(tokenizer: Any, example: Example, template: str | None = None, **options: Any) -> TokenizedRow:
    (row,) = Encoder(tokenizer, [tokenizer.eos_token_id], template, **options).encode([example])
    assert isinstance(row, TokenizedRow), row
    return row


def test_a_named_template_brings_its_stop(tokenizer: Any) -> None:
    tokenizer.eos_token = "<|endoftext|>"
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(None, tokenizer, DROPS_REASONING))
    assert stops == ["<|endoftext|>", "<|im_end|>"]
    tokenizer.chat_template = None
    chatml = template_source(None, "chatml")
    assert stop_token_ids(None, tokenizer) == [tokenizer.eos_token_id]
    stops = stop_token_ids(None, tokenizer, chatml)
    assert stops == [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    (row,) = Encoder(tokenizer, stops, chatml).encode([talk("a", "b")])
    assert isinstance(row, TokenizedRow)
    assert tokenizer.decode(row.input_ids[row.supervised]) == "b<|im_end|>"


def test_tokens_match_transformers_on_the_rendered_conversation(starter_model_dir: Path) -> None:
    starter = AutoTokenizer.from_pretrained(starter_model_dir)
    lines = (Path(sample_data.__file__).parent / "tickets_train.jsonl").read_text(encoding="utf-8").splitlines()
    conversations = [json.loads(line)["messages"] for line in lines]
    examples = [Example(messages=tuple(Message(**message) for message in turns)) for turns in conversations]
    rows = Encoder(starter, [starter.eos_token_id]).encode(examples)
    masker = Masker(load_tokenizer(starter_model_dir))
    for turns, row, light in zip(conversations, rows, masker.mask(examples), strict=True):
        assert isinstance(row, TokenizedRow)
        assert isinstance(light, MaskedRow)
        assert row.input_ids.tolist() == starter.apply_chat_template(turns)["input_ids"] == list(light.input_ids)
        assert row.supervised.tolist() == [bool(learned) for learned in light.supervised]
        prompt = starter.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        assert row.supervised.argmax() == len(prompt)
        answer = starter(turns[1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        assert row.input_ids[row.supervised].tolist() == answer


def test_a_tokenizer_with_only_sentencepiece_files_is_converted(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the ticket is about an order that did not arrive\n" * 50, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "tokenizer"), vocab_size=60, model_type="bpe",
        byte_fallback=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>"}')
    with pytest.raises(UserError, match="only the training process reads"):
        load_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    row = encode(tokenizer, talk("the", "order"), template_source(None, "zephyr"))
    assert tokenizer.decode(row.input_ids[row.supervised]).strip() == "order</s>"


def test_a_template_that_takes_for_ever_is_a_sentence(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.data.encode._SECONDS", 0.3)
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id], SLOW_ON_BAD)
    good, bad = talk("good", "yes"), talk("bad", "yes")
    assert not isinstance(encoder.encode([good])[0], RowError)
    with pytest.raises(UserError, match=r"takes more than 0\.3 s for 2 rows"):
        encoder.encode([good, bad])
    assert not isinstance(encoder.encode([good])[0], RowError)


def test_a_stop_is_heard_in_the_middle_of_a_slow_row(tokenizer: Any) -> None:
    asked: list[bool] = []

    def check() -> None:
        if asked:
            raise InterruptedError
        asked.append(True)

    encoder = Encoder(tokenizer, [tokenizer.eos_token_id], SLOW_ON_BAD, check=check)
    began = time.process_time()
    with pytest.raises(InterruptedError):
        encoder.encode([talk("bad", "yes")] * 9)
    assert time.process_time() - began < 3, "it did not wait for the row"
