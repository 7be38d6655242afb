"""The options of the configuration, each declared once: its type, range and default.

The app's form, ``--set section.key=value``, the validation messages, the JSON Schema and the reference page all read
these declarations; unit, audience and help of each option are in ``manual.toml``. An option that the engine does not
implement is not declared.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import tomli
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.fields import FieldInfo

from core.config.choices import ColumnRole, FileType, Objective, Overlong, RefusalCode, Supervise, Tracker

MANUAL = Path(__file__).with_name("manual.toml")
#: Audience of an option. ``basic``: listed by the app at once; ``expert``: listed with all options; ``file``: seldom
#: needed, listed where it is set, and found by its name.
Audience = Literal["basic", "expert", "file"]


@dataclass(frozen=True)
class Entry:
    """The manual entry of one option, beyond its declaration; each part on one line.

    Args:
        help: The option in a sentence.
        unit: Unit of its value; empty without one.
        audience: Its audience.
        about: Its effect, when to change it, usual values; a few sentences.
        memory: Its cost in memory or on disk, in a phrase; empty where it is negligible.
        time: Its cost in time, likewise.
        source: The paper or specification that it comes from; empty where there is none.
    """

    help: str
    unit: str = ""
    audience: Audience = "expert"
    about: str = ""
    memory: str = ""
    time: str = ""
    source: str = ""


@functools.cache
def manual() -> Mapping[str, Entry]:
    """The manual: option name to its entry."""
    sections = tomli.loads(MANUAL.read_text(encoding="utf-8"))
    return {
        f"{section}.{key}": Entry(**{part: cast(Any, " ".join(text.split())) for part, text in parts.items()})
        for section, keys in sections.items()
        for key, parts in keys.items()
    }


#: Text of file, model and run names, which cannot contain NUL.
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00]*$")]
#: The name of a column, which may begin or end with a space.
Column = Annotated[str, StringConstraints(min_length=1)]
Paths = Text | Annotated[list[Text], Field(min_length=1)]
#: Any text of valid characters.
Prose = Annotated[str, StringConstraints(min_length=0)]
#: A text that ends an answer, which may be a blank or a line break.
Stop = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Weight = Annotated[float, Field(gt=0, le=1000)]
#: Rows of a file, by line: ``FILE:LINE`` or ``FILE:FROM-TO``; see :mod:`core.data.exclusion`.
RowRange = Annotated[str, StringConstraints(strip_whitespace=True, pattern=r"^[^\x00]+:[0-9]{1,12}(-[0-9]{1,12})?$")]

#: The largest number of steps and rows; beyond 64 bits a number is of no use to anyone who reads the run.
_MOST = 1_000_000_000
#: The name of a variable of a chat template, and its value.
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")]
VariableValue = (
    bool
    | Annotated[int, Field(ge=-_MOST, le=_MOST)]
    | Annotated[float, Field(allow_inf_nan=False)]
    | Annotated[str, StringConstraints(max_length=1000)]
)
#: Values of method.name that train the model's own weights and make no adapter.
WEIGHT_METHODS = frozenset({"full", "freeze"})


class Section(BaseModel):
    """A section of the configuration file. Unknown keys and values of another type are errors: no text is read as a
    number, and true is not 1."""

    model_config = ConfigDict(extra="forbid", validate_default=True, strict=True, frozen=True)


class ModelSection(Section):
    """The base model."""

    base: Text = "smollm2-135m-instruct"
    keep_16bit: Literal["auto"] | list[Text] | None = None
    adapter: Text | None = None


class DataSection(Section):
    """Training rows and held-out rows."""

    train: Paths
    eval: Paths | None = None
    eval_share: float = Field(0.0, ge=0, le=0.5)
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "segments", "text", "tokens", "preference", "kto"
    ] = "auto"
    columns: dict[ColumnRole, Column] | None = None
    weights: list[Weight] | None = None
    corrections: Text | None = None
    supervise: Supervise = "assistant"
    special_tokens: Literal["drop", "keep"] = "drop"
    overlong: Overlong = "drop"
    exclude: RowRange | list[RowRange] | None = None
    allow: RefusalCode | list[RefusalCode] | None = None

    @property
    def excluded(self) -> tuple[str, ...]:
        """The entries of ``exclude``."""
        return _listed(self.exclude)


class TemplateSection(Section):
    """Chat template: a conversation as text."""

    name: Literal["chatml", "qwen", "llama3", "mistral", "gemma", "phi3", "zephyr", "alpaca", "vicuna"] | None = None
    file: Text | None = None
    variables: dict[Variable, VariableValue] | None = None


class MethodSection(Section):
    """The trained parameters."""

    name: Literal["qlora", "lora", "full", "freeze"] = "qlora"
    trainable_layers: int = Field(2, ge=1, le=1000)
    trainable_end: Literal["last", "first"] = "last"
    rank: int = Field(16, ge=1, le=1024)
    alpha: float = Field(32.0, gt=0, le=8192)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[Text] = "all-linear"
    target_experts: Literal["auto", "on", "off"] = "auto"
    init: Literal["default", "pissa", "loftq"] = "default"
    dora: bool = False
    rslora: bool = False
    loraplus_ratio: float | None = Field(None, ge=1, le=256)
    neftune_alpha: float | None = Field(None, gt=0, le=100)
    train_for: FileType | None = None


class TrainSection(Section):
    """The optimization."""

    objective: Objective = "sft"
    beta: float = Field(0.1, gt=0, le=100)
    dpo_loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    desirable_weight: float = Field(1.0, gt=0, le=100)
    undesirable_weight: float = Field(1.0, gt=0, le=100)
    epochs: float = Field(1.0, gt=0, le=1000)
    max_steps: int | None = Field(None, ge=1, le=_MOST)
    max_hours: float | None = Field(None, gt=0, le=10_000)
    max_energy_wh: float | None = Field(None, gt=0, le=10_000_000)
    on_loss_spike: Literal["warn", "skip", "rollback", "stop"] = "warn"
    loss_spike: float = Field(8.0, ge=0, le=1000)
    loss_spike_patience: int = Field(3, ge=1, le=1000)
    loss_limit: float | None = Field(None, gt=0, le=1_000_000)
    batch_size: int = Field(8, ge=1, le=65536)
    micro_batch_size: int | None = Field(None, ge=1, le=65536)
    max_length: int = Field(2048, ge=8, le=1_048_576)
    learning_rate: float = Field(2e-4, gt=0, le=1)
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_8bit"] = "adamw"
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.05, ge=0, le=100_000)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, ge=0)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    packing: bool = False
    share_prefix: bool = True
    fused_layers: bool = True
    compile: bool = False
    deterministic: Literal["auto", "strict", "fast"] = "auto"
    seed: int = Field(42, ge=0, le=2**31 - 1)


class MemorySection(Section):
    """Savings of memory."""

    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    activation_offload: Literal["auto", "on", "off"] = "auto"
    offload_experts: Literal["auto", "on", "off"] = "auto"
    optimizer_in_backward: Literal["auto", "on", "off"] = "auto"
    keep_dequantized: Literal["auto", "on", "off"] = "auto"
    liger: Literal["auto", "off"] = "auto"


class EvalSection(Section):
    """Measuring on held-out rows."""

    every_steps: int | None = Field(None, ge=1, le=_MOST)
    every_epochs: float | None = Field(None, gt=0, le=1000)
    baseline: bool = False
    exact_match: bool = False
    prompts: Text | None = None
    samples: int = Field(3, ge=0, le=100)
    patience: int | None = Field(None, ge=1, le=_MOST)
    min_delta: float = Field(0.0, ge=0, le=100)
    max_rows: int = Field(200, ge=1, le=_MOST)
    probe: bool = True
    gate: Text | Annotated[list[Text], Field(min_length=1)] | None = None


class CheckpointSection(Section):
    """Saving, so that a run can go on after anything."""

    every_steps: int | None = Field(None, ge=1, le=_MOST)
    keep: int = Field(3, ge=1, le=1000)
    middle: bool = True
    index: bool = False
    final: Literal["last", "best"] = "last"


class HardwareSection(Section):
    """Device, its limits and its cost."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpu: Text | None = None
    tariff: float | None = Field(None, ge=0, le=1_000_000)
    currency: Text | None = None
    temperature_limit_c: float | None = Field(None, ge=40, le=110)
    memory_temperature_limit_c: float | None = Field(None, ge=40, le=120)
    power_limit_w: float | None = Field(None, ge=10, le=2000)
    host_memory_limit_percent: float | None = Field(None, ge=10, le=100)
    disk_free_min_gb: float | None = Field(None, ge=0, le=1_000_000)


