"""Examples: command lines for the end of each ``--help``, by command; the app's own under an empty name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

#: By command: command lines without the program's name, each with its meaning; empty where the line says it.
EXAMPLES: Mapping[str, Sequence[tuple[str, str]]] = {
    "": (
        ("", "open what was open last, or the newest run"),
        ("faq.csv", "open the app with this data"),
        ("tickets.toml", "open the app with this configuration"),
        ("init faq.csv", "make a configuration of this data"),
        ("train faq.toml --detach", "train without the app"),
    ),
    "demo": (("demo", ""), ("demo --set train.max_steps=10 --json", "a shorter one, for a script")),
    "init": (
        ("init faq.csv", "writes faq.toml"),
        ("init faq.csv --model ~/models/Qwen2.5-7B-Instruct", "choose the base model too"),
        ("init faq.csv --aim quick-look --out -", "print it"),
        ("init --list", "the presets"),
    ),
    "train": (
        ("train faq.toml", ""),
        ("train faq.toml --set train.epochs=2 --set method.rank=32", "with other values for this run"),
        ("train faq.toml --preset auto --detach", "fill in the rest, and return at once"),
        ("train faq.toml --slurm faq.sbatch --nodes 2 --processes 4", "a batch file: eight processes on two nodes"),
    ),
    "slurm": (
        ("slurm run.toml --nodes 2 --cards-per-node 4 --time 12:00:00", "eight processes on two nodes"),
        ("slurm run.toml --output -", "print it"),
    ),
    "runs": (
        ("runs", ""),
        ("runs --sort best --filter 'tickets #keep'", "the best first"),
        ("runs --all --json", "all figures of all runs, for a script"),
    ),
    "compare": (
        ("compare tickets-1 tickets-2", ""),
        ("compare latest 'more data' --markdown both.md --csv both.csv", ""),
    ),
    "label": (
        ("label latest --name 'more data' --tag keep --note 'best so far'", ""),
        ("label tickets-1 tickets-2 --archive", "lists leave them out"),
        ("label latest --untag keep --note ''", "take labels away"),
        ("label latest", "show them"),
    ),
    "watch": (
        ("watch latest", ""),
        ("watch latest --plain", "lines only, for a pipe or a screen reader"),
        ("watch faq --json", "a line of JSON for each event"),
    ),
    "status": (
        ("status", "the live run, or else the newest"),
        ("status latest --width 60", "for tmux's status bar"),
        ("status --prometheus", "gauges of all live runs"),
    ),
    "pause": (("pause latest", ""), ("pause 20261126-203633-faq --timeout 600", "wait longer for a slow step")),
    "resume": (("resume latest", ""),),
    "park": (("park latest", "give the card to something else"),),
    "checkpoint": (("checkpoint latest", ""), ("checkpoint latest --json", "prints the directory for a script")),
    "set": (
        ("set latest train.learning_rate=1e-4", ""),
        ("set latest eval.every_steps=20 checkpoint.every_steps=100", "several at once"),
        ("set latest hardware.temperature_limit_c=78", "hold a temperature from now on"),
    ),
    "stop": (
        ("stop latest", "after a checkpoint"),
        ("stop latest --now", "without one"),
        ("stop latest --force", "kill a process that hangs"),
    ),
    "continue": (
        ("continue latest", ""),
        ("continue faq --detach", "any part of an id will do"),
        ("continue faq --checkpoints /mnt/large/faq", "its checkpoints were moved there, and linked to"),
    ),
    "queue": (
        ("queue add faq.toml --set method.rank=32", "put a run to the end"),
        ("queue start", "start the waiting runs, one after the other"),
        ("queue list", "present and waiting runs, with times"),
        ("queue sweep faq.toml --over method.rank=8,16", "a run for each value"),
        ("queue results s1", "their results"),
    ),
    "notify": (("notify", ""), ("notify --json", "for a script")),
    "rm": (
        ("rm 20261126-203633-faq", "shows its size, and asks"),
        ("rm --failed", "all that have failed"),
        ("rm faq-2 faq-3 --now --yes", "for good, without a question"),
    ),
    "trash": (
        ("trash list", ""),
        ("trash restore faq-2", ""),
        ("trash empty", "delete all of it for good"),
        ("trash empty faq-2 --yes", "one of them, without a question"),
    ),
    "track": (
        ("track latest --to tensorboard", ""),
        ("track latest --to wandb --online", "send a whole run to the server"),
    ),
    "data": (
        ("data faq.csv", ""),
        ("data faq.csv --model smollm2-135m-instruct --row 12", "row 12 as tokens, the learned ones marked"),
        ("data odd.csv --columns user=Frage,assistant=Antwort", "say which column is which"),
        ("data --config faq.toml", "the data of a configuration"),
    ),
    "import": (
        ("import axolotl.yml --out mine.toml", ""),
        ("import sft.yaml --from llama-factory", "print it, with the report"),
    ),
    "fetch": (
        ("fetch hf://Qwen/Qwen2.5-0.5B-Instruct", "a model"),
        ("fetch hf://datasets/tatsu-lab/alpaca#train", "a split of a dataset"),
    ),
    "plan": (
        ("plan faq.toml", ""),
        ("plan faq.toml --gpu-memory 24GB", "on another card"),
        ("plan faq.toml --cards 2", "on each of two cards"),
        ("plan faq.toml --set train.max_length=4096 --json", ""),
    ),
    "bits": (("bits faq.toml", ""), ("bits faq.toml --rows 64 --json", "on more rows")),
    "chat": (
        ("chat latest", ""),
        ("chat latest --prompt 'Which port does it use?'", "one answer"),
        ("chat latest --base --prompt -", "the base model; reads the question"),
        ("chat smollm2-135m-instruct", "a model without a run"),
    ),
    "verify": (
        ("verify latest", "the chain, and three intervals executed again"),
        ("verify latest --whole --head 1f71e5f8c279", "all of it, and the head that was written down when it ended"),
        ("verify latest --spans 10 --seed 7 --json", "more of them, the same ones each time, for programs"),
    ),
    "export": (
        ("export latest --to gguf", "for llama.cpp, LM Studio and others"),
        ("export latest --to gguf --quant Q4_K_M", "smaller"),
        ("export faq@120 --to merged --out ~/models/faq", "a checkpoint, for transformers and vLLM"),
        ("export faq --to ollama --json", "with a Modelfile"),
    ),
    "eval": (
        ("eval latest --against base", "on the held-out rows"),
        ("eval latest latest@40 --prompts prompts.jsonl --out table.md", "two steps of a run"),
        ("eval latest --prompts prompts.jsonl --check 'python check.py'", "scored by a program of yours"),
        ("eval latest --with lm-eval --tasks arc_easy --limit 100", "a benchmark, by another program"),
    ),
    "serve": (
        ("serve latest", "prints base URL and key, and answers until Ctrl-C"),
        ("serve faq@120 faq@240", "two checkpoints and their base"),
        ("serve latest --uds ~/faq.sock", "for programs of this user alone"),
    ),
    "schema": (("schema --out localtune.schema.json", "for an editor"), ("schema --markdown", "the reference page")),
    "doctor": (("doctor", ""), ("doctor --quick --json", "without importing torch")),
    "selftest": (
        ("selftest", "three minutes on a card, five on two cores"),
        ("selftest --report selftest.txt --json", "with a report to attach to a bug report"),
    ),
    "completion": (("completion bash", ""), ("completion zsh", ""), ("completion fish", "")),
}
