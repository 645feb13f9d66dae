"""Each rule between fields: a job that breaks it is refused at the right place, one that keeps it is not."""

import pytest

from tests.unit.spec.jobs_for_tests import BASE, load, problems_of, shown

pytestmark = pytest.mark.unit

MODEL = "  architecture: gpt2\n  config:\n    n_layer: 2\n    n_embd: 64\n    n_head: 2\n"
TOKENIZER = "tokenizer:\n  train:\n    vocab_size: 300\n"
SOURCE = '    - files: ["a.txt"]\n'
ZERO = "  stage: 1\n"
WORKERS = "  workers: 2\n"
LR = "  lr: 1e-3\n"

BROKEN = [
    # (change, line:column, words of the message)
    ((MODEL, "  config: {}\n"), "2:1", "neither `architecture` nor `pretrained`"),
    (
        ("  architecture: gpt2", "  architecture: gpt2\n  pretrained: x/y"),
        "4:3",
        "both `architecture` and `pretrained`",
    ),
    (("  architecture: gpt2", "  architecture: gpt2\n  revision: main"), "4:3", "without `model.pretrained`"),
    ((MODEL + TOKENIZER, "  pretrained: gpt2\n  config: {n_layer: 2}\n"), "4:3", "`model.config` does not go with"),
    ((MODEL, "  pretrained: gpt2\n"), "5:3", "makes new tokens"),
    ((TOKENIZER, ""), "1:1", "no tokenizer"),
    (("vocab_size: 300", "vocab_size: 300\n  pretrained: gpt2"), "9:3", "both `train` and `pretrained`"),
    (("n_layer: 2", "n_layers: 2"), "5:5", "unknown key `n_layers`"),
    (("n_layer: 2", "n_layer: '2'"), "5:14", "the text `2`, expected a whole number"),
    (("n_layer: 2", "n_layer: 0"), "5:14", "at least 1"),
    (("n_layer: 2", "layer_norm_epsilon: 1"), "5:25", "with a decimal point"),
    (("n_layer: 2", "resid_pdrop: 1.5"), "5:18", "less than 1"),
    (("n_layer: 2", "vocab_size: 9"), "5:5", "may not hold `vocab_size`"),
    (("n_layer: 2", "n_positions: 15"), "5:18", "less than `data.sequence_length`"),
    (("n_head: 2", "n_head: 3"), "6:13", "not divisible"),
    ((MODEL, MODEL.replace("n_head: 2", "n_embd_: 2")), "7:5", "unknown key `n_embd_`"),
    ((SOURCE, SOURCE + "      hub: a/b\n"), "14:7", "both `files` and `hub`"),
    ((SOURCE, "    - field: text\n"), "13:7", "neither `files` nor `hub`"),
    ((SOURCE, SOURCE + "      split: test\n"), "14:7", "goes with `hub` only"),
    ((SOURCE, "    - hub: a/b\n      format: csv\n"), "14:7", "goes with `files` only"),
    ((SOURCE, "    - hub: a/b\n      exclude: [x]\n"), "14:7", "goes with `files` only"),
    ((SOURCE, "    - hub: a b\n"), "13:12", "expected a dataset id"),
    ((SOURCE, "    - hub: a/b\n      split: 'train[:9%]'\n"), "14:14", "cannot be streamed"),
    ((SOURCE, SOURCE + "    - hub: a/b\n      weight: 1\n"), "13:7", "no `weight`"),
    (("    fraction: 0.1", "    fraction: 0.1\n    sources: [{files: [b]}]"), "17:5", "both `fraction` and `sources`"),
    (("    fraction: 0.1", "    max_samples: 5"), "15:3", "neither `fraction` nor `sources`"),
    (("    fraction: 0.1", "    sources: [{files: [b], weight: 2}]"), "16:28", "no effect"),
    (
        ("  sequence_length", "  bad_records: error\n  max_bad_fraction: 0.5\n  sequence_length"),
        "15:3",
        "`bad_records: skip` only",
    ),
    (("  steps: 100\n", ""), "17:1", "expected one of `steps`, `tokens` and `epochs`"),
    (("  steps: 100\n", "  steps: 100\n  tokens: 5\n"), "19:3", "exactly one of"),
    (("warmup_steps: 10", "warmup_steps: 101"), "21:17", "more than `train.steps` (100)"),
    (("  steps: 100\n", "  tokens: 128\n"), "21:17", "more than the 1 steps of `train.tokens`"),
    (("  validation:\n    fraction: 0.1\n", "", LR, LR + "  eval_interval_steps: 5\n"), "19:3", "nothing is held back"),
    ((LR, LR + "  schedule: constant\n  min_lr_ratio: 0.5\n"), "22:3", "never falls"),
    ((LR, LR + "  precision: fp16\n"), "21:14", "needs a GPU"),
    ((LR, LR + "  mlm_probability: 0.2\n"), "21:3", "does not go with `architecture: gpt2`"),
    ((ZERO, "  stage: 0\n  offload_optimizer: {device: cpu}\n"), "24:31", "needs stage 1 or more"),
    ((ZERO, "  stage: 2\n  offload_params: {device: cpu}\n"), "24:28", "needs stage 3"),
    ((ZERO, "  stage: 3\n  offload_params: {device: nvme}\n"), "24:28", "`nvme`, expected"),
    ((ZERO, "  stage: 2\n  offload_optimizer: {device: nvme}\n"), "24:31", "did you mean `cpu`?"),
    ((WORKERS, "  workers: {min: 3, max: 2}\n"), "25:18", "more than its `max`"),
    ((WORKERS, "  workers: 9\n"), "19:17", "less than the 9 workers"),
    (("global_batch: 8", "global_batch: 8\n  micro_batch: 5"), "20:16", "share of `global_batch` 8 is only 4"),
    ((WORKERS, WORKERS + "  memory_per_worker: 4 gigs\n"), "26:22", "expected bytes or an amount"),
    ((WORKERS, WORKERS + "  memory_per_worker: 4\n"), "26:22", "too little"),
    ((WORKERS, WORKERS + "checkpoint: {storage: out/x}\n"), "26:23", "expected an absolute path or a URL"),
    ((WORKERS, WORKERS + "checkpoint: {storage: 'ftp://h/x'}\n"), "26:23", "which is not supported"),
    ((WORKERS, WORKERS + "checkpoint: {storage: 's3://'}\n"), "26:23", "names no bucket"),
    ((WORKERS, WORKERS + "checkpoint: {storage: 's3://Bucket_/x y'}\n"), "26:23", "names no bucket"),
    ((WORKERS, WORKERS + "checkpoint: {storage: 'gs://k:s@b/x'}\n"), "26:23", "holds credentials or options"),
    ((WORKERS, WORKERS + "checkpoint: {storage: 'az://b/x?sig=s'}\n"), "26:23", "holds credentials or options"),
    ((WORKERS, WORKERS + "  custom: {GPU: 1}\n"), "26:12", "it is built into Ray"),
    ((WORKERS, WORKERS + "  custom: {'a b': 1}\n"), "26:12", "no valid resource name"),
    ((WORKERS, WORKERS + "  env: {'a b': x}\n"), "26:9", "no valid environment variable name"),
    ((WORKERS, WORKERS + "  env: {CUDA_VISIBLE_DEVICES: '1'}\n"), "26:9", "is set by Convoy for each worker"),
    ((WORKERS, WORKERS + "  env: {HF_TOKEN: hf_x}\n"), "26:9", "looks like a secret"),
    ((WORKERS, WORKERS + "cluster: {nodes: 2, address: auto}\n"), "26:11", "does not go with `cluster.address`"),
    ((WORKERS, WORKERS + "cluster: {address: somewhere}\n"), "26:20", "expected `host:port` or `auto`"),
    ((WORKERS, WORKERS + "cluster: {nodes: 1, cpus_per_node: 1}\n"), "26:36", "hold"),
    ((WORKERS, WORKERS + "recovery: {on_nan: stop, skip_around: 2}\n"), "26:26", "does not go with `on_nan: stop`"),
    ((WORKERS, WORKERS + "recovery: {loss_spike: {}}\n"), "26:12", "so no step of `train.steps` (100) would be"),
    ((WORKERS, WORKERS + "recovery: {loss_spike: {window: 100}}\n"), "26:33", "no step of `train.steps` (100)"),
    ((WORKERS, WORKERS + "  placement: strict_spread\ncluster: {nodes: 1}\n"), "26:14", "puts 2 workers"),
    ((MODEL, "  architecture: gpt_neo\n  attention: sdpa\n"), "4:14", "does not go with `architecture: gpt_neo`"),
    ((MODEL, "  architecture: mamba\n  attention: eager\n"), "4:14", "does not go with `architecture: mamba`"),
    ((MODEL, MODEL + "  attention: flash\n"), "8:14", "needs a GPU"),
    ((MODEL, MODEL + "  attention: flash\n", WORKERS, WORKERS + "  gpus_per_worker: 1\n"), "8:14", "16 bits only"),
    ((LR, LR + "  compile: blocks\n", ZERO, "  stage: 3\n"), "21:12", "does not go with `zero.stage: 3`"),
    (
        (
            "gpt2",
            "bert",
            "    n_layer: 2\n    n_embd: 64\n    n_head: 2\n",
            "    {}\n",
            WORKERS,
            WORKERS + "generate: {prompt: x}\n",
        ),
        "24:12",
        "does not go with `architecture: bert`",
    ),
]


