"""Tokenise with `datasets.map(num_proc=2, batched=True)`, as its documentation shows.

Prints one JSON line: seconds of the map alone, tokens, and the highest resident memory of any one process.
"""

import argparse
import json
import resource
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--documents", type=Path, required=True, help="JSONL with a `text` field")
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    from datasets import load_dataset
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(args.tokenizer))
    data = load_dataset("json", data_files=str(args.documents), split="train", cache_dir=str(args.cache))
    start = time.perf_counter()
    done = data.map(
        lambda batch: {"input_ids": tokenizer(batch["text"])["input_ids"]},
        batched=True,
        num_proc=2,
        remove_columns=data.column_names,
    )
    seconds = time.perf_counter() - start
    tokens = sum(len(chunk) for batch in done.iter(64) for chunk in batch["input_ids"])
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "tokens": tokens, "peak_rss_bytes": peak * 1024}), flush=True)


if __name__ == "__main__":
    main()
