"""All rules between options, and their findings in a configuration."""

from __future__ import annotations

from core.config.facts import Facts
from core.config.rules import (
    adapters,
    checkpoints,
    data,
    device,
    distributed,
    evaluation,
    full,
    night,
    objective,
    optimization,
    tracking,
    train_for,
)
from core.config.rules.rule import Remark, Rule
from core.config.schema import Config

_MODULES = (
    data,
    evaluation,
    objective,
    train_for,
    device,
    distributed,
    full,
    adapters,
    optimization,
    checkpoints,
    night,
    tracking,
)
#: All rules, in the order of their findings: that of the modules, and of their definitions.
RULES: tuple[Rule, ...] = tuple(rule for module in _MODULES for rule in vars(module).values() if isinstance(rule, Rule))


def check_rules(config: Config, facts: Facts | None = None) -> list[Remark]:
    """The findings of all rules, errors first.

    Args:
        config: A valid configuration.
        facts: Known facts; none by default.
    """
    known = facts or Facts()
    found = [
        Remark(rule.level, rule.options, sentence, hint)
        for rule in RULES
        for sentence, hint in rule.check(config, known)
    ]
    return sorted(found, key=lambda remark: remark.level != "error")