@pytest.mark.parametrize(("change", "place", "words"), BROKEN, ids=[row[2] + "@" + row[1] for row in BROKEN])
def test_a_broken_rule_is_one_problem_at_its_place(change: tuple[str, ...], place: str, words: str) -> None:
    (text,) = shown(*zip(change[::2], change[1::2], strict=True))
    assert text.startswith(f"job.yaml:{place}: "), text
    assert words in text
    assert "\n  hint: " in text or "expected" in text


KEPT = [
    (MODEL + TOKENIZER, "  pretrained: x/y\n  revision: main\n"),
    (MODEL + TOKENIZER, "  pretrained: ./dir\ntokenizer: {pretrained: gpt2}\n"),
    ("n_layer: 2", "n_positions: 16"),
    (SOURCE, "    - hub: a/b\n      config: c\n      split: 'train[:9%]'\n      streaming: false\n"),
    (SOURCE, SOURCE + "      weight: 1\n    - hub: squad\n      weight: 2.5\n"),
    ("  steps: 100\n", "  tokens: 1e9\n"),
    ("  steps: 100\n", "  epochs: 0.5\n"),
    (LR, LR + "  optimizer: {betas: [0.9, 0.999]}\n"),
    (LR, LR + "  clip_grad_norm: null\n"),
    (ZERO, "  stage: 3\n  offload_params: {device: cpu}\n"),
    (ZERO, "  stage: 1\n  deepspeed: {zero_optimization: {overlap_comm: true}, wall_clock_breakdown: true}\n"),
    (WORKERS, WORKERS + "checkpoint: {storage: 's3://my-bucket/a/b', keep_best: 2}\n"),
    (WORKERS, WORKERS + "checkpoint: {storage: az://container}\n"),
    (WORKERS, WORKERS + "checkpoint: {storage: /mnt/all}\n"),
    (WORKERS, "  workers: {min: 1, max: 8}\n  memory_per_worker: 1.5GiB\n  custom: {rack_a: 1, 'node:x': 0.5}\n"),
    (WORKERS, WORKERS + "  env: {NCCL_SOCKET_IFNAME: eth0, TOKENS_PER_FILE: '3'}\n"),
    (WORKERS, WORKERS + "  placement: strict_pack\ncluster: {nodes: 3, cpus_per_node: 2}\n"),
    (WORKERS, WORKERS + "cluster: {address: '10.0.0.1:6379'}\n"),
    (WORKERS, WORKERS + "  gpus_per_worker: 1\n  standby: 1\n"),
    (LR, LR + "  precision: bf16\n  compile: blocks\n  tf32: false\n  deterministic: true\n  loss_chunk_tokens: 512\n"),
    (MODEL, "  architecture: gpt_neo\n  attention: eager\n"),
    ("global_batch: 8", "global_batch: 9\n  micro_batch: 5"),
]


