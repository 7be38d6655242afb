"""Rules of ``data``, ``template`` and ``eval``: rows, held-out rows, the chat template, figures, intervals and bars."""

from __future__ import annotations

from core.config.choices import GIVEN_VARIABLES, LEARNED
from core.config.derived import holds_out
from core.config.facts import Facts
from core.config.gate import Figure, bar_texts, parse_bar
from core.config.rules import Findings, rule
from core.config.schema import Config
from core.errors import UserError


@rule("error", "data.weights", "data.train")
def weights_match_entries(config: Config, _: Facts) -> Findings:
    """data.weights has one number for each entry of data.train."""
    entries = 1 if isinstance(config.data.train, str) else len(config.data.train)
    weights = config.data.weights
    if weights and len(weights) != entries:
        entry = "entry" if entries == 1 else "entries"
        yield f"data.weights has {len(weights)} numbers and data.train {entries} {entry}.", "Give one for each entry."


@rule("error", "data.eval_share", "data.eval")
def one_way_to_hold_out(config: Config, _: Facts) -> Findings:
    """data.eval and data.eval_share are not both set."""
    if config.data.eval is not None and config.data.eval_share > 0:
        yield "data.eval and data.eval_share both say what is held out.", "Remove one of the two."


@rule("error", "data.eval_share", "data.train")
def rows_to_hold_out(config: Config, facts: Facts) -> Findings:
    """data.eval_share can hold a row out and leave one to train on."""
    if config.data.eval_share > 0 and config.data.eval is None and facts.rows == 1:
        yield "data.eval_share holds rows out, and there is one row.", "Set it to 0, or add rows."


@rule("error", "template.name", "template.file")
def one_template(config: Config, _: Facts) -> Findings:
    """template.name and template.file are not both set."""
    if config.template.name is not None and config.template.file is not None:
        yield "template.name and template.file are both set.", "Remove one of the two."


@rule("error", "template.variables", "template.name")
def variables_of_a_template(config: Config, _: Facts) -> Findings:
    """template.variables are variables that a template may have, and that of template.name has none."""
    for name in config.template.variables or ():
        if name in GIVEN_VARIABLES:
            yield f"template.variables sets {name}, which every rendering is given.", "Remove it."
    if config.template.variables and config.template.name is not None:
        yield (
            f"The template {config.template.name} has no variables, and template.variables sets some.",
            "Remove one of the two.",
        )


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