class NightSection(Section):
    """Deadline, energy and quiet hours."""

    deadline: Text | None = None
    energy_kwh: float | None = Field(None, gt=0, le=100_000)
    quiet_hours: Text | None = None
    quiet_power_w: float | None = Field(None, ge=10, le=2000)


class ParkingSection(Section):
    """Causes for giving the device back to others; the run goes on by itself when they are over."""

    programs: Text | Annotated[list[Text], Field(min_length=1)] | None = None
    memory_gb: float | None = Field(None, gt=0)
    hours: Text | Annotated[list[Text], Field(min_length=1)] | None = None
    calm: float = Field(30.0, ge=0, le=86_400)

    @property
    def names(self) -> tuple[str, ...]:
        """The programs."""
        return _listed(self.programs)

    @property
    def spans(self) -> tuple[str, ...]:
        """The spans of the day, each as it is written."""
        return _listed(self.hours)


def _listed(value: str | list[str] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


class DistributedSection(Section):
    """More than one card, on one machine or several."""

    strategy: Literal["auto", "none", "replicate", "fsdp2", "deepspeed"] = "auto"
    gpus: Text | Annotated[list[Text], Field(min_length=1, max_length=64)] | None = None
    processes: int | None = Field(None, ge=1, le=64)
    zero_stage: int = Field(2, ge=1, le=3)
    offload: Literal["none", "optimizer", "all"] = "none"
    hosts: Text | Annotated[list[Text], Field(min_length=1, max_length=64)] | None = None
    address: Text | None = None
    port: int = Field(29_500, ge=1024, le=65_535)
    timeout: float = Field(600.0, ge=5, le=86_400)
    restarts: int = Field(3, ge=0, le=1000)

    @property
    def named_gpus(self) -> tuple[str, ...]:
        """The cards that are named, each as it is written."""
        return _listed(self.gpus)

    @property
    def other_hosts(self) -> tuple[str, ...]:
        """The other machines."""
        return _listed(self.hosts)


class TrackingSection(Section):
    """Trackers besides the run directory."""

    tools: Tracker | list[Tracker] | None = None
    project: Text = "localtune"
    name: Text | None = None
    wandb_mode: Literal["offline", "online"] = "offline"

    @property
    def asked(self) -> frozenset[Tracker]:
        """The trackers that are asked for."""
        return frozenset([self.tools] if isinstance(self.tools, str) else self.tools or [])


class ChatSection(Section):
    """Talking to the model."""

    system: Prose = ""
    max_new_tokens: int = Field(256, ge=1, le=32768)
    temperature: float = Field(0.0, ge=0, le=5)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=1_000_000)
    min_p: float = Field(0.0, ge=0, lt=1)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    seed: int | None = Field(None, ge=0, le=4_294_967_295)
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=16)] | None = None


