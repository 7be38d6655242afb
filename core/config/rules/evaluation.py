"""Rules of ``eval``: figures, intervals and bars."""

from __future__ import annotations

from core.config.choices import LEARNED
from core.config.derived import holds_out
from core.config.facts import Facts
from core.config.gate import Figure, bar_texts, parse_bar
from core.config.rules.rule import Findings, rule
from core.config.schema import Config
from core.errors import UserError

_NO_EVAL = "Set data.eval or data.eval_share, or remove it."


@rule("error", "eval.every_epochs", "eval.every_steps")
def one_interval(config: Config, _: Facts) -> Findings:
    """eval.every_steps and eval.every_epochs are not both set."""
    if config.eval.every_steps is not None and config.eval.every_epochs is not None:
        yield "eval.every_steps and eval.every_epochs both say how often it is measured.", "Remove one of the two."


@rule("warning", "eval.every_steps", "eval.every_epochs", "data.eval", "data.eval_share", "eval.prompts")
def eval_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.every_steps and eval.every_epochs need held-out rows, or prompts to answer."""
    if holds_out(config) or config.eval.prompts is not None:
        return
    for name in ("every_steps", "every_epochs"):
        if getattr(config.eval, name) is not None:
            yield f"eval.{name} is set, but there are no held-out rows to measure on.", _NO_EVAL


@rule("error", "checkpoint.final", "data.eval", "data.eval_share")
def best_needs_rows(config: Config, _: Facts) -> Findings:
    """checkpoint.final = "best" needs held-out rows."""
    if config.checkpoint.final == "best" and not holds_out(config):
        yield "checkpoint.final is best, but there are no held-out rows to tell which step is.", _NO_EVAL


@rule("error", "eval.patience", "data.eval", "data.eval_share")
def patience_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.patience needs held-out rows."""
    if config.eval.patience is not None and not holds_out(config):
        yield "eval.patience is set, but there are no held-out rows whose loss could stop falling.", _NO_EVAL


@rule("warning", "eval.patience", "eval.every_steps", "eval.every_epochs")
def patience_needs_interval(config: Config, _: Facts) -> Findings:
    """eval.patience needs evaluations before the end."""
    often = config.eval.every_steps is not None or config.eval.every_epochs is not None
    if config.eval.patience is not None and holds_out(config) and not often:
        yield (
            "eval.patience is set, but it is measured at the end only, when there is nothing left to end.",
            "Set eval.every_steps or eval.every_epochs.",
        )


@rule("warning", "eval.exact_match", "data.eval", "data.eval_share", "data.format")
def exact_match_needs_questions(config: Config, _: Facts) -> Findings:
    """eval.exact_match needs held-out rows, and rows with questions and answers."""
    if config.eval.exact_match and not holds_out(config):
        yield "eval.exact_match is on, but there are no held-out rows to ask.", _NO_EVAL
    elif config.eval.exact_match and config.data.format in ("text", "tokens"):
        yield f"eval.exact_match is on, but rows of {config.data.format} have no question to ask.", "Turn it off."


@rule("warning", "eval.baseline", "data.eval", "data.eval_share")
def baseline_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.baseline needs held-out rows."""
    if config.eval.baseline and not holds_out(config):
        yield "eval.baseline is on, but there are no held-out rows to measure on.", _NO_EVAL


@rule("error", "eval.gate")
def gate_is_read(config: Config, _: Facts) -> Findings:
    """eval.gate has a figure, a comparison and a number or a part of before in each of its bars."""
    for text in bar_texts(config.eval.gate):
        try:
            parse_bar(text)
        except UserError as error:
            yield f"eval.gate: {error.message}", error.hint


@rule("error", "eval.gate", "data.eval", "data.eval_share")
def gate_needs_rows(config: Config, _: Facts) -> Findings:
    """eval.gate needs held-out rows."""
    if config.eval.gate is not None and not holds_out(config):
        yield "eval.gate is set, but there are no held-out rows to judge the result by.", _NO_EVAL


@rule("error", "eval.gate", "eval.exact_match", "eval.baseline", "eval.probe", "train.objective")
def gate_is_measured(config: Config, _: Facts) -> Findings:
    """eval.gate has bars for figures that are measured: with exact_match and valid_json eval.exact_match, with before
    eval.baseline, with probe_loss eval.probe, rewards with an objective that has them, perplexity without."""
    compares = config.train.objective in LEARNED
    missing: dict[Figure, tuple[bool, str]] = {
        "exact_match": (not config.eval.exact_match, "Set eval.exact_match = true."),
        "valid_json": (not config.eval.exact_match, "Set eval.exact_match = true."),
        "probe_loss": (not config.eval.probe, "Set eval.probe = true."),
        "reward_accuracy": (not compares, "It is a figure of preference training."),
        "reward_margin": (not compares, "It is a figure of preference training."),
        "perplexity": (compares, "Preference training has none; take loss."),
    }
    for text in bar_texts(config.eval.gate):
        try:
            bar = parse_bar(text)
        except UserError:
            continue  # another rule says so
        is_missing, hint = missing.get(bar.figure, (False, ""))
        if is_missing:
            yield f"eval.gate asks for {bar.figure}, which is not measured.", hint
        elif bar.needs_before and bar.figure != "probe_loss" and not config.eval.baseline:
            yield f"eval.gate compares {bar.figure} with before, which is not measured.", "Set eval.baseline = true."
