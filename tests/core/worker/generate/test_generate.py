from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from core.chat.request import GenerationSettings
from core.errors import UserError
from core.template import jinja_sandbox
from core.worker.generate import generate as generate_module
from core.worker.generate.generate import Generation, answer_prompt, answering_as, generate_batch, prepare_prompt
from core.worker.model.model import LoadedModel, load_model, set_gradient_checkpointing
from core.worker.oom.retry import MemoryShortageError
from tests.cases import cases
from tests.hostile_templates import SLOW

ASK = [{"role": "user", "content": "the ticket"}]


def never() -> bool:
    return False


def ignore(_text: str) -> None:
    """Nobody reads along."""


def generate(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, str]],
    settings: GenerationSettings,
    on_token: Callable[[str], None],
    cancelled: Callable[[], bool],
    template: str | None = None,
) -> Generation:
    """An answer without anything kept."""
    prompt = prepare_prompt(model, tokenizer, messages, settings.max_new_tokens, template)
    return answer_prompt(model, tokenizer, prompt, settings, on_token, cancelled, began=time.monotonic())


def load_tiny(directory: Path) -> LoadedModel:
    """In fp32, so that the order of computation does not change the answer."""
    return load_model(directory, method="lora", precision="fp32", device="cpu")


@pytest.fixture
def tiny(tiny_model_dir: Path) -> LoadedModel:
    return load_tiny(tiny_model_dir)


