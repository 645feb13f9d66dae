"""The server that test processes are forked from: one for the whole pytest process, which imports the engine once."""

import multiprocessing
import multiprocessing.forkserver
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext

import pytest

from orchestrator.domain.device import device_environment


def cpu_forkserver(preload: Sequence[str]) -> ForkServerContext:
    """A context whose processes are forked from a server that has imported `preload` and sees no GPU.

    The first caller decides what is imported. The server keeps the environment that it starts with; this process's own
    is left as it was, for tests that look for a GPU.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in device_environment(0).items():
            patch.setenv(name, value)
        multiprocessing.forkserver.ensure_running()
    return context
