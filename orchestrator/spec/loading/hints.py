"""Did you mean ...: from what people type to what the spec calls it."""

import difflib
import functools
from collections.abc import Iterable

from pydantic import BaseModel

from orchestrator.spec.checks.architecture_fields import tables
from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.fields import models_of
from orchestrator.spec.spec_errors import Path, dotted

SYNONYMS: dict[str, str] = {
    "accumulation": "train.micro_batch",
    "accumulation_steps": "train.micro_batch",
    "gradient_accumulation_steps": "train.micro_batch",
    "arch": "model.architecture",
    "model_type": "model.architecture",
    "model_name": "model.pretrained",
    "model_name_or_path": "model.pretrained",
    "weights": "model.pretrained",
    "batch": "train.global_batch",
    "batch_size": "train.global_batch",
    "train_batch_size": "train.global_batch",
    "global_batch_size": "train.global_batch",
    "micro_batch_size": "train.micro_batch",
    "per_device_train_batch_size": "train.micro_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "learning_rate": "train.lr",
    "max_lr": "train.lr",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "iterations": "train.steps",
    "max_tokens": "train.tokens",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "scheduler": "train.schedule",
    "warmup": "train.warmup_steps",
    "gradient_clipping": "train.clip_grad_norm",
    "max_grad_norm": "train.clip_grad_norm",
    "grad_clip": "train.clip_grad_norm",
    "gradient_checkpointing": "train.activation_checkpointing",
    "dtype": "train.precision",
    "torch_dtype": "train.precision",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "mixed_precision": "train.precision",
    "eval_steps": "train.eval_interval_steps",
    "eval_interval": "train.eval_interval_steps",
    "weight_decay": "train.optimizer.weight_decay",
    "betas": "train.optimizer.betas",
    "eps": "train.optimizer.eps",
    "seq_len": "data.sequence_length",
    "seq_length": "data.sequence_length",
    "max_length": "data.sequence_length",
    "max_seq_length": "data.sequence_length",
    "block_size": "data.sequence_length",
    "context_length": "data.sequence_length",
    "dataset": "data.sources",
    "datasets": "data.sources",
    "path": "files",
    "paths": "files",
    "column": "field",
    "text_field": "field",
    "num_workers": "resources.workers",
    "world_size": "resources.workers",
    "gpus": "resources.gpus_per_worker",
    "num_gpus": "resources.gpus_per_worker",
    "cpus": "resources.cpus_per_worker",
    "num_cpus": "resources.cpus_per_worker",
    "memory": "resources.memory_per_worker",
    "zero_optimization": "zero",
    "zero_stage": "zero.stage",
    "offload_param": "zero.offload_params",
    "num_nodes": "cluster.nodes",
    "save_steps": "checkpoint.interval_steps",
    "save_interval": "checkpoint.interval_steps",
    "save_total_limit": "checkpoint.keep_last",
    "vocab": "tokenizer.train.vocab_size",
    "report_to": "logging",
    "trackers": "logging",
    "tracking": "logging",
    "logging_steps": "logging.interval_steps",
    "log_interval": "logging.interval_steps",
    "logging_dir": "logging.tensorboard.dir",
    "logdir": "dir",
    "log_dir": "dir",
    "run_name": "name",
    "wandb_project": "logging.wandb.project",
}
"""Names in other trainers, and the places of the fields here."""


VALUE_SYNONYMS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "adam": "adamw",
    "gptneo": "gpt_neo",
    "gpt-neo": "gpt_neo",
    "gpt3": "gpt_neo",
    "qwen": "qwen3",
    "json": "jsonl",
    "txt": "text",
    "disk": "cpu",
    "nvme": "cpu",
    "ram": "cpu",
}
"""The same for choices."""


def nearest(word: str, words: Iterable[str]) -> str | None:
    """The most similar of `words`, if any is similar enough to be what was meant."""
    choices = list(words)
    lowered = {choice.lower().replace("-", "_"): choice for choice in reversed(choices)}
    plain = word.lower().replace("-", "_")
    if plain in lowered:
        return lowered[plain]
    if len(word) > 80:
        return None
    close = difflib.get_close_matches(plain, list(lowered), n=1, cutoff=0.7)
    return lowered[close[0]] if close else None


@functools.cache
def all_fields() -> dict[str, list[Path]]:
    """Every field name of the spec and its possible places; lists are entered at index 0."""
    found: dict[str, list[Path]] = {}
    queue: list[tuple[Path, type[BaseModel]]] = [((), JobSpec)]
    for path, model in queue:
        for name, info in model.model_fields.items():
            found.setdefault(name, []).append((*path, name))
            for inner, in_list in models_of(info.annotation):
                queue.append(((*path, name, 0) if in_list else (*path, name), inner))
    return found


def hint_unknown(section: Path, key: str, names: Iterable[str]) -> tuple[str, str | None]:
    """(hint, name): what to write instead of `key` in `section`, which takes `names`; `name` if it is one of those."""
    here = list(names)
    if section == ("logging", "wandb") and key in ("api_key", "key", "token"):
        return "a job file holds no secrets: export WANDB_API_KEY, or run `wandb login` once", None
    synonym = SYNONYMS.get(key)
    if synonym:
        home, _, last = synonym.rpartition(".")
        if last in here and (not home or home == dotted(section)):
            return f"did you mean `{last}`?", last
        if home or synonym not in here:
            return f"did you mean `{synonym}`?", None
    if section == ("model",) and any(key in table["fields"] for table in tables().values()):
        return f"did you mean `model.config.{key}`?", None
    close = nearest(key, here)
    if close:
        return f"did you mean `{close}`?", close
    fields = all_fields()
    name = key if key in fields else nearest(key, fields)
    if name:
        return f"did you mean `{_shown(fields[name][0])}`?", None
    shown = dotted(section)
    return f"{f'`{shown}`' if shown else 'a job'} takes {listing(here)}", None


def _shown(path: Path) -> str:
    return dotted(tuple(part for part in path if part != 0))


def listing(names: Iterable[str]) -> str:
    """`a, b and c`, each in backticks."""
    quoted = [f"`{name}`" for name in names]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " and " + quoted[-1]