class Config(Section):
    """A whole configuration; everything but ``data.train`` has a default."""

    model: ModelSection = ModelSection()
    data: DataSection
    template: TemplateSection = TemplateSection()
    method: MethodSection = MethodSection()
    train: TrainSection = TrainSection()
    memory: MemorySection = MemorySection()
    eval: EvalSection = EvalSection()
    checkpoint: CheckpointSection = CheckpointSection()
    hardware: HardwareSection = HardwareSection()
    night: NightSection = NightSection()
    parking: ParkingSection = ParkingSection()
    distributed: DistributedSection = DistributedSection()
    tracking: TrackingSection = TrackingSection()
    chat: ChatSection = ChatSection()

    def with_options(self, **sections: Mapping[str, Any]) -> Config:
        """The configuration with some options changed, by section; their values are not validated."""
        return self.model_copy(
            update={name: getattr(self, name).model_copy(update=values) for name, values in sections.items()}
        )


@dataclass(frozen=True)
class Option:
    """An option with the attributes of its declaration."""

    section: str
    key: str
    type: Literal["text", "paths", "integer", "number", "boolean", "choice", "list", "numbers", "table"]
    manual: Entry
    """The help, short and long: effect, cost and source."""
    help: str
    unit: str
    audience: Audience
    required: bool
    optional: bool
    """True if it may be absent."""
    default: Any
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: bool = False
    """True if the minimum itself is excluded."""
    below: bool = False
    """True if the maximum itself is excluded."""
    closed: bool = False
    """True if a list accepts only the choices."""

    @functools.cached_property
    def name(self) -> str:
        """The name of the option: ``section.key``."""
        return f"{self.section}.{self.key}"


