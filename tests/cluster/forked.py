"""The server that test processes are forked from: one for the whole pytest process, which imports the engine once."""

import multiprocessing
import multiprocessing.forkserver
from multiprocessing.context import ForkServerContext

import pytest

from orchestrator.domain.devices.device import device_environment
from orchestrator.run.launcher import ENGINE_MODULES

ENGINE_AND_MODELS = (
    *ENGINE_MODULES,
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)
PRELOADED = (
    *ENGINE_AND_MODELS,
    "tests.cluster.zero_gang",
    "tests.cluster.frozen",  # last
)


def cpu_forkserver() -> ForkServerContext:
    """A context whose processes are forked from a server that has imported the engine and sees no GPU.

    The server keeps the environment that it starts with; this process's own is left as it was, for tests that look for
    a GPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in device_environment(0).items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context
