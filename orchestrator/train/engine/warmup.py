"""Warms up a standby process: everything that a process does for the first time takes seconds, so it is done in
advance.

Modules that are imported when they are first used, tables that are built, code that is traced: all of that is done once
a model has been built, stepped and torn down. On a GPU it would occupy memory while the process waits, so only
processes that train on CPUs do it (`launcher` asks no others).
"""

import torch

from orchestrator.spec.job import JobSpec
from orchestrator.train.collectives.rendezvous import join_process_group, leave_process_group
from orchestrator.train.engine.deepspeed_config import EngineShape
from orchestrator.train.engine.engine import Stepper, build_engine, destroy_engine
from orchestrator.train.models.shares import construct_kept, keep_for
from orchestrator.train.standalone import StandaloneSession

MODEL = {"n_layer": 1, "n_embd": 8, "n_head": 1, "n_positions": 8, "vocab_size": 16}


def stage_0() -> None:
    """Rehearse ZeRO stage 0."""
    _rehearse(0)


def stage_1() -> None:
    """Rehearse ZeRO stage 1."""
    _rehearse(1)


def stage_2() -> None:
    """Rehearse ZeRO stage 2."""
    _rehearse(2)


def stage_3() -> None:
    """Rehearse ZeRO stage 3."""
    _rehearse(3)


def _rehearse(stage: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    spec = JobSpec.model_validate(
        {
            "name": "rehearsal",
            "model": {"architecture": "gpt2"},
            "data": {"sources": [{"files": ["none"]}], "sequence_length": 8},
            "train": {"steps": 1, "global_batch": 1, "lr": 1e-3},
            "zero": {"stage": stage},
        }
    )
    join_process_group(StandaloneSession(0, 1, 0, None), torch.device("cpu"))
    try:
        config = GPT2Config(**MODEL, bos_token_id=0, eos_token_id=0)
        keep = keep_for(spec, 0, 1, torch.device("cpu"))
        model = GPT2LMHeadModel(config) if keep is None else construct_kept(lambda: GPT2LMHeadModel(config), keep)
        engine = build_engine(spec, model, EngineShape(1, 1, 1, "cpu"))
        try:
            tokens = torch.zeros((1, 4), dtype=torch.long)
            stepper = Stepper(spec, engine, 1)
            stepper.backward(engine(input_ids=tokens).logits.sum(), 1)
            stepper.step()
            del stepper
        finally:
            destroy_engine(engine)
            del engine
    finally:
        leave_process_group()