@pytest.mark.parametrize("change", KEPT)
def test_a_kept_rule_is_no_problem(change: tuple[str, str]) -> None:
    assert shown(change) == []


def test_rules_are_judged_even_where_other_parts_are_wrong() -> None:
    texts = shown(
        ("name: tiny", "name: Tiny"),
        ("steps: 100", "steps: 100\n  epochs: 1"),
        ("lr: 1e-3", "lr: fast"),
        ("n_head: 2", "n_head: 3"),
        ("workers: 2", "workers: 9\n  speed: 1"),
    )
    assert [text.split(": ")[0] for text in texts] == [
        "job.yaml:1:7",
        "job.yaml:6:13",
        "job.yaml:19:3",
        "job.yaml:20:17",
        "job.yaml:21:7",
        "job.yaml:27:3",
    ]


def test_deepspeed_keys_that_the_spec_decides_name_the_field_to_use() -> None:
    passed = (
        "train_batch_size: 8, fp16: {}, optimizer: {}, amp: {}, stage: 2, zero_optimization: {stage: 2, overlap_com: 1}"
    )
    texts = shown((ZERO, f"  stage: 1\n  deepspeed: {{{passed}}}\n"))
    hints = [text.split("hint: ")[1] for text in texts]
    assert hints == [
        "set `train.global_batch`",
        "set `train.precision: fp16`",
        "set `train.optimizer` and `train.lr`",
        "remove it",
        "set `zero.stage`",
        "set `zero.stage`",
        "did you mean `overlap_comm`?",
    ]


