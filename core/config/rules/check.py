"""All rules between options, and their findings in a configuration."""

from __future__ import annotations

from core.config.facts import Facts
from core.config.rules import Remark, Rule, data, device, distributed, method, night, objective, optimization, train_for
from core.config.schema import Config

_MODULES = (data, objective, train_for, device, distributed, method, optimization, night)
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
