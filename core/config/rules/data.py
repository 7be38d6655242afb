"""Rules of ``data`` and ``template``: rows, held-out rows, and the chat template."""

from __future__ import annotations

from core.config.choices import GIVEN_VARIABLES
from core.config.facts import Facts
from core.config.rules.rule import Findings, rule
from core.config.schema import Config


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