@pytest.mark.parametrize(
    ("architecture", "key", "meant"),
    [
        ("gpt2", "n_layers", "n_layer"),
        ("gpt2", "hidden_size", "n_embd"),
        ("gpt2", "num_hidden_layers", "n_layer"),
        ("llama", "n_layer", "num_hidden_layers"),
        ("llama", "n_kv_heads", "num_key_value_heads"),
        ("gpt_neo", "num_hidden_layers", "num_layers"),
        ("mamba", "d_model", "hidden_size"),
        ("bert", "num_atention_heads", "num_attention_heads"),
    ],
)
def test_config_names_of_other_codes_lead_to_the_right_one(architecture: str, key: str, meant: str) -> None:
    text = BASE.replace("gpt2", architecture)
    text = text.replace("    n_layer: 2\n    n_embd: 64\n    n_head: 2\n", f"    {key}: 2\n")
    (problem,) = problems_of(text)
    assert problem.hint is not None
    assert problem.hint.startswith(f"did you mean `{meant}`?")


def test_default_sizes_take_part_in_the_division_rule() -> None:
    config = "{num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4}"
    text = BASE.replace("gpt2", "qwen2").replace("\n    n_layer: 2\n    n_embd: 64\n    n_head: 2", " " + config)
    (problem,) = problems_of(text)
    assert "`num_key_value_heads` (32, the default)" in problem.message


def test_a_huge_size_is_judged_at_once() -> None:
    assert len(shown(("n_embd: 64", "n_embd: 99999999999999999999999"))) == 1


def test_values_that_only_look_given_are_not_contradictions() -> None:
    assert load(("  steps: 100\n", "  steps: 100\n  tokens: null\n  epochs: ~\n")).train.steps == 100
