"""Valid configurations, made up."""

from __future__ import annotations

from typing import Any

import tomli
from hypothesis import strategies as st

from core.config.document import ConfigDocument
from core.config.rules.check import check_rules
from core.config.schema import Config, Option, options

MINIMAL = '[data]\ntrain = "rows.jsonl"\n'
EVERY = list(options())


def value_of(option: Option) -> st.SearchStrategy[Any]:
    """Valid values of an option, as TOML has them."""
    text = st.text(st.characters(categories=("L", "M", "N", "P", "S", "Zs")), min_size=1, max_size=20).filter(str.strip)
    if option.name == "eval.gate":
        return st.sampled_from(["loss <= 2", ["loss < 9.5", "probe_loss <= 4"], "perplexity < 1e3"])
    if option.name == "parking.hours":
        return st.sampled_from(["18:00-23:00", ["23:00-07:00", "9:00-17:30"]])
    if option.name == "distributed.gpus":
        return st.sampled_from(["all", "0", ["0", "1"], ["GPU-1", "GPU-2", "3"]])
    if option.name in ("night.deadline", "night.quiet_hours"):
        times = ["07:00", "23:59"] if option.name == "night.deadline" else ["23:00-07:00", "9:00-17:30"]
        return st.sampled_from(times)
    if option.name == "template.variables":
        values = st.booleans() | st.integers(-9, 9) | st.floats(-1e6, 1e6) | text
        return st.dictionaries(st.sampled_from(["enable_thinking", "effort", "x_1"]), values, min_size=1, max_size=3)
    if option.name == "data.exclude":
        return st.lists(st.from_regex(r"[a-z]{1,8}\.jsonl:[1-9][0-9]?", fullmatch=True), max_size=3)
    if option.type == "choice":
        return st.sampled_from(option.choices)
    if option.type == "boolean":
        return st.booleans()
    low = option.minimum if option.minimum is not None else -1000
    high = min(option.maximum if option.maximum is not None else 1e6, 1e6)
    if option.type == "integer":
        return st.integers(int(low), int(high))
    if option.type == "number":
        return st.floats(low, high, exclude_min=True, exclude_max=True)
    if option.type == "table":
        return st.dictionaries(st.sampled_from(option.choices), text, min_size=1, max_size=3)
    if option.type == "numbers":
        return st.lists(st.floats(0.01, 100), min_size=1, max_size=3)
    if option.closed:
        return st.sampled_from(option.choices) | st.lists(st.sampled_from(option.choices), max_size=3)
    if option.type in ("paths", "list"):
        return st.lists(text, min_size=1, max_size=3) | text.filter(lambda _: option.type == "paths")
    return text


def coherent(changes: list[tuple[str, Any]]) -> bool:
    """True if options, each with a value that it takes, break no rule between them."""
    document = ConfigDocument(MINIMAL)
    for name, value in changes:
        document.set(name, value)
    # Fails for a value that its option does not take.
    config = Config.model_validate(tomli.loads(document.dumps()))
    return all(remark.level != "error" for remark in check_rules(config))


_CHANGE = st.sampled_from(EVERY).flatmap(lambda option: st.tuples(st.just(option.name), value_of(option)))
#: A few options with values, as ``section.key`` and value.
CHANGES = st.lists(_CHANGE, max_size=5).filter(coherent)
