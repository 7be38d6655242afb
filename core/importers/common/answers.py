"""Answers to held-out questions during training, from the keys of the other tools."""

from __future__ import annotations

from core.importers.common.shared import NOTHING_HELD_OUT, is_measured
from core.importers.gaps import Gap
from core.importers.translation import Translation

#: Options that :func:`axolotl_samples` and :func:`llama_factory_answers` may set.
SAMPLE_OPTIONS, ANSWER_OPTIONS = ("eval.samples",), ("eval.exact_match",)
#: Most samples at an evaluation.
_MOST = 100


def axolotl_samples(work: Translation) -> None:
    """Axolotl: ``generate_samples`` continues the first halves of rows, ``eval_table_size`` answers held-out rows."""
    wanted, number = work.boolean("generate_samples"), work.integer("num_generation_samples")
    has_rows = is_measured(work)
    table = work.integer("eval_table_size")
    if wanted and not has_rows:
        work.drop("generate_samples", f"{NOTHING_HELD_OUT} Set eval.prompts to have prompts of your own answered.")
    elif wanted:
        work.change("generate_samples", "eval.samples", 3 if number is None else number, Gap.SAMPLE_SETTINGS.sentence)
    elif work.has("generate_samples") and has_rows and not table:
        work.carry("generate_samples", "eval.samples", 0)
    elif work.has("generate_samples"):
        work.carry("generate_samples", None, reason="As it is here.")
    if number is not None and wanted and "eval.samples" in work.settings:
        work.carry("num_generation_samples", "eval.samples")
    elif number is not None and wanted:
        work.drop("num_generation_samples", NOTHING_HELD_OUT if not has_rows else "It must be from 0 to 100.")
    elif number is not None:
        work.carry("num_generation_samples", None, reason="It counts only with generate_samples.")
    if table is None:
        return
    if table <= 0:
        work.carry("eval_table_size", None, reason="As it is here.")
    elif not has_rows:
        work.drop("eval_table_size", NOTHING_HELD_OUT)
    elif "eval.samples" in work.settings:
        work.carry("eval_table_size", None, reason="See generate_samples.")
    else:
        reason = "The answers to so many held-out questions are kept with the run, and shown in the app."
        work.change("eval_table_size", "eval.samples", min(table, _MOST), reason)


def llama_factory_answers(work: Translation) -> None:
    """LLaMA-Factory: ``predict_with_generate`` has the held-out questions answered, and compares by BLEU and ROUGE."""
    key = "predict_with_generate"
    if not work.boolean(key):
        if work.has(key):
            work.carry(key, None, reason="As it is here.")
    elif not is_measured(work):
        work.drop(key, NOTHING_HELD_OUT)
    elif (work.text("stage") or "sft").strip().lower() != "sft":
        work.drop(key, "It does not go with another stage than sft, in LLaMA-Factory neither.")
    else:
        work.change(key, "eval.exact_match", True, "Answers are compared exactly, not by BLEU and ROUGE.")


def llama_factory_chat(work: Translation) -> None:
    """LLaMA-Factory: ``do_sample: false`` always takes the likeliest token, whatever ``temperature`` is."""
    key, option = "do_sample", "chat.temperature"
    if work.boolean(key):
        if work.has("temperature"):
            work.carry(key, None, reason="See temperature.")
        else:
            work.change(key, option, 0.95, "Without temperature, LLaMA-Factory takes 0.95.")
    elif work.has(key):
        work.carry(key, option, 0.0)
        if work.has("temperature"):
            work.drop("temperature", "do_sample: false always takes the likeliest token.")
