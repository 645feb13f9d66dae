"""What plain DeepSpeed scripts do with checkpoints of their own, for the workers of `zero_gang`."""

import argparse
import contextlib
import io
from pathlib import Path
from typing import Any

from tests.cluster.zero_gang import Setup, build, train


def deepspeed_save(setup: Setup, directory: str, before: int, after: int) -> list[float]:
    """Losses of `before` steps, `engine.save_checkpoint` under the tag `plain`, and `after` steps more."""
    from orchestrator.train.engine.engine import destroy_engine

    engine = build(setup)
    losses = train(engine, 0, before)
    engine.save_checkpoint(directory, tag="plain")
    losses += train(engine, before, after)
    destroy_engine(engine)
    return losses


def make_universal(directory: str) -> str:
    """DeepSpeed's own conversion of `directory`/plain, as a user would run it, in this process."""
    from deepspeed.checkpoint import ds_to_universal

    target = str(Path(directory) / "universal")
    arguments = argparse.Namespace(
        input_folder=str(Path(directory) / "plain"),
        output_folder=target,
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    return target


def deepspeed_load(setup: Setup, directory: str, first: int, steps: int, notes: bool) -> dict[str, Any]:
    """Load with `load_universal`, and train. With `notes` the script does what the converter's notes ask for."""
    import torch

    from orchestrator.train.convert.to_deepspeed import LOAD_KEPT, SEPARATE_STEPS
    from orchestrator.train.engine.engine import destroy_engine

    setup = setup.but(config={**setup.config, "checkpoint": {"load_universal": True}})
    if notes:
        tag = (Path(directory) / "latest_universal").read_text()
        file = Path(directory) / tag / "mp_rank_00_model_states.pt"
        setup = setup.but(prepare=LOAD_KEPT.replace("FILE", repr(str(file))))
    engine = build(setup)
    _, client = engine.load_checkpoint(directory)
    state = list(engine.optimizer.state.values())
    if notes:
        exec(SEPARATE_STEPS, {"engine": engine})
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    losses = train(engine, first, steps)
    counted = {float(s["step"]) for s in state if torch.is_tensor(s["step"])}
    rates = [float(rate) for rate in engine.get_lr()]
    seen = engine.module.get_buffer("steps_seen").tolist()
    global_steps = engine.global_steps
    destroy_engine(engine)
    return {
        "losses": losses,
        "decays": decays,
        "counted": counted,
        "rates": rates,
        "seen": seen,
        "global_steps": global_steps,
        "convoy": client.get("convoy"),
    }
