"""The options of the configuration, each declared once: its type, range, default, unit and help.

The app's form, ``--set section.key=value``, the validation messages, the JSON Schema and the reference page all read
these declarations; the long help of each option is in ``manual.toml``. An option that the engine does not implement is
not declared.
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


@dataclass(frozen=True)
class Entry:
    """The manual entry of one option, beyond its declaration; each part on one line.

    Args:
        about: Its effect, when to change it, usual values; a few sentences.
        memory: Its cost in memory or on disk, in a phrase; empty where it is negligible.
        time: Its cost in time, likewise.
        source: The paper or specification that it comes from; empty where there is none.
    """

    about: str = ""
    memory: str = ""
    time: str = ""
    source: str = ""


NOTHING_SAID = Entry()


@functools.cache
def manual() -> Mapping[str, Entry]:
    """The manual: option name to its entry."""
    sections = tomli.loads(MANUAL.read_text(encoding="utf-8"))
    return {
        f"{section}.{key}": Entry(**{part: " ".join(text.split()) for part, text in parts.items()})
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


#: Audience of an option. ``basic``: listed by the app at once; ``expert``: listed with all options; ``file``: seldom
#: needed, listed where it is set, and found by its name.
Audience = Literal["basic", "expert", "file"]


def _option(
    default: Any,
    help: str,  # noqa: A002
    *,
    unit: str = "",
    audience: Audience = "expert",
    **constraints: Any,
) -> Any:
    """Declare one option."""
    return Field(default, description=help, json_schema_extra={"unit": unit, "audience": audience}, **constraints)


class Section(BaseModel):
    """A section of the configuration file. Unknown keys and values of another type are errors: no text is read as a
    number, and true is not 1."""

    model_config = ConfigDict(extra="forbid", validate_default=True, strict=True, frozen=True)


class ModelSection(Section):
    """The base model."""

    base: Text = _option(
        "smollm2-135m-instruct",
        "Model to tune: a directory, a GGUF file or the name of a prepared model.",
        audience="basic",
    )
    keep_16bit: Literal["auto"] | list[Text] | None = _option(
        None, "Layers that qlora leaves in 16 bit: names and patterns, or auto for the most sensitive; absent: none."
    )


class DataSection(Section):
    """Training rows and held-out rows."""

    train: Paths = _option(
        ...,
        "Training rows: a file, a directory of files, an entry like dataset_info.json#name, or a list.",
        audience="basic",
    )
    eval: Paths | None = _option(
        None, "Rows kept out of training, to measure on: a file, a directory, an entry, or a list.", audience="basic"
    )
    eval_share: float = _option(
        0.0,
        "Share of the training rows to hold out and measure on; rows that are alike stay together.",
        ge=0,
        le=0.5,
        audience="basic",
    )
    format: Literal[
        "auto", "messages", "sharegpt", "alpaca", "prompt_completion", "segments", "text", "tokens", "preference", "kto"
    ] = _option("auto", "Format of a row; auto decides by the columns and shows the evidence.")
    columns: dict[ColumnRole, Column] | None = _option(
        None, 'Columns by hand, as {user = "question", assistant = "answer"}; absent: by the format.'
    )
    weights: list[Weight] | None = _option(
        None, "How often the rows of each entry of data.train are used in an epoch: 0.5 is half of them, 2 is twice."
    )
    supervise: Supervise = _option(
        "assistant",
        "Learned part of a conversation: the assistant's turns, its last one, or the whole text; "
        "a message's train flag overrides it.",
    )
    special_tokens: Literal["drop", "keep"] = _option(
        "drop",
        "Rows whose messages write special tokens such as <|im_end|>: drop them, or keep them and let them act so.",
    )
    overlong: Overlong = _option(
        "drop", "Rows longer than train.max_length: dropped, cut at the end, or refused; always counted."
    )
    allow: RefusalCode | list[RefusalCode] | None = _option(
        None, "Findings of the data check that a run may start with; absent: it is refused."
    )


class TemplateSection(Section):
    """Chat template: a conversation as text."""

    name: Literal["chatml", "qwen", "llama3", "mistral", "gemma", "phi3", "zephyr", "alpaca", "vicuna"] | None = (
        _option(None, "A chat template by name, for a model that has none; alpaca and vicuna suit every tokenizer.")
    )
    file: Text | None = _option(None, "A Jinja chat template that replaces the model's own.")
    variables: dict[Variable, VariableValue] | None = _option(
        None, "Values of the chat template's variables, as {enable_thinking = false}; absent: the template's own."
    )


class MethodSection(Section):
    """The trained parameters."""

    name: Literal["qlora", "lora", "full", "freeze"] = _option(
        "qlora",
        "qlora, lora: adapters on a 4-bit or 16-bit base; full: all weights; freeze: some layers.",
        audience="basic",
    )
    trainable_layers: int = _option(2, "How many layers freeze trains.", unit="layers", ge=1, le=1000)
    trainable_end: Literal["last", "first"] = _option("last", "Which layers freeze trains: the last or the first ones.")
    rank: int = _option(
        16, "Rank of the adapters: more is more capacity and more memory.", ge=1, le=1024, audience="basic"
    )
    alpha: float = _option(32.0, "Scale of the adapters: the update is multiplied by alpha / rank.", gt=0, le=8192)
    dropout: float = _option(0.0, "Share of adapter inputs dropped in training.", ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[Text] = _option(
        "all-linear", "Layers that get adapters: all-linear, or a list of module names and patterns."
    )
    target_experts: Literal["auto", "on", "off"] = _option(
        "auto", "Adapters on the experts of a mixture; auto puts them there where they stay small beside the experts."
    )
    init: Literal["default", "pissa", "loftq"] = _option(
        "default", "Start of the adapters: no effect; main directions of the weights; correction of the 4-bit error."
    )
    dora: bool = _option(False, "Weight-decomposed adapters (DoRA): slower, sometimes better at low rank.")
    rslora: bool = _option(False, "Scale by alpha / sqrt(rank) (rsLoRA): steadier at high rank.")
    loraplus_ratio: float | None = _option(
        None,
        "Learning rate of the adapters' second matrices by that of the first (LoRA+); absent: the same.",
        ge=1,
        le=256,
    )
    neftune_alpha: float | None = _option(
        None, "Noise on the embeddings in training (NEFTune), against learning by heart; absent: none.", gt=0, le=100
    )
    train_for: FileType | None = _option(
        None,
        "The GGUF file that the model becomes: the last third of the steps trains its weights; absent: none.",
        audience="file",
    )


class TrainSection(Section):
    """The optimization."""

    objective: Objective = _option(
        "sft",
        "What is learned: answers as they are (sft), which of two is better (dpo, orpo), or which are good (kto).",
        audience="basic",
    )
    beta: float = _option(
        0.1,
        "How strongly dpo and kto are bound to the model's beginnings; the weight of the comparison in orpo.",
        gt=0,
        le=100,
    )
    dpo_loss: Literal["sigmoid", "ipo", "hinge"] = _option("sigmoid", "Which loss of the two answers' difference.")
    desirable_weight: float = _option(1.0, "Weight of good answers in kto.", gt=0, le=100, audience="file")
    undesirable_weight: float = _option(1.0, "Weight of bad answers in kto.", gt=0, le=100, audience="file")
    epochs: float = _option(1.0, "Passes over the training rows.", gt=0, le=1000, audience="basic")
    max_steps: int | None = _option(
        None, "Stop after so many optimizer steps, whatever epochs says.", ge=1, le=_MOST, audience="basic"
    )
    max_hours: float | None = _option(
        None, "End the run, with its result, after so many hours of work.", unit="hours", gt=0, le=10_000
    )
    max_energy_wh: float | None = _option(
        None, "End the run, with its result, after so much energy of the device.", unit="Wh", gt=0, le=10_000_000
    )
    on_loss_spike: Literal["warn", "skip", "rollback", "stop"] = _option(
        "warn",
        "At a loss spike: warn; skip the step's update; go back and leave its rows out; stop at the last good step.",
    )
    loss_spike: float = _option(
        8.0,
        "How far above the last losses a step's loss is a spike, in deviations; 0: they are not compared.",
        ge=0,
        le=1000,
    )
    loss_spike_patience: int = _option(
        3,
        "Spiking steps in a row after which the run goes back or stops; with skip, the most that are skipped.",
        unit="steps",
        ge=1,
        le=1000,
        audience="file",
    )
    loss_limit: float | None = _option(
        None,
        "Loss above which a step is a spike, whatever was before; absent: no limit.",
        gt=0,
        le=1_000_000,
        audience="file",
    )
    batch_size: int = _option(8, "Rows in one optimizer step.", unit="rows", ge=1, le=65536, audience="basic")
    micro_batch_size: int | None = _option(
        None,
        "Rows at once on the device; absent: chosen, and cut smaller when memory runs out.",
        unit="rows",
        ge=1,
        le=65536,
    )
    max_length: int = _option(2048, "Longest row.", unit="tokens", ge=8, le=1_048_576, audience="basic")
    learning_rate: float = _option(2e-4, "Peak learning rate.", gt=0, le=1, audience="basic")
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "lion_8bit"] = _option(
        "adamw", "adamw is right for most runs; the others hold less memory, and lion_8bit wants a lower learning rate."
    )
    scheduler: Literal["cosine", "linear", "constant"] = _option("cosine", "How the learning rate falls after warm-up.")
    warmup: float = _option(0.05, "Warm-up: a share of all steps below 1, a number of steps from 1.", ge=0, le=100_000)
    weight_decay: float = _option(0.0, "Decoupled weight decay.", ge=0, le=1)
    max_grad_norm: float = _option(1.0, "Gradients are clipped to this norm; 0 leaves them.", ge=0)
    precision: Literal["auto", "bf16", "fp16", "fp32"] = _option(
        "auto", "Arithmetic of forward and backward; auto: bf16 where the device does it well."
    )
    packing: bool = _option(
        False, "Lay the rows of a micro-batch one behind another, without padding, and keep them apart in attention."
    )
    share_prefix: bool = _option(
        True, "Compute a common beginning of rows in a micro-batch once, such as a system prompt.", audience="file"
    )
    fused_layers: bool = _option(
        True,
        "Run adapters, norms, rotary embedding and short attention as single functions; false: as the model's own.",
        audience="file",
    )
    compile: bool = _option(
        False, "Have torch compile the model's layers: minutes at the start for less time in each step."
    )
    deterministic: Literal["auto", "strict", "fast"] = _option(
        "auto",
        "Resume bit for bit (strict) or to rounding (fast, faster on a GPU); auto: strict on a CPU, fast on a GPU.",
    )
    seed: int = _option(42, "Seed of data order, initialization and dropout.", ge=0, le=2**31 - 1)


class MemorySection(Section):
    """Savings of memory."""

    gradient_checkpointing: Literal["auto", "on", "off"] = _option(
        "auto", "Recompute activations in backward to save memory; auto: where the run would not fit otherwise."
    )
    activation_offload: Literal["auto", "on", "off"] = _option(
        "auto",
        "Keep the inputs of recomputed layers in the machine's memory; auto: where a run would not fit on a GPU.",
    )
    offload_experts: Literal["auto", "on", "off"] = _option(
        "auto",
        "Keep 4-bit experts in the machine's memory, and fetch them by layers; auto: where they do not fit on a GPU.",
    )
    optimizer_in_backward: Literal["auto", "on", "off"] = _option(
        "auto", "Update each weight as soon as its gradient is there; auto: when method.name is full.", audience="file"
    )
    keep_dequantized: Literal["auto", "on", "off"] = _option(
        "auto",
        "Dequantize 4-bit weights once and keep them so, for speed; auto: where there is plenty of memory.",
        audience="file",
    )
    liger: Literal["auto", "off"] = _option(
        "auto",
        "No effect on a new run; off: continue a run whose loss Liger's kernel summed in an earlier version.",
        audience="file",
    )


class EvalSection(Section):
    """Measuring on held-out rows."""

    every_steps: int | None = _option(
        None, "Evaluate every so many steps; absent: at the end only.", unit="steps", ge=1, le=_MOST, audience="basic"
    )
    every_epochs: float | None = _option(
        None,
        "Evaluate every so many epochs instead of steps: 0.5 is twice in a pass over the rows.",
        unit="epochs",
        gt=0,
        le=1000,
    )
    baseline: bool = _option(False, "Measure the untouched model too, before the first step.")
    exact_match: bool = _option(
        False, "Let the model answer the held-out prompts and count the answers that match; slower than the loss alone."
    )
    prompts: Text | None = _option(
        None, "A file of prompts that are answered at each evaluation: one a line, or JSONL with messages or prompt."
    )
    samples: int = _option(
        3, "Held-out questions that are answered at each evaluation where eval.prompts names no others.", ge=0, le=100
    )
    patience: int | None = _option(
        None,
        "End the run after so many evaluations in a row without a lower held-out loss; absent: never.",
        unit="evaluations",
        ge=1,
        le=_MOST,
    )
    min_delta: float = _option(
        0.0, "By how much the held-out loss must fall to count for eval.patience.", ge=0, le=100, audience="file"
    )
    max_rows: int = _option(200, "Rows of data.eval measured each time.", unit="rows", ge=1, le=_MOST)
    probe: bool = _option(
        True, "Measure a small general probe too, before, at each evaluation and at the end: it shows forgetting."
    )
    gate: Text | Annotated[list[Text], Field(min_length=1)] | None = _option(
        None, "Bar for the result, else it is refused: 'loss <= 0.9*before', or a list of bars; absent: none."
    )


class CheckpointSection(Section):
    """Saving, so that a run can go on after anything."""

    every_steps: int | None = _option(
        None,
        "Save every so many steps; absent: ten times in a run, and at the end.",
        unit="steps",
        ge=1,
        le=_MOST,
        audience="basic",
    )
    keep: int = _option(3, "Newest checkpoints kept, beside the best one and the last good one.", ge=1, le=1000)
    final: Literal["last", "best"] = _option(
        "last", "The final adapter: that of the last step, or of the lowest held-out loss."
    )


class HardwareSection(Section):
    """Device, its limits and its cost."""

    device: Literal["auto", "cuda", "cpu"] = _option("auto", "Device; auto takes the first GPU, else the CPU.")
    gpu: Text | None = _option(
        None, "Card by its number in nvidia-smi or its UUID, as text; absent: the first visible one."
    )
    tariff: float | None = _option(
        None,
        "Price of a kilowatt-hour, so that a run shows the cost of its energy; absent: no cost.",
        ge=0,
        le=1_000_000,
    )
    currency: Text | None = _option(None, "Currency of hardware.tariff, as it is shown: EUR; absent: none is named.")
    temperature_limit_c: float | None = _option(
        None,
        "Temperature of the device that is held, by resting between micro-batches; absent: none.",
        unit="°C",
        ge=40,
        le=110,
    )
    memory_temperature_limit_c: float | None = _option(
        None, "The same for the memory of the card, where its temperature is reported.", unit="°C", ge=40, le=120
    )
    power_limit_w: float | None = _option(
        None, "Average power of the device that is held; absent: none.", unit="W", ge=10, le=2000
    )
    host_memory_limit_percent: float | None = _option(
        None,
        "Memory of the machine in use from which on a checkpoint is written, and a minute later the run stopped.",
        unit="%",
        ge=10,
        le=100,
        audience="file",
    )
    disk_free_min_gb: float | None = _option(
        None, "Room on the disk of the run below which training pauses.", unit="GB", ge=0, le=1_000_000, audience="file"
    )


class NightSection(Section):
    """Deadline, energy and quiet hours."""

    deadline: Text | None = _option(
        None, 'Time of day by which the run is to be done, as "07:00"; the cheapest way there is planned.'
    )
    energy_kwh: float | None = _option(
        None,
        "Energy of the device for the run; planned for, with an early warning where it is too little.",
        unit="kWh",
        gt=0,
        le=100_000,
    )
    quiet_hours: Text | None = _option(
        None, 'Span of every day in which it is to be quiet, as "23:00-07:00"; training pauses, or see quiet_power_w.'
    )
    quiet_power_w: float | None = _option(
        None,
        "Average power in the quiet hours, so low that the fans are quiet; absent: training pauses.",
        unit="W",
        ge=10,
        le=2000,
    )


class ParkingSection(Section):
    """Causes for giving the device back to others; the run goes on by itself when they are over."""

    programs: Text | Annotated[list[Text], Field(min_length=1)] | None = _option(
        None, "Programs that the run gives the device back to while they run: a name or a list; absent: none."
    )
    memory_gb: float | None = _option(
        None, "Memory of the card held by others from which the run gives it back; absent: none.", unit="GB", gt=0
    )
    hours: Text | Annotated[list[Text], Field(min_length=1)] | None = _option(
        None, 'Spans of every day in which the device is not the run\'s: "18:00-23:00", or a list; absent: none.'
    )
    calm: float = _option(
        30.0,
        "Time without any of these after which the run takes the device back.",
        unit="s",
        ge=0,
        le=86_400,
        audience="file",
    )

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

    strategy: Literal["auto", "none", "replicate", "fsdp2", "deepspeed"] = _option(
        "auto", "How the cards share the work; auto: replicate where the model fits on each card, else fsdp2."
    )
    gpus: Text | Annotated[list[Text], Field(min_length=1, max_length=64)] | None = _option(
        None, 'Cards of the run, by number or UUID: ["0", "1"], or "all"; absent: one card, that of hardware.gpu.'
    )
    processes: int | None = _option(
        None, "Processes on each machine, one for each card; absent: as many as distributed.gpus names.", ge=1, le=64
    )
    zero_stage: int = _option(
        2,
        "DeepSpeed's stage: 1 shares optimizer states, 2 gradients as well, 3 weights as well.",
        ge=1,
        le=3,
        audience="file",
    )
    offload: Literal["none", "optimizer", "all"] = _option(
        "none", "Parts that fsdp2 and deepspeed keep in the machine's memory: optimizer states, or all shared parts."
    )
    hosts: Text | Annotated[list[Text], Field(min_length=1, max_length=64)] | None = _option(
        None, "Other machines. Refused: Slurm (train --slurm) or torchrun starts a run on several.", audience="file"
    )
    address: Text | None = _option(
        None, "Address of the first machine, for the line of torchrun that plan prints.", audience="file"
    )
    port: int = _option(29_500, "Port of that address.", ge=1024, le=65_535, audience="file")
    timeout: float = _option(
        600.0,
        "Time after which a process that does not answer is taken for lost.",
        unit="s",
        ge=5,
        le=86_400,
        audience="file",
    )
    restarts: int = _option(
        3,
        "How often the run starts again from its last checkpoint after it lost a process.",
        ge=0,
        le=1000,
        audience="file",
    )

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

    tools: Tracker | list[Tracker] | None = _option(
        None, "Trackers of the metrics: wandb, tensorboard, trackio, or a list; absent: none."
    )
    project: Text = _option("localtune", "Project that the run belongs to in a tracker.")
    name: Text | None = _option(None, "Name of the run in a tracker; absent: its id.")
    wandb_mode: Literal["offline", "online"] = _option(
        "offline", "Whether Weights & Biases keeps the run in its directory or sends it to its server."
    )

    @property
    def asked(self) -> frozenset[Tracker]:
        """The trackers that are asked for."""
        return frozenset([self.tools] if isinstance(self.tools, str) else self.tools or [])


class ChatSection(Section):
    """Talking to the model."""

    system: Prose = _option("", "System prompt; empty: the template's own alone.")
    max_new_tokens: int = _option(256, "Longest answer.", unit="tokens", ge=1, le=32768)
    temperature: float = _option(0.0, "Randomness of the answer; 0 always takes the likeliest token.", ge=0, le=5)
    top_p: float = _option(1.0, "Share of probability that is sampled from.", gt=0, le=1)
    top_k: int = _option(0, "Number of likeliest tokens that are sampled from; 0: all.", ge=0, le=1_000_000)
    min_p: float = _option(0.0, "Least probability of a sampled token, as a share of the likeliest one's.", ge=0, lt=1)
    repetition_penalty: float = _option(1.0, "Penalty on tokens that were there already; 1: none.", gt=0, le=10)
    seed: int | None = _option(None, "Seed of the draws; absent: another one each time.", ge=0, le=4_294_967_295)
    stop: Stop | Annotated[list[Stop], Field(min_length=1, max_length=16)] | None = _option(
        None, "Text that ends an answer, or a list of them; absent: the chat template's own end."
    )


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


@dataclass(frozen=True)
class Option:
    """An option with the attributes of its declaration."""

    section: str
    key: str
    type: Literal["text", "paths", "integer", "number", "boolean", "choice", "list", "numbers", "table"]
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
    manual: Entry = NOTHING_SAID
    """The long help: effect, cost and source."""

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
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return Option(
        section=section,
        key=key,
        type=kind,
        help=field.description or "",
        unit=str(extra.get("unit", "")),
        audience=cast(Audience, extra.get("audience", "expert")),
        required=field.is_required(),
        optional=optional,
        default=None if field.is_required() else field.default,
        choices=choices,
        minimum=bounds.get("ge", bounds.get("gt")),
        maximum=bounds.get("le", bounds.get("lt")),
        above="gt" in bounds,
        below="lt" in bounds,
        closed=_is_closed(field.annotation),
        manual=manual().get(f"{section}.{key}", NOTHING_SAID),
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


def find_option(name: str) -> Option | None:
    """The option with the name ``section.key``, or None."""
    return _by_name().get(name)
