"""Text from an exported model: continuations from a causal one, filled blanks from a masked one."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from orchestrator.domain.devices.device import CPU, CUDA, DeviceProblem
from orchestrator.domain.errors import DeviceError, UsageError, WeightsError
from orchestrator.train.engine.gpu_check import usable_device
from orchestrator.train.models.architectures import ARCHITECTURES, objective_of
from orchestrator.train.models.pretrained_weights import check_report, load_weights, saved_dtype
from orchestrator.weights.model_directory import inspect

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOP_K = 50
"""Sampling is over this many likeliest tokens (Fan et al., arXiv:1805.04833)."""
BLANK = "[MASK]"
"""Always understood as the mask token, whatever the tokenizer calls it."""
_RECURRENT = frozenset({"rwkv", "mamba"})


@dataclass(frozen=True)
class Generated:
    """`text` is the whole: the prompt and its continuation, or the prompt with its blanks filled."""

    text: str
    new_text: str
    """What the model added: the continuation, or the fillings separated by spaces."""
    new_tokens: int
    prompt_tokens: int
    """Tokens of the prompt the model saw: the last ones if it has too few positions for all."""


def generate(model_dir: Path, prompt: str, max_new_tokens: int, temperature: float, seed: int) -> str:
    """The prompt and what the model makes of it, on the CPU; see `generate_text`."""
    return generate_text(model_dir, prompt, max_new_tokens, temperature, seed).text


def generate_text(
    model_dir: Path, prompt: str, max_new_tokens: int, temperature: float, seed: int, device: str = CPU
) -> Generated:
    """Continue `prompt` by up to `max_new_tokens` tokens with the model in `model_dir` (an export).

    Temperature 0 takes the likeliest token each time; otherwise the seed decides, and the same seed gives the same
    text on the same device. An empty prompt starts a new document. A masked language model fills the mask tokens
    of the prompt instead. `device`: `cpu`, or `cuda` for the first GPU that this process sees.

    Raises UsageError if there is no model, or a masked one is given nothing to fill; DeviceError if the GPU does not
    work.
    """
    from transformers import AutoConfig

    if not (model_dir / "config.json").is_file():
        raise UsageError(f"{model_dir} holds no model: config.json is missing", hint="convoy export RUN --to DIR")
    if max_new_tokens < 1:
        raise UsageError(f"{max_new_tokens} tokens cannot be generated", hint="ask for at least 1")
    if temperature < 0:
        raise UsageError(f"a temperature of {temperature} is not possible", hint="0 is greedy, 1 samples as learned")
    config = AutoConfig.from_pretrained(model_dir, local_files_only=True)
    if objective_of(config) == "masked":
        return _fill(model_dir, config, prompt, _device(device))
    return _continue(model_dir, config, prompt, max_new_tokens, temperature, seed, _device(device))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice on faster kernels while a model loads and runs; errors still show."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _continue(
    model_dir: Path,
    config: "PretrainedConfig",
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    device: torch.device,
) -> Generated:
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _tokenizer(model_dir)
    start = [tokenizer.eos_token_id]  # documents are separated by it
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] or start
    positions = _positions(config)
    if positions is not None:
        max_new_tokens = min(max_new_tokens, max(1, positions - 1))
        ids = ids[-(positions - max_new_tokens) :]
    inputs = torch.tensor([ids], device=device)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": TOP_K} if temperature > 0 else {"do_sample": False}
    )
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, quiet_transformers(), torch.inference_mode():  # loading may draw random numbers too
        model = _load(model_dir, config, AutoModelForCausalLM).to(device).eval()
        if (model_dir / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(model_dir, local_files_only=True)
        torch.manual_seed(seed)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            **sampling,
        )
    new_ids = output[0, len(ids) :].tolist()
    new_text = tokenizer.decode(new_ids, skip_special_tokens=True)
    return Generated(prompt + new_text, new_text, len(new_ids), len(ids) if prompt else 0)


def _fill(model_dir: Path, config: "PretrainedConfig", prompt: str, device: torch.device) -> Generated:
    from transformers import AutoModelForMaskedLM

    tokenizer = _tokenizer(model_dir)
    text = prompt.replace(BLANK, tokenizer.mask_token)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    blanks = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
    if not blanks:
        raise UsageError(
            "this is a masked language model: it fills blanks and does not continue text",
            hint=f'put {BLANK} into the prompt, e.g. --prompt "import {BLANK}"',
        )
    positions = _positions(config)
    if positions is not None and len(ids) > positions:
        raise UsageError(f"the prompt has {len(ids)} tokens, the model {positions} positions", hint="shorten it")
    forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with forked, quiet_transformers(), torch.inference_mode():
        model = _load(model_dir, config, AutoModelForMaskedLM).to(device).eval()
        scores = model(torch.tensor([ids], device=device)).logits[0, blanks]
        scores[:, tokenizer.all_special_ids] = float("-inf")
        fillings = scores.argmax(dim=-1).tolist()
    for place, filling in zip(blanks, fillings, strict=True):
        ids[place] = filling
    words = " ".join(tokenizer.decode([filling]).strip() for filling in fillings)
    return Generated(tokenizer.decode(ids), words, len(fillings), len(ids))


def _load(model_dir: Path, config: "PretrainedConfig", auto_class: "type[PreTrainedModel]") -> "PreTrainedModel":
    """The model with its weights in the type they were saved in. Raises WeightsError unless the files hold them all."""
    architecture = ARCHITECTURES.get(config.model_type)
    if architecture is not None:
        base = inspect(model_dir)
        return load_weights(architecture.model_type(), config, base, saved_dtype(config, base))
    try:
        model, report = auto_class.from_pretrained(model_dir, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"the model in {model_dir} cannot be loaded: {error}") from error
    check_report(str(model_dir), report)
    return model


def _tokenizer(model_dir: Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir, local_files_only=True)


def _positions(config: "PretrainedConfig") -> int | None:
    """Tokens the model can look back on; None if there is no limit."""
    if config.model_type in _RECURRENT or config.model_type not in ARCHITECTURES:
        return None
    field = ARCHITECTURES[config.model_type].positions
    return None if field is None else getattr(config, field, None)


def _device(wanted: str) -> torch.device:
    found = usable_device(int(wanted == CUDA), 0)
    if isinstance(found, DeviceProblem):
        raise DeviceError(f"no GPU to generate on: {found.why}", hint=f"{found.hint}; or use the CPU")
    return torch.device(found.type, found.index) if found.type == CUDA else torch.device(found.type)