def sections() -> dict[str, type[Section]]:
    """The sections: name to declaration, in the order of the file."""
    found: dict[str, type[Section]] = {}
    for name, field in Config.model_fields.items():
        found[name] = cast(type[Section], field.annotation)
    return found


def _kind(annotation: Any) -> tuple[Any, bool, tuple[str, ...], str]:
    """Unfold an annotation into (scalar type, may be None, choices or keys, list, numbers, table or nothing)."""
    optional, choices, many, scalar = False, (), "", None
    arms = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for arm in arms:
        if arm is type(None):
            optional = True
        elif get_origin(arm) is Literal:
            choices = get_args(arm)
        elif get_origin(arm) is dict:
            key = get_args(arm)[0]
            many, choices = "table", get_args(key) if get_origin(key) is Literal else ()
        elif get_origin(_scalar(arm)) is list:
            many = "numbers" if _scalar(get_args(_scalar(arm))[0]) is float else "list"
        else:
            scalar = _scalar(arm)
    return scalar, optional, choices, many


def _is_closed(annotation: Any) -> bool:
    """True if an annotation accepts a list whose items are choices."""
    return any(get_origin(arm) is list and get_origin(get_args(arm)[0]) is Literal for arm in get_args(annotation))


def _scalar(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _describe(section: str, key: str, field: FieldInfo) -> Option:
    scalar, optional, choices, many = _kind(field.annotation)
    kind: Any = "text"
    if many == "list":
        kind = "list" if choices else "paths"
    elif many:
        kind = many
    elif choices:
        kind = "choice"
    elif scalar is bool:
        kind = "boolean"
    elif scalar is int:
        kind = "integer"
    elif scalar is float:
        kind = "number"
    bounds: dict[str, float] = {}
    for constraint in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            value = getattr(constraint, name, None)
            if isinstance(value, (int, float)):
                bounds[name] = value
    entry = manual()[f"{section}.{key}"]
    return Option(
        section=section,
        key=key,
        type=kind,
        manual=entry,
        help=entry.help,
        unit=entry.unit,
        audience=entry.audience,
        required=field.is_required(),
        optional=optional,
        default=None if field.is_required() else field.default,
        choices=choices,
        minimum=bounds.get("ge", bounds.get("gt")),
        maximum=bounds.get("le", bounds.get("lt")),
        above="gt" in bounds,
        below="lt" in bounds,
        closed=_is_closed(field.annotation),
    )


@functools.cache
def _by_name() -> dict[str, Option]:
    described = (
        _describe(section, key, field)
        for section, declaration in sections().items()
        for key, field in declaration.model_fields.items()
    )
    return {option.name: option for option in described}


def options() -> Iterator[Option]:
    """All options in the order of the file."""
    yield from _by_name().values()


def full_name(key: str) -> str:
    """The name ``section.key`` of an option whose key alone is given, if only one option has it; else unchanged."""
    key = key.strip()
    found = [option.name for option in options() if option.key == key]
    return found[0] if len(found) == 1 else key


def find_option(name: str) -> Option | None:
    """The option with the name ``section.key``, or None."""
    return _by_name().get(name)