def with_adapter(loaded: LoadedModel, dropout: float = 0.0) -> Any:
    """The model with an adapter that changes its answers, in training mode."""
    torch.manual_seed(3)
    model = get_peft_model(
        loaded.model,
        LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", lora_dropout=dropout, task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def reference(tiny: LoadedModel) -> list[int]:
    """The answer in 40 tokens as transformers' own loop gives it."""
    prompt = tiny.tokenizer.apply_chat_template(ASK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    found = tiny.model.eval().generate(**prompt, max_new_tokens=40, do_sample=False)
    return [int(token) for token in found[0, prompt["input_ids"].shape[1] :]]


@pytest.mark.parametrize("piece", [3, 512])
def test_the_answer_is_that_of_transformers(tiny: LoadedModel, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.generate.decoding.PIECE_TOKENS", piece)
    heard: list[str] = []
    generation = generate(tiny.model, tiny.tokenizer, ASK, GenerationSettings(40), heard.append, never)
    expected = reference(tiny)
    assert generation.text == tiny.tokenizer.decode(expected, skip_special_tokens=True)
    assert generation.tokens == 40
    assert generation.finish == "length"
    assert "".join(heard) == generation.text
    assert len(heard) > 1
    assert generation.first_token_seconds > 0
    assert generation.tokens_per_second > 0


def test_it_stops_at_every_token_that_ends_a_turn(tiny: LoadedModel) -> None:
    free = reference(tiny)
    stop = free[20]
    tiny.model.generation_config.eos_token_id = [tiny.tokenizer.eos_token_id, stop]
    generation = generate(tiny.model, tiny.tokenizer, ASK, GenerationSettings(40), ignore, never)
    assert generation.finish == "stop"
    assert generation.tokens == free.index(stop)


def test_a_long_prompt_can_be_cancelled_while_it_is_read(tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.worker.generate.decoding.PIECE_TOKENS", 4)
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) == 3

    generation = generate(tiny.model, tiny.tokenizer, ASK, GenerationSettings(100), ignore, cancelled)
    assert (generation.finish, generation.tokens, generation.text) == ("cancelled", 0, "")


def test_an_answer_leaves_no_trace_in_training(tiny_model_dir: Path) -> None:
    """Two models take the same step, one after answering: with dropout, all is bit-equal."""
    gradients: list[list[torch.Tensor]] = []
    for answers in (False, True):
        loaded = load_model(tiny_model_dir, method="lora", precision="fp32", device="cpu", for_training=True)
        model = with_adapter(loaded, dropout=0.3)
        set_gradient_checkpointing(model, True)
        frozen = next(module for name, module in model.named_modules() if name.endswith("layers.0.mlp"))
        frozen.eval()
        torch.manual_seed(7)
        if answers:
            before = torch.get_rng_state()
            settings = GenerationSettings(20, temperature=1.0, top_p=0.9)
            for source in ("tuned", "base"):
                with answering_as(model, source):
                    generate(model, loaded.tokenizer, ASK, settings, ignore, never)
            generate_batch(model, loaded.tokenizer, [ASK, ASK], 5, lambda _done, _total: None)
            assert torch.equal(before, torch.get_rng_state())
        assert model.training
        assert not frozen.training
        ids = torch.arange(3, 40)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(quiet, answered) for quiet, answered in zip(*gradients, strict=True))


def test_the_mode_is_restored_when_answering_fails(tiny: LoadedModel) -> None:
    model = with_adapter(tiny)

    def fail(_text: str) -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        generate(model, tiny.tokenizer, ASK, GenerationSettings(20), fail, never)
    assert model.training
    assert torch.is_grad_enabled()
    with pytest.raises(ConnectionError):
        generate_batch(model, tiny.tokenizer, [ASK], 5, lambda _done, _total: fail(""))
    assert model.training


def test_base_and_tuned_come_from_one_model(tiny: LoadedModel) -> None:
    untouched = generate(tiny.model, tiny.tokenizer, ASK, GenerationSettings(20), ignore, never).text
    model = with_adapter(tiny)

    def answer(source: str) -> str:
        with answering_as(model, source):
            return generate(model, tiny.tokenizer, ASK, GenerationSettings(20), ignore, never).text

    assert answer("base") == untouched
    assert answer("tuned") != untouched
    assert answer("base") == untouched
    with answering_as(tiny.model.base_model, "base"):
        pass  # a model without adapters is its own base


SYSTEM = {"role": "system", "content": "You sort support tickets by area and urgency, and say nothing else."}


def conversations(count: int, *, system: bool) -> list[list[dict[str, str]]]:
    return [
        [*([SYSTEM] if system else []), {"role": "user", "content": "ticket ref " * (number % 5) + str(number)}]
        for number in range(count)
    ]


@pytest.mark.parametrize("system", [False, True])
def test_a_batch_answers_as_one_by_one(tiny: LoadedModel, system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # A head of its own makes the answers wander, and many tokens end them: rows leave the batch one after the other.
    torch.manual_seed(5)
    tiny.model.lm_head.weight = torch.nn.Parameter(torch.randn_like(tiny.model.lm_head.weight), requires_grad=False)
    tiny.model.generation_config.eos_token_id = list(range(2, 312, 20))
    monkeypatch.setattr(generate_module, "BATCH_ROWS", 4)
    asked = conversations(11, system=system)
    told: list[tuple[int, int]] = []
    answers = generate_batch(tiny.model, tiny.tokenizer, asked, 30, lambda *progress: told.append(progress))
    single = [
        generate(tiny.model, tiny.tokenizer, messages, GenerationSettings(30), ignore, never) for messages in asked
    ]
    assert answers == [generation.text for generation in single]
    assert len({generation.tokens for generation in single}) > 3, "the rows were meant to end at different times"
    assert told[-1] == (11, 11)
    assert generate_batch(tiny.model, tiny.tokenizer, [], 5, lambda _done, _total: None) == []
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_reading_a_batch_does_not_copy_the_head_for_every_row(tiny: LoadedModel) -> None:
    """The head of a large vocabulary is hundreds of megabytes; torch must not expand it to the batch."""
    from torch.profiler import ProfilerActivity, profile

    rows, vocabulary = 16, tiny.model.config.vocab_size
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as measured:
        generate_batch(tiny.model, tiny.tokenizer, conversations(rows, system=False), 1, lambda _done, _total: None)
    products = [
        event.input_shapes
        for event in measured.key_averages(group_by_input_shape=True)
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm")
    ]
    heads = [shapes for shapes in products if any(shape and shape[-1] == vocabulary for shape in shapes)]
    assert heads, "the head was not seen"
    assert all(len(shape) == 2 for shapes in heads for shape in shapes if shape)


def test_rows_of_similar_length_share_a_batch() -> None:
    batches = generate_module._batches([10, 500, 12, 480, 11], 100)
    assert batches == [[1, 3, 2, 4, 0]]
    long = generate_module._batches([3000, 2900, 10], 1000)
    assert long == [[0, 1], [2]]
    assert [len(batch) for batch in generate_module._batches([10] * 70, 10)] == [32, 32, 6]
    assert generate_module._batches([10**6], 10) == [[0]]


SLOW_SAID = r"^The chat template takes more than 0\.02 s for one conversation"


def _spoil_template(loaded: LoadedModel) -> None:
    loaded.tokenizer.chat_template = None


def _spoil_weights(loaded: LoadedModel) -> None:
    loaded.model.model.norm.weight.fill_(float("nan"))


@cases(
    ("spoil", "words", "template", "says"),
    [
        (_spoil_template, 1, None, "no chat template"),
        (_spoil_weights, 1, None, "not numbers"),
        (lambda _loaded: None, 600, None, "reads at most 512"),
        (lambda _loaded: None, 1, "{{ raise_exception('no system prompts here') }}", "no system prompts here"),
        (lambda _loaded: None, 1, SLOW, SLOW_SAID),
        (lambda _loaded: None, 1, "{% if add_generation_prompt %}" + SLOW + "{% endif %}", SLOW_SAID),
    ],
)
def test_what_cannot_be_answered_is_reported(
    tiny_model_dir: Path,
    spoil: Callable[[LoadedModel], None],
    words: int,
    template: str | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if says == SLOW_SAID:
        monkeypatch.setattr(jinja_sandbox, "SECONDS", 0.02)
    tiny = load_tiny(tiny_model_dir)
    with torch.no_grad():
        spoil(tiny)
    asked = [{"role": "user", "content": "ticket " * words}]
    with pytest.raises(UserError, match=says):
        generate(tiny.model, tiny.tokenizer, asked, GenerationSettings(5), ignore, never, template)


def test_an_answer_ends_where_the_model_ends(tiny: LoadedModel) -> None:
    messages = [{"role": "user", "content": "ticket " * 150}]
    prompt = tiny.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    generation = generate(tiny.model, tiny.tokenizer, messages, GenerationSettings(5000), ignore, never)
    assert (generation.finish, generation.tokens) == ("length", 512 - len(prompt))


def test_a_batch_that_runs_out_of_memory_is_halved_and_a_single_answer_fails(
    tiny: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = conversations(7, system=False)
    wanted = generate_batch(tiny.model, tiny.tokenizer, asked, 10, lambda _done, _total: None)
    real = tiny.model.model.forward

    def limited(input_ids: torch.Tensor, **kwargs: Any) -> Any:
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(tiny.model.model, "forward", limited)
    told: list[str] = []
    answers = generate_batch(tiny.model, tiny.tokenizer, asked, 10, lambda _done, _total: None, notice=told.append)
    assert answers == wanted
    assert [message.split("with ")[1] for message in told] == ["4.", "2."]

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(tiny.model.model, "forward", fail)
    with pytest.raises(UserError, match="does not fit in memory: CUDA out of memory"):
        generate(tiny.model, tiny.tokenizer, ASK, GenerationSettings(5), ignore, never)
    with pytest.raises(MemoryShortageError, match="does not fit in memory: CUDA out of memory"):
        generate_batch(tiny.model, tiny.tokenizer, [ASK], 5, lambda _done, _total: None)
