"""From text to a job: values, positions, wording, variables, overrides, files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.spec.job import JobSpec
from orchestrator.spec.loading.load import dump_job, load_job, load_text
from orchestrator.spec.loading.yaml_source import MAX_PROBLEMS
from orchestrator.spec.spec_errors import SpecError
from tests.unit.spec.jobs_for_tests import BASE, edited, load, problems_of, shown

pytestmark = pytest.mark.unit

JOBS = sorted((Path(__file__).parents[4] / "jobs").glob("*.yaml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_in_jobs_is_valid_and_names_the_schema(path: Path) -> None:
    job = load_job(path, env={})
    assert job.source.splitlines()[0] == "# yaml-language-server: $schema=job.schema.json"
    assert load_text(dump_job(job.spec), "dumped", env={}) == job.spec
    assert JobSpec.model_validate(job.spec.model_dump(mode="json")) == job.spec


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), (".5", 0.5), ("5.", 5.0), ("1", 1.0), ("+2e-3", 2e-3), ("3e0", 3.0)],
)
def test_numbers_are_numbers(written: str, value: float) -> None:
    assert load(("lr: 1e-3", f"lr: {written}")).train.lr == value


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ('"100"', "remove the quotes: `steps: 100`"),
        ("1_000", "`steps: 1000`"),
        ("1,000", "`steps: 1000`"),
        ("0100", "`steps: 100`"),
        ("100.0", "write `steps: 100`"),
        ("5k", "`steps: 5e3`"),
        ("yes", None),
        ("true", None),
        ("12:30", None),
        ("2026-01-01", None),
        ("0x1F", None),
        ("", "give `steps` a value or remove the line"),
    ],
)
def test_what_is_no_whole_number_says_what_to_write(written: str, hint: str | None) -> None:
    texts = shown(("steps: 100", f"steps: {written}"))
    if not written:  # null is the default: not given
        assert texts[0].startswith("job.yaml:17:1: `train` does not say how long to train")
        return
    assert len(texts) == 1
    assert texts[0].startswith("job.yaml:18:10: `train.steps` is ")
    assert "expected a whole number of at least 1" in texts[0]
    assert ("hint: " in texts[0]) == (hint is not None)
    assert hint is None or hint in texts[0]


def test_exponents_without_fraction_are_whole_numbers() -> None:
    assert load(("steps: 100", "steps: 1e2")).train.steps == 100


@pytest.mark.parametrize("written", ["on", "no", "yes", "off", "y"])
def test_only_true_and_false_are_truth_values(written: str) -> None:
    (text,) = shown(("lr: 1e-3", f"lr: 1e-3\n  activation_checkpointing: {written}"))
    assert "expected true or false\n  hint: write `activation_checkpointing: " in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "job.yaml:1:1: the file is empty, expected a job"),
        ("# only a comment\n", "job.yaml:1:1: the file is empty"),
        ("- a\n", "job.yaml:1:1: the file holds a list of 1 item, expected `key: value` lines"),
        ("hello\n", "job.yaml:1:1: the file holds `hello`"),
        ("name: x\n\ttask: y\n", "job.yaml:2:1: a tab is used where only spaces are allowed"),
        ("name: x\n---\nname: y\n", "job.yaml:2:1: a second YAML document"),
        ("a: " + "[" * 3000, "job.yaml:1:43: nesting is deeper than 40 levels"),
        ("a: {" * 3000, "nesting is deeper than 40 levels"),
        ("- " * 3000, "nesting is deeper than 40 levels"),
        ("a: [1, 2\nb: 3\n", "expected `,` or `]`"),
        ("a: 'x\n", "the text ends inside a quoted text"),
        ("a: b: c\n", "job.yaml:1:5: a `:` is used where no new key can start"),
        ("a: 1\nb\nc: 2\n", "job.yaml:2:1: this line has no `:`"),
        ("a: %x\n", "job.yaml:1:4: a value cannot start with `%`"),
        ("a: [**/*.py]\n", "job.yaml:1:5: a text that begins with `*` must be quoted"),
        ("a: [${X}, 2]\n", "job.yaml:1:6: a variable is unquoted inside [ ] or { }"),
        ("a: {b: ${X}}\n", "a variable is unquoted inside [ ] or { }"),
        ("a: \x07\n", "job.yaml:1:4: the character U+0007 is not allowed"),
        ('a: "\\UFFFFFFFF"\n', "job.yaml:"),
        ("a:\n  b: 1\n c: 2\n", "job.yaml:3:2: the indentation does not match"),
    ],
)
def test_text_that_is_no_job(text: str, expected: str) -> None:
    assert expected in str(problems_of(text)[0])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("steps: 100", "steps: 100\n  steps: 5"), "19:3: the key `steps` is given twice, first on line 18"),
        (("steps: 100", "steps: &s 100"), "18:10: the anchor `&s` is not supported"),
        (("steps: 100", "steps: *s"), "18:10: the alias `*s` is not supported"),
        (("steps: 100", "<<: {}\n  steps: 100"), "18:3: merge keys (`<<`) are not supported"),
        (("steps: 100", "steps: !!int 100"), "18:10: the tag `!!int` is not supported"),
        (("steps: 100", "steps: !!python/name:os.system x"), "18:10: the tag `!!python/name:os.system`"),
        (("gpt2", '"a\\0b"'), "3:17: the text holds a NUL"),
        (("gpt2", '"\\ud800"'), "3:17: the text holds a NUL or half a character"),
        (("lr: 1e-3", "lr: .nan"), "20:7: `.nan` cannot be used here"),
        (("lr: 1e-3", "lr: 1e999"), "20:7: `train.lr` is `1e999`"),
        (("steps: 100", "? [a]\n  : 1\n  steps: 100"), "18:5: a key is a list or mapping"),
    ],
)
def test_what_yaml_allows_and_a_job_does_not(change: tuple[str, str], expected: str) -> None:
    assert shown(change)[0].startswith("job.yaml:" + expected)


def test_an_expansion_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)]
    assert any("anchor" in problem.message for problem in problems_of("\n".join(lines)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("  lr: 1e-3", "  lrr: 1e-3"), "20:3: unknown key `lrr` in `train`\n  hint: did you mean `lr`?"),
        (
            ("name: tiny", "name: tiny\nlr: 1"),
            "2:1: unknown key `lr` at the top level\n  hint: did you mean `train.lr`?",
        ),
        (
            ("  lr: 1e-3", "  learning_rate: 1e-3"),
            "20:3: unknown key `learning_rate` in `train`\n  hint: did you mean `lr`?",
        ),
        (
            ("  lr: 1e-3", "  lr: 1e-3\n  workers: 2"),
            "21:3: unknown key `workers` in `train`\n  hint: did you mean `resources.workers`?",
        ),
        (("  lr: 1e-3\n", ""), "17:1: the required key `lr` is missing from `train`, expected a number greater than 0"),
        (("name: tiny\n", ""), "1:1: the required key `name` is missing from the job"),
        (("name: tiny", "name: My Job"), "1:7: `name` is `My Job`, expected lower-case letters, digits and dashes"),
        (("gpt2", "gpt-2"), "3:17: `model.architecture` is `gpt-2`, expected one of `gpt2`"),
        (("stage: 1", "stage: 4"), "23:10: `zero.stage` is `4`, expected a whole number from 0 to 3"),
        (('["a.txt"]', "a.txt"), "13:14: `data.sources[0].files` is `a.txt`, expected a list"),
        (
            ("fraction: 0.1", "fraction: 1.5"),
            "16:15: `data.validation.fraction` is `1.5`, expected a number greater than 0",
        ),
        (
            ("workers: 2", "workers: two"),
            "25:12: `resources.workers` is `two`, expected a whole number of at least 1 or a section",
        ),
        (("workers: 2", "workers: {min: 1}"), "25:3: the required key `max` is missing from `resources.workers`"),
        (("  train:\n    vocab_size: 300\n", ""), "8:11: `tokenizer` is empty, expected a section"),
        (
            ("workers: 2", "workers: 2\ncluster: {usd_per_hour: -1}"),
            "26:25: `cluster.usd_per_hour` is `-1`, expected a number from 0 to 1000000 or a section",
        ),
        (
            ("workers: 2", "workers: 2\ncluster: {usd_per_hour: {per: gpu, usd: 2}}"),
            "26:31: `cluster.usd_per_hour.per` is `gpu`, expected one of `worker`, `node`",
        ),
        (
            ("workers: 2", "workers: 2\ncluster: {usd_per_hour: {per: node, usdd: 2}}"),
            "26:37: unknown key `usdd` in `cluster.usd_per_hour`\n  hint: did you mean `usd`?",
        ),
        (
            ("workers: 2", "workers: 2\ncluster: {usd_per_hor: 2}"),
            "26:11: unknown key `usd_per_hor` in `cluster`\n  hint: did you mean `usd_per_hour`?",
        ),
        (
            ("lr: 1e-3", "lr: 1e-3\n  optimizer: {betas: [0.9]}"),
            "21:22: `train.optimizer.betas` is a list of 1 item, expected a list of 2",
        ),
        (
            ("lr: 1e-3", "lr: 1e-3\n  optimizer: {betas: [0.9, 1]}"),
            "21:28: `train.optimizer.betas[1]` is `1`, expected a number of at least 0 and less than 1",
        ),
    ],
)
def test_wrong_fields_are_told_in_words(change: tuple[str, str], expected: str) -> None:
    (text,) = shown(change)
    assert text.startswith("job.yaml:" + expected)


def test_all_problems_come_at_once_in_reading_order() -> None:
    texts = shown(("name: tiny", "name: Tiny"), ("steps: 100", "steps: 0"), ("workers: 2", "wrokers: 2"))
    assert [text.split(": ")[0] for text in texts] == ["job.yaml:1:7", "job.yaml:18:10", "job.yaml:25:3"]


def test_variables_are_filled_in_and_read_as_values() -> None:
    env = {"STEPS": "250", "DIR": "corpus"}
    spec = load(("steps: 100", "steps: ${STEPS}"), ('"a.txt"', '"${DIR}/${SUB:-x}/$${Y}.txt"'), env=env)
    assert spec.train.steps == 250
    assert spec.data.sources[0].files == ["corpus/x/${Y}.txt"]


def test_a_variable_is_a_value_never_structure() -> None:
    spec = load(('"a.txt"', '"${X}"'), env={"X": "b.txt]\ntrain: {}"})
    assert spec.data.sources[0].files == ["b.txt]\ntrain: {}"]
    assert load(("name: tiny", "name: ${X}"), env={"X": "no"}).name == "no"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("${STEPZ}", "the environment variable `STEPZ` is not set\n  hint: did you mean ${STEPS}? Otherwise export"),
        ("${STEPS", "`${STEPS` is not a variable, expected ${NAME}"),
        ("${}", "`${}` is not a variable"),
        ('"${STEPS}"', "`train.steps` is the text `5` (from `${STEPS}`), expected a whole number"),
        ("${STEPS}0", "`train.steps` is the text `50` (from `${STEPS}0`)"),
    ],
)
def test_variables_that_do_not_work(written: str, expected: str) -> None:
    (text,) = shown(("steps: 100", f"steps: {written}"), env={"STEPS": "5"})
    assert text.startswith("job.yaml:18:10: " + expected)


def test_the_standard_library_is_a_variable_unless_set() -> None:
    change = ('"a.txt"', '"${PYTHON_STDLIB}"')
    assert Path(load(change).data.sources[0].files[0], "os.py").exists()  # type: ignore[index]
    assert load(change, env={"PYTHON_STDLIB": "/x"}).data.sources[0].files == ["/x"]


def test_overrides_change_values_anywhere() -> None:
    sets = (
        "train.lr=5e-4",
        "train.steps=null",
        "train.epochs=2",
        "data.sources.0.weight=2",
        "data.sources[0].files=[x, y]",
        "resources.workers={min: 1, max: 3}",
        "checkpoint.interval_steps=7",
        'zero.deepspeed."wall_clock_breakdown"=true',
        "generate.prompt=a=b: not a mapping".replace(": ", ":"),
    )
    spec = load(sets=sets)
    assert (spec.train.lr, spec.train.steps, spec.train.epochs) == (5e-4, None, 2.0)
    assert spec.data.sources[0].files == ["x", "y"]
    assert spec.data.sources[0].weight == 2
    assert spec.resources.workers.max == 3  # type: ignore[union-attr]
    assert spec.checkpoint.interval_steps == 7
    assert spec.zero.deepspeed == {"wall_clock_breakdown": True}
    assert spec.generate.prompt == "a=b:not a mapping"


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("train.lrr=1e-3", "--set train.lrr=1e-3:1:13: unknown key `lrr` in `train`\n  hint: did you mean `lr`?"),
        ("train.lr=fast", "--set train.lr=fast:1:16: `train.lr` is `fast`, expected a number greater than 0"),
        ("train.lr", "--set train.lr:1:7: this is not an override, expected KEY=VALUE"),
        ("=1", "--set =1:1:7: this is not an override"),
        ("train..lr=1", "this is not an override"),
        ("data.sources.4.weight=1", "1:20: `data.sources` is a list and has 1 item, there is no item `4`"),
        ("name.first=x", "`name` is a single value, there is no `first` in it"),
        ("train.lr=[1", "expected `,` or `]`"),
        ("train.lr=a: b", "the value holds `key: value`, expected one value"),
        ("train.tokens=5", "--set train.tokens=5:1:13: `train` has `steps` and `tokens`, expected exactly one"),
        ("train.steps=${NOPE}", "--set train.steps=${NOPE}:1:19: the environment variable `NOPE` is not set"),
    ],
)
def test_overrides_that_do_not_work_point_into_the_option(option: str, expected: str) -> None:
    (text,) = shown(sets=(option,))
    assert expected in text
    assert text.startswith("--set ")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(BASE)
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: x\nmodel: é".encode("latin-1"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    cases = {
        tmp_path / "jbo.yaml": ":1:1: there is no such file\n  hint: did you mean",
        tmp_path: ":1:1: this is a directory",
        tmp_path / "no" / "job.yaml": "there is no directory",
        latin: ":2:8: the byte 0xe9 is not UTF-8 text",
        large: "larger than 1 MiB",
        Path("a\0b"): "the file cannot be read",
    }
    for path, expected in cases.items():
        with pytest.raises(SpecError) as caught:
            load_job(path)
        assert expected in str(caught.value)


def test_a_byte_order_mark_and_windows_line_ends_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load_job(path).spec == load()


def test_messages_cannot_play_with_the_terminal() -> None:
    (text,) = shown(("gpt2", '"\\e[31mred\\nline"'))
    assert "\x1b" not in text
    assert text.count("\n") <= 1


characters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
words = st.text(characters, max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | numbers | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words.filter(lambda w: w != "auto"), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: value != "auto")


@settings(max_examples=150, deadline=None)
@given(
    prompt=words,
    lr=st.floats(min_value=1e-300, max_value=1e300),
    files=st.lists(st.text(characters, min_size=1, max_size=12), min_size=1, max_size=3),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.999)),
    steps=st.integers(10, 10**15),
    passed=st.dictionaries(st.sampled_from(["aio", "comms_logger", "timers"]), json_values, max_size=3),
)
def test_a_job_written_and_read_again_is_the_same(
    prompt: str, lr: float, files: list[str], betas: tuple[float, float], steps: int, passed: dict[str, object]
) -> None:
    data = load().model_dump(mode="json")
    data["generate"]["prompt"] = prompt
    data["train"] |= {"lr": lr, "steps": steps}
    data["train"]["optimizer"]["betas"] = list(betas)
    data["data"]["sources"][0]["files"] = files
    data["zero"]["deepspeed"] = passed
    spec = JobSpec.model_validate(data)
    assert load_text(dump_job(spec), "dumped", env={}) == spec


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.text(alphabet="a:-[]{}&*!|>'\"%@`#\n \t?,$\\0", max_size=80))
def test_no_text_at_all_makes_a_traceback(text: str) -> None:
    assert problems_of(text)


def test_edited_base_is_valid() -> None:
    assert problems_of(edited()) == []


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (("zero:\n  stage: 1", "zero: 1"), "write `zero: {stage: 1}`"),
        (("lr: 1e-3", "lr: 1e-3\n  optimizer: adam"), "write `optimizer: {name: adamw}`"),
        (('- files: ["a.txt"]', "- a.txt"), "write `- {files: ['a.txt']}`"),
        (("lr: 1e-3", "lr: 1e-3\n  precision: bfloat16"), "did you mean `bf16`?"),
        (("steps: 100", "steps: 100#x"), "put a space before the `#` of a comment"),
        (("steps: 100", "steps: “100”"), "replace the typographic quotes with straight ones"),
        (("steps: 100", "steps:100"), "add the space"),
        (("train:\n  steps", "<<<<<<< HEAD\ntrain:\n  steps"), "settle the conflict"),
        (("  config:\n    n_layer: 2\n    n_embd: 64\n    n_head: 2\n", "  n_layer: 2\n"), "`model.config.n_layer`?"),
        (("stage: 1", "stage: 1\n  deepspeed:\n    overlap_comm: true"), "`zero_optimization.overlap_comm`?"),
    ],
)
def test_hints_for_frequent_slips(change: tuple[str, str], hint: str) -> None:
    (text,) = shown(change)
    assert hint in text.split("  hint: ")[1]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{i}: 1\n" for i in range(5000)),
        "name: x\n" * 5000,
        "a: [" + "1," * 60_000,
        "".join(f"- &a{i} x\n" for i in range(5000)),
        BASE.replace("    n_layer: 2\n", "".join(f"    n_layer{i}: 1\n" for i in range(5000))),
        BASE.replace('    - files: ["a.txt"]\n', "    - {}\n" * 5000),
    ],
    ids=["unknown", "twice", "long", "anchors", "config", "sources"],
)
def test_a_file_with_thousands_of_mistakes_is_told_in_part(text: str) -> None:
    assert 0 < len(problems_of(text)) <= 3 * MAX_PROBLEMS
