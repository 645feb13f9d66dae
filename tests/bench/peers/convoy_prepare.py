"""Our side of the tokenising benchmark, as a process of its own: `prepare` with two tokenising processes.

Prints one JSON line: seconds of the whole preparation (scan, tokenise, write, check) and tokens.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from orchestrator.data.executor import LocalExecutor
from orchestrator.data.prepare import prepare
from orchestrator.domain.events import EventBody
from orchestrator.spec.loading.load import load_job


def ignore(body: EventBody) -> None:
    """Nobody watches."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    job = load_job(args.job)
    with LocalExecutor(workers=2) as executor:
        start = time.perf_counter()
        prepared = prepare(job.spec, job.path.parent, args.cache, executor, ignore)
        seconds = time.perf_counter() - start
    tokens = sum(source.train_tokens + source.validation_tokens for source in prepared.manifest.sources)
    print(json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
