"""No table denies what the schema can do: each denial names the options that would end it, and there are none."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from core.config.schema import options, sections
from core.importers.convert import TOOLS
from core.importers.gaps import Gap
from core.importers.rules import Choice, Copy, Missing
from core.importers.tool import Tool
from tests.cases import cases

EVERY = list(TOOLS.values())
#: Every option, and every value of one with choices.
SAYABLE = [
    *(option.name for option in options()),
    *(f"{option.name}={choice}" for option in options() for choice in option.choices),
]
#: Sections that the schema has not, and which would be made for what is missing.
NEW_SECTIONS = {"*", "export", "bench", "run"}

#: Reasons that rules for several keys give, by the values of the keys.
IN_RULES = {Gap.COMPILER, Gap.BEST_BY_LOSS}
#: Options that no key of a tool says, each with the reason. A new option comes here, or its keys into the tables.
NOBODY_SAYS = {
    "data.allow": "the refusals are ours",
    "train.share_prefix": "a way to compute that changes nothing",
    "train.fused_layers": "a way to compute that changes nothing",
    "memory.keep_dequantized": "a way to compute that changes nothing",
    "memory.offload_experts": "none moves experts alone",
    "model.keep_16bit": "none says which layers stay in 16 bit by their cost; what they skip is their own choice",
    "method.train_for": "none trains the weights of a GGUF file",
    "train.max_hours": "none ends a run by its time",
    "train.max_energy_wh": "none ends a run by its energy",
    "eval.min_delta": "the threshold of early stopping is 0 in all of them",
    "eval.prompts": "none reads prompts from a file",
    "eval.max_rows": "all of them measure all rows",
    "eval.probe": "the texts that it is measured on are ours",
    "eval.gate": "none refuses a result",
    "eval.every_epochs": "they count in steps; an epoch is written as its steps",
    "hardware.tariff": "none tells what energy costs",
    "hardware.currency": "none tells what energy costs",
    **dict.fromkeys(
        (
            *("hardware.temperature_limit_c", "hardware.memory_temperature_limit_c", "hardware.power_limit_w"),
            *("hardware.host_memory_limit_percent", "hardware.disk_free_min_gb"),
            *("night.deadline", "night.energy_kwh", "night.quiet_hours", "night.quiet_power_w"),
        ),
        "none acts on heat, power or the hour",
    ),
    **dict.fromkeys(
        ("parking.programs", "parking.memory_gb", "parking.hours", "parking.calm"), "none gives the device back"
    ),
    "hardware.gpu": "they leave it to CUDA_VISIBLE_DEVICES",
    **dict.fromkeys(
        (
            *("distributed.gpus", "distributed.processes", "distributed.hosts", "distributed.address"),
            *("distributed.port", "distributed.restarts"),
        ),
        "the launcher that starts them says it",
    ),
    "chat.system": "none has a system prompt for its chat alone",
    "chat.seed": "a seed of theirs is that of the training",
    "chat.stop": "they end an answer where their template does",
}
#: The same for one tool: it has no such key, or takes it for all.
_SPIKES = {"train.on_loss_spike", "train.loss_spike", "train.loss_spike_patience", "train.loss_limit"}
ONE_DOES_NOT_SAY: dict[str, set[str]] = {
    "axolotl": {
        *("eval.baseline", "eval.exact_match", "method.trainable_layers", "method.trainable_end"),
        *("hardware.device", "chat.top_p", "chat.top_k", "chat.min_p", "chat.repetition_penalty"),
        "train.deterministic",
    },
    "llama-factory": {"eval.samples", "data.format", "template.file", "chat.min_p", "method.target_experts", *_SPIKES},
    "unsloth": {
        *_SPIKES,
        *("data.eval", "data.eval_share", "data.columns", "data.weights", "template.name", "template.file"),
        "template.variables",
        *("method.trainable_layers", "method.trainable_end", "method.loraplus_ratio", "method.neftune_alpha"),
        *("train.objective", "train.beta", "train.dpo_loss", "train.desirable_weight", "train.undesirable_weight"),
        *("train.max_grad_norm", "train.precision", "train.compile", "memory.liger", "eval.baseline"),
        *("eval.exact_match", "eval.samples", "eval.patience", "checkpoint.keep", "checkpoint.final"),
        *("hardware.device", "chat.max_new_tokens", "chat.repetition_penalty", "train.deterministic"),
        "method.target_experts",
        *("distributed.strategy", "distributed.zero_stage", "distributed.offload", "distributed.timeout"),
    },
}
#: Values of a choice that a table of names does not reach, and why.
NO_SUCH_VALUE: dict[tuple[str, str], set[str]] = {
    # LLaMA-Factory's model maker writes qwen; the others have no templates by these names.
    ("axolotl", "template.name"): {"mistral", "zephyr", "vicuna"},
    ("unsloth", "data.format"): {"prompt_completion", "segments", "tokens", "preference", "kto"},
    ("llama-factory", "method.init"): {"loftq"},
    ("llama-factory", "train.deterministic"): {"fast"},
}


def set_by(tool: Tool) -> set[str]:
    """The options that the keys of a tool may set."""
    found: set[str] = set()
    for rule in tool.table.values():
        if isinstance(rule, Copy):
            found.add(rule.option)
        elif not isinstance(rule, Missing):
            found.update(rule.options)
    return found


def ending(gap: Gap, sayable: Iterable[str] = SAYABLE) -> list[str]:
    """What the configuration can say and a gap says that it cannot."""
    return [name for name in sayable if any(fnmatchcase(name, pattern) for pattern in gap.ended_by)]


@cases("gap", Gap, ids=lambda gap: gap.name)
def test_nothing_that_the_schema_has_is_denied(gap: Gap) -> None:
    assert ending(gap) == [], f"{gap.name} denies them: carry its keys over, in the tables of the tools"


@cases("gap", Gap, ids=lambda gap: gap.name)
def test_a_gap_can_be_ended_and_is_of_use(gap: Gap) -> None:
    assert gap.sentence.endswith(".")
    assert gap.ended_by, "an option that nobody can name is no reason"
    for pattern in gap.ended_by:
        section, dot, key = pattern.partition(".")
        assert dot, pattern
        assert key.strip("*"), f"{pattern} would be ended by any option"
        assert section in sections() or section in NEW_SECTIONS, pattern
        if "=" in key and section != "*":
            name = pattern.partition("=")[0]
            assert any(option.name == name and option.choices for option in options()), f"{pattern}: no such choice"
    used = {rule.gap for tool in EVERY for rule in tool.table.values() if isinstance(rule, Missing)}
    assert gap in used or gap in IN_RULES, "no key has this reason"


@cases(
    ("gap", "name"),
    [
        (Gap.COMPILER, "train.compile_mode"),
        (Gap.OPTIMIZER, "train.optimizer=muon"),
        (Gap.SCHEDULE_SETTINGS, "train.min_learning_rate"),
        (Gap.EXPORT, "export.gguf"),
        (Gap.PARALLEL, "distributed.tensor_parallel"),
        (Gap.REDUCTION, "distributed.bucket_mb"),
        (Gap.SMOOTHING, "train.label_smoothing"),
        (Gap.CHAT_SAMPLING, "chat.num_beams"),
        (Gap.OTHER_MODULES, "method.modules_to_save"),
    ],
)
def test_an_option_that_would_come_ends_its_gap(gap: Gap, name: str) -> None:
    assert ending(gap, [*SAYABLE, name]) == [name]


@cases("tool", EVERY, ids=lambda tool: tool.kind)
def test_every_option_is_set_by_a_key_or_has_none(tool: Tool) -> None:
    """A new option of the schema is looked for among the keys of each tool."""
    without = set(NOBODY_SAYS) | ONE_DOES_NOT_SAY[tool.kind]
    found = set_by(tool)
    names = {option.name for option in options()}
    assert without <= names
    assert not without & found, "these have a key after all"
    assert names - found - without == set(), f"which keys of {tool.title} say these?"


@cases("tool", EVERY, ids=lambda tool: tool.kind)
def test_every_value_of_a_choice_has_a_name_there(tool: Tool) -> None:
    choices = {option.name: set(option.choices) for option in options()}
    for rule in tool.table.values():
        if isinstance(rule, Choice):
            theirs = {*rule.same.values(), *(value for value, _ in rule.near.values()), rule.otherwise[0], rule.absent}
            without = NO_SUCH_VALUE.get((tool.kind, rule.option), set())
            assert choices[rule.option] - theirs - without <= {"auto"}, rule.option


#: Names of options so common that a key may well end in one and mean something else.
COMMON = {
    *("alpha", "batch_size", "beta", "columns", "device", "dropout", "epochs", "eval", "format", "keep", "max_length"),
    *("max_new_tokens", "name", "offload", "optimizer", "port", "precision", "processes", "project", "rank", "seed"),
    *("special_tokens", "strategy", "system", "timeout"),
    *("target_modules", "temperature", "top_k", "top_p", "train", "warmup", "weights"),
}


@cases("tool", EVERY, ids=lambda tool: tool.kind)
def test_no_denied_key_is_called_as_an_option_is(tool: Tool) -> None:
    """A second look that does not rest on what the gaps say: keys that end in the name of an option."""
    names = {option.key for option in options()} - COMMON
    denied = {key for key, rule in tool.table.items() if isinstance(rule, Missing)}
    assert {key for key in denied for name in names if f"_{key.rpartition('.')[2]}".endswith(f"_{name}")} == set()
