"""Gaps: the reasons why a key of another tool is not carried over, each with the options that would end it."""

from __future__ import annotations

from enum import Enum


class Gap(Enum):
    """A reason why keys of another tool are not supported.

    The value of a member is the sentence of the report, and patterns of options, separated by blanks (``section.key``
    or, for a value of a choice, ``section.key=value``; ``*`` for anything) with which the keys could be carried over. A
    test fails as soon as the schema has one of them: what the configuration can say, no table may deny.
    """

    sentence: str
    """The consequence, in a sentence."""
    ended_by: tuple[str, ...]
    """Patterns of the options that would end it; the schema has none of them."""

    def __init__(self, sentence: str, ended_by: str) -> None:
        self.sentence = sentence
        self.ended_by = tuple(ended_by.split())

    # The run: where it is written, what is told of it, how it goes on.

    OUTPUT = (
        "A run has a directory of its own; localtune-tui runs names it.",
        "*.output* *.*_dir *.directory *.overwrite*",
    )
    LOGGING = (
        "Every step is written to the run's events, and nothing leaves the machine.",
        "*.log* tracking.every* tracking.*_id",
    )
    PROFILING = (
        "The curve is in the app, and in the run's events; nothing is profiled or drawn to a file.",
        "*.plot* *.profil* *.tokens_per_second*",
    )
    TRACKERS = (
        "Only wandb, tensorboard and trackio are fed: a run writes its own log.",
        "tracking.tools=mlflow tracking.tools=comet* tracking.tools=swanlab tracking.tools=*otel*",
    )
    TRACKED = (
        "Trackers are told figures under the run's own id, from the run directory; weights stay here.",
        "tracking.*id tracking.watch* tracking.*model* tracking.*dir* tracking.space*",
    )
    ENTITY = (
        "Set WANDB_ENTITY in the environment.",
        "tracking.*entity*",
    )
    TOKENS = (
        "Tokens and keys are read from the environment, never from a file.",
        "*.*api_key* *.*hub_token* *.*_key",
    )
    HUB = (
        "Nothing is sent to a hub.",
        "*.*hub* *.*push*",
    )
    EXPORT = (
        "A trained adapter stays an adapter: nothing is merged, quantized or exported by a run.",
        "export.directory export.format *.gguf* *.merge* *.export*",
    )
    WHOLE_CHECKPOINTS = (
        "Checkpoints are whole, so that a run can go on.",
        "checkpoint.*only* checkpoint.*optimizer* checkpoint.format",
    )
    ON_DEMAND = (
        "localtune-tui checkpoint makes a live run save; no step is saved of itself beside the regular ones.",
        "checkpoint.*first* checkpoint.*trigger* checkpoint.*demand*",
    )
    RESUMING = (
        "A run goes on with localtune-tui continue; this one begins anew.",
        "*.*resume* *.*continue*",
    )
    BEST_BY_LOSS = (
        "The best step is that of the lowest held-out loss, and no other figure decides.",
        "*.*metric* *.*best_by* checkpoint.*greater*",
    )

    # The machine.

    LAUNCHER = (
        "localtune-tui train starts the processes, one on each card that distributed.gpus names, or Slurm does.",
        "*.*ray* distributed.*rank* distributed.*launcher* distributed.*backend* distributed.*tpu*",
    )
    REDUCTION = (
        "Gradients are summed over the cards once a step, by the tokens that are learned.",
        "distributed.*bucket* distributed.*buffers* distributed.*average* *.*ddp* distributed.*static*",
    )
    PARALLEL = (
        "Cards share a model as distributed.strategy says: not by tensors, sequences, experts or pipelines.",
        "*.*parallel* distributed.*tensor* distributed.*pipeline* distributed.*degree* distributed.strategy=*tensor* "
        "distributed.strategy=*pipeline* distributed.strategy=*expert*",
    )
    DEVICE = (
        "hardware.device says where it runs: a CUDA card or the CPU.",
        "hardware.device=mps hardware.device=xpu hardware.device=npu hardware.*map*",
    )
    MEMORY = (
        "Memory is found out before the first step, and a step that does not fit is cut smaller.",
        "memory.*limit* memory.max* memory.*empty* memory.*collect*",
    )
    ACTIVATIONS = (
        "Whole layers are computed again, as memory.gradient_checkpointing says, not chosen parts of them.",
        "memory.*kwargs* memory.*selective* memory.*reentrant* memory.layer_offload*",
    )
    ATTENTION = (
        "Attention is the engine's own.",
        "*.*attention* *.*attn*",
    )
    KERNELS = (
        "Kernels are the engine's own; the loss is computed in pieces anyway.",
        "*.*kernel* *.*unsloth* *.*tf32* *.*fp8* memory.*tiled* *.*cross_entropy*",
    )
    COMPILER = (
        "Layers are compiled by inductor in its default mode.",
        "*.compile_* *.compiler*",
    )
    LOADING = (
        "The model is read as it lies in its directory or in the hub's cache.",
        "model.cache* model.offload* model.dtype model.ignore* model.*rope*",
    )
    REMOTE_CODE = (
        "Code that comes with a model or a dataset is not run.",
        "*.*remote_code* *.*trainer_cls*",
    )
    DEVELOPERS = (
        "It helps nobody but a developer.",
        "*.debug* *.strict",
    )

    # The model and what is trained of it.

    MODEL_CONFIG = (
        "The model's own configuration and tokenizer are read.",
        "model.*config* model.*tokenizer* model.*processor* model.*overrides* model.kwargs",
    )
    VOCABULARY = (
        "The vocabulary stays as it is, and so do its special tokens.",
        "model.*tokens* model.*vocab* model.*embedding* template.*tokens*",
    )
    SPLIT_TOKENS = (
        "Rows that write special tokens are dropped: their text is not split into plain tokens.",
        "data.special_tokens=split* data.special_tokens=plain data.special_tokens=text",
    )
    ANSWER_END = (
        "Where an answer ends is found from the chat template.",
        "*.*eot* *.*eos* template.*stop*",
    )
    FROM_ADAPTER = (
        "Training starts from the base model, with new adapters.",
        "model.adapter* method.adapter* method.*reinit* method.start*",
    )
    OTHER_MODULES = (
        "Beside what is trained, embeddings and other modules stay as they are.",
        "method.*modules_to_save* method.*unfrozen* method.*extra* method.name=spectrum method.name=lisa",
    )
    OTHER_ADAPTERS = (
        "Adapters are LoRA on a base that is trained already.",
        "method.name=oft method.name=galore method.oft* method.*scratch* method.shift*",
    )
    UNEVEN_ADAPTERS = (
        "Adapters are LoRA on whole layers, alike everywhere.",
        "method.*pattern* method.*layers_to* method.*exclude* method.*bias* method.*relora* "
        "method.*parameters* method.*cpu*",
    )
    EMBEDDING_ADAPTERS = (
        "Embeddings have no adapters.",
        "method.*embedding* method.loraplus_embedding*",
    )
    PISSA_ITERATIONS = (
        "The decomposition is exact for small layers, else of 4 iterations.",
        "method.pissa* method.init_*",
    )
    PISSA_CONVERSION = (
        "What is saved fits the original base in any case.",
        "method.*convert* checkpoint.*convert*",
    )
    QUANTIZATION = (
        "Quantization is NF4 with double quantization, of linear layers and experts.",
        "method.*quant* model.*quant* method.*bits* method.*nf4*",
    )
    TEXT_ONLY = (
        "Only text is read, and only text models are trained.",
        "data.*image* data.*video* data.*audio* data.*media* method.*vision*",
    )
    LAYER_KINDS = (
        "All layers that target_modules names get adapters.",
        "method.*attention* method.*mlp* method.*language*",
    )

    # The optimization.

    OPTIMIZER = (
        "This optimizer is not offered: train.optimizer.",
        "train.optimizer=*galore* train.optimizer=*apollo* train.optimizer=*badam* train.optimizer=*mini* "
        "train.optimizer=*muon* train.optimizer=*dion* train.*galore* train.*apollo*",
    )
    OPTIMIZER_SETTINGS = (
        "The optimizer has its usual betas and epsilon, for all parameters alike.",
        "train.*betas* train.*beta1* train.*beta2* train.eps train.adam* train.*epsilon* train.optimizer_* train.*_lr",
    )
    SCHEDULE_SETTINGS = (
        "The schedule has no arguments of its own: a straight warm-up, then down to 0.",
        "train.scheduler_* train.*min_lr* train.*lr_min* train.*learning_rate_* train.min_*",
    )
    SMOOTHING = (
        "Labels are not smoothed.",
        "train.*smoothing*",
    )
    LOSS = (
        "The loss is the usual one: the mean over the tokens that are learned.",
        "train.loss train.loss_f* train.loss_t* train.*dft* train.*distill* train.*teacher* train.*aux* "
        "train.*diffusion*",
    )
    PREFERENCES = (
        "Preferences are learned by dpo, orpo and kto as their papers say, without additions; rewards are not.",
        "train.objective=simpo train.objective=cpo train.objective=grpo train.objective=ppo "
        "train.objective=reward* train.*ftx* train.*simpo* train.*reward* train.*reference* "
        "train.dpo_loss=simpo train.dpo_loss=bco* train.dpo_loss=robust train.dpo_*weight*",
    )

    # The data.

    PACKING_SIZES = (
        "Rows are packed within a micro-batch, without sizes of their own.",
        "train.packing_* data.packing* train.*bin_size* train.*group_size* train.*concatenat*",
    )
    PADDING = (
        "Batches are padded to their longest row.",
        "train.*pad* data.*pad*",
    )
    ORDER = (
        "Rows are batched by length, in an order that train.seed decides.",
        "*.*shuffle* *.*sampling* *.*curriculum* *.*group_by* *.*length_column* data.seed *.*order*",
    )
    ROW_LIMITS = (
        "No row is dropped for being short, or for its prompt; train.max_length holds for all.",
        "*.*min_length* *.*min_sample* *.*prompt_length* eval.max_length *.*pose*",
    )
    DUPLICATES = (
        "Equal rows are reported by localtune-tui data, not removed.",
        "data.*duplicat* data.*dedup* data.*unique*",
    )
    READING = (
        "Rows are read and tokenized before the first step.",
        "data.*stream* data.*workers* data.*cache* data.*shard* data.*process* data.*pin*",
    )
    SYSTEM_PROMPT = (
        "A row has the system prompt that it has itself.",
        "data.*system_prompt* data.*system_message* data.system data.default_* template.*system*",
    )
    TEMPLATE_FORMS = (
        "Tools, and the thoughts of earlier turns, are written as the chat template does.",
        "template.*tool* template.*preserve*",
    )

    # Measuring.

    MEASURING = (
        "Measuring is done by the loss on held-out rows, all together, in batches that fit.",
        "eval.*batch* eval.*delay* eval.*metrics* eval.*accuracy* eval.*bench* eval.*task* eval.*precision* "
        "eval.*accumul* eval.*each* eval.*beams*",
    )
    PREDICTING = (
        "Nothing is predicted by a training, beside the answers that eval.exact_match and eval.samples ask for.",
        "eval.*predict* eval.*generation* eval.*new_tokens* eval.*length*",
    )
    SAMPLE_SETTINGS = (
        "Whole questions are answered, with the likeliest tokens, up to the length that the answers of the rows have.",
        "eval.*temperature* eval.*top_* eval.*new_tokens* eval.*ratio* eval.*sampl*ing*",
    )
    BENCHMARKS = (
        "Benchmarks are not run.",
        "bench.tasks eval.*bench* eval.*task* eval.*shot*",
    )
    TRAINING = (
        "A run is a training.",
        "run.kind",
    )

    # The chat.

    CHAT_ENGINE = (
        "The chat runs on the engine of the training, in the terminal.",
        "chat.backend* chat.engine* chat.*vllm* chat.*server* chat.*port* chat.*title*",
    )
    CHAT_SAMPLING = (
        "The chat samples one answer at a time, without beams, and counts the tokens of the answer alone.",
        "chat.*length_penalty* chat.*beams* chat.max_length chat.*special*",
    )
