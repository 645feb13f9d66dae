"""Ten thousand broken jobs: every one ends in a job or in a SpecError that says where and what."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.spec.loading.load import decode_source, dump_job, load_text
from orchestrator.spec.spec_errors import Place, Problem, SpecError
from tests.selection import every_day

pytestmark = pytest.mark.unit

JOBS = sorted((Path(__file__).parents[3] / "jobs").glob("*.yaml"))
CASES = 10_000
CHUNKS = 20
QUICK = 4
"""Chunks of `make test`; `make soak` has the others."""
VALUES_TEXT = """
null ~ true no 0 -1 1.5 1e-4 1e400 .nan -.inf 0x1F 007 1_000 99999999999999999999999 'x' "1" "" [] {} [[]] {a:1}
[1,two] !!int &a *a <<: ${X} ${X:-1} ${ $${X} ${PATH} | > ? - : # % @ ` ! 2026-01-01 12:30 auto ../.. cpu nvme
"""
WORDS_TEXT = """
name task model architecture config pretrained tokenizer train data sources files hub weight steps tokens epochs lr
global_batch micro_batch zero stage deepspeed zero_optimization offload_params device workers min max cluster nodes
address resources custom memory_per_worker n_layer n_head bert llama validation fraction vocab_size sequence_length
"""
VALUES, WORDS = VALUES_TEXT.split(), WORDS_TEXT.split()
UNICODE = "\x00\x07\x1b\x7f\x85\xa0é\u0301\u200b\u2028\u202e\ufeff\ufffe\ud7ff\U0001f600\t\r\x0b"

Mutation = Callable[[random.Random, str], str]


def flip_bytes(rng: random.Random, text: str) -> str:
    raw = bytearray(text.encode("utf-8", "surrogateescape"))
    for _ in range(rng.randint(1, 4)):
        if raw:
            raw[rng.randrange(len(raw))] = rng.randrange(256)
    return raw.decode("utf-8", "surrogateescape")


def edit_lines(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(at, lines[at])
        case 2:
            lines[at], lines[other] = lines[other], lines[at]
        case 3:
            lines[at] = " " * rng.randint(0, 9) + lines[at].lstrip()
        case _:
            lines[at] = rng.choice("\t \v") * rng.randint(1, 3) + lines[at]
    return "\n".join(lines)


def swap_value(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    with_value = [i for i, line in enumerate(lines) if ":" in line]
    if with_value:
        at = rng.choice(with_value)
        lines[at] = lines[at].split(":")[0] + ": " + rng.choice(VALUES)
    return "\n".join(lines)


def typo_key(rng: random.Random, text: str) -> str:
    lines = text.split("\n")
    with_key = [i for i, line in enumerate(lines) if ":" in line]
    if not with_key:
        return text
    at = rng.choice(with_key)
    key, _, rest = lines[at].partition(":")
    spot = rng.randrange(len(key) + 1)
    typed = rng.choice(
        (key[:spot] + key[spot + 1 :], key[:spot] + rng.choice("xX-_ .") + key[spot:], rng.choice(WORDS))
    )
    lines[at] = f"{typed}:{rest}"
    return "\n".join(lines)


def insert_noise(rng: random.Random, text: str) -> str:
    spot = rng.randrange(len(text) + 1)
    noise = rng.choice((rng.choice(UNICODE), rng.choice(VALUES), "[" * rng.randint(1, 90), "{a: " * rng.randint(1, 90)))
    return text[:spot] + noise + text[spot:]


def truncate(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def graft(rng: random.Random, text: str) -> str:
    """A piece of one job into the middle of another, at any indentation."""
    donor = rng.choice(JOBS).read_text().split("\n")
    start = rng.randrange(len(donor))
    shift = " " * rng.randint(0, 6)
    piece = [shift + line for line in donor[start : start + rng.randint(1, 8)]]
    lines = text.split("\n")
    at = rng.randrange(len(lines) + 1)
    return "\n".join(lines[:at] + piece + lines[at:])


def random_option(rng: random.Random) -> str:
    path = ".".join(rng.choice((*WORDS, "0", "1", "[2]", "", '"x.y"')) for _ in range(rng.randint(1, 4)))
    return path + rng.choice(("=", "=", "=", "")) + rng.choice(VALUES)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bytes,
    edit_lines,
    edit_lines,
    swap_value,
    swap_value,
    typo_key,
    typo_key,
    insert_noise,
    truncate,
    graft,
)


def mutate(rng: random.Random) -> tuple[bytes, list[str]]:
    text = rng.choice(TEXTS)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5))):
        text = rng.choice(MUTATIONS)(rng, text)
    options = [random_option(rng) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
    return text.encode("utf-8", "surrogateescape"), options


COMPACT = """\
name: tiny
model: {architecture: gpt2, config: {n_layer: 2, n_embd: 64, n_head: 2}}
tokenizer: {train: {vocab_size: 300}}
data:
  sources:
    - {files: [a.txt], weight: 1}
    - hub: owner/name
      weight: 0.5
  sequence_length: 16
train: {tokens: 1e4, global_batch: 8, lr: 1e-3, optimizer: {betas: [0.9, 0.95]}}
zero:
  stage: 3
  offload_params: {device: cpu}
  deepspeed: {zero_optimization: {overlap_comm: true}}
resources: {workers: {min: 1, max: 2}, custom: {rack: 1}}
"""
# Most cases start from a short text: it is parsed faster, and a mutation hits something more often.
TEXTS = [*[COMPACT] * (3 * len(JOBS)), *(path.read_text() for path in JOBS)]


def load(raw: bytes, options: list[str]) -> tuple[Problem, ...]:
    """The problems of a job; a valid one must survive being written and read again."""
    try:
        spec = load_text(decode_source(raw, "job.yaml"), "job.yaml", options, {"PATH": "/bin"})
    except SpecError as error:
        return error.problems or (Problem(Place("job.yaml"), ""),)
    assert load_text(dump_job(spec), "dumped", (), {}) == spec
    return ()


@pytest.mark.parametrize("chunk", every_day(range(CHUNKS), *range(QUICK)))
def test_no_job_however_broken_makes_a_traceback(chunk: int) -> None:
    rng = random.Random(chunk)
    valid = 0
    for case in range(CASES // CHUNKS):
        raw, options = mutate(rng)
        problems = load(raw, options)
        valid += not problems
        lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", raw.decode("utf-8", "replace"))
        for problem in problems:
            place = problem.place
            where = (chunk, case, str(problem))
            assert problem.message.strip(), where
            assert min(place.line, place.column) >= 1, where
            assert place.file == "job.yaml" or place.file.startswith("--set "), where
            assert place.file != "job.yaml" or place.line <= len(lines) + 1, where
            assert str(problem).replace("\n  hint: ", "").isprintable(), where
            assert "pydantic" not in str(problem), where
    assert 0 < valid < CASES // CHUNKS // 2, "the mutations are too weak or too strong to test anything"
