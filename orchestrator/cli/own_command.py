"""This program, started once more in the background."""

import subprocess
import sys
from collections.abc import Sequence
from typing import BinaryIO


def start_detached(arguments: Sequence[str], output: BinaryIO) -> "subprocess.Popen[bytes]":
    """`convoy ARGUMENTS` in a session of its own: signals of this terminal do not reach it. `output` gets what it
    prints. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
