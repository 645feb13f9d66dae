import threading
import time
from typing import Any

import pytest
import torch

from orchestrator.train.models.architectures import ARCHITECTURES, build_model
from orchestrator.train.models.compilation import compilation_reported, compile_blocks
from tests.selection import every_day
from tests.unit.train.builders import manifest_with, spec_with
from tests.unit.train.models.test_architectures import TINY

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("architecture", every_day(sorted(ARCHITECTURES), "gpt2", "bert", "mamba"))
def test_every_layer_is_compiled_in_place(architecture: str) -> None:
    model: Any = build_model(spec_with({"architecture": architecture, "config": TINY[architecture]}), manifest_with())
    names = [name for name, _ in model.named_parameters()]
    assert compile_blocks(model) == model.config.num_hidden_layers
    assert [name for name, _ in model.named_parameters()] == names
    compiled = [name for name, module in model.named_modules() if module._compiled_call_impl is not None]
    assert len({name.rpartition(".")[0] for name in compiled}) == 1, compiled


def test_the_compiler_reports_progress_while_it_is_at_work_and_only_then() -> None:
    ticks: list[float] = []
    seen: list[int] = []

    def compiler(graph: Any, _: Any) -> Any:
        seen.append(len(ticks))
        deadline_s = time.monotonic() + 10.0
        while len(ticks) < seen[0] + 3 and time.monotonic() < deadline_s:
            time.sleep(0.001)
        seen.append(len(ticks))
        return graph.forward

    with compilation_reported(lambda: ticks.append(time.monotonic()), every_s=0.005):
        assert ticks == []
        compiled = torch.compile(lambda x: x + 1, backend=compiler)
        compiled(torch.ones(3))
        began_s = time.monotonic()
        assert compiled(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert seen[1] >= seen[0] + 3
    assert sum(tick_s > began_s for tick_s in ticks) <= 1, "one may have been on its way"
    assert "convoy-compiling" not in [thread.name for thread in threading.enumerate()]
