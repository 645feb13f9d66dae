"""What counts as a change, and what is said about it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.fingerprints import (
    CHANGES_SHOWN,
    Change,
    CodePrint,
    FileContent,
    ModelPrint,
    SourceContents,
    TokenizerPrint,
    compare_code,
    compare_models,
    compare_settings,
    compare_sources,
    compare_tokenizers,
    kept_settings,
    settings_of,
    told,
)
from orchestrator.spec.job import JobSpec

pytestmark = pytest.mark.unit


def file(name: str, digest: str = "", kind: str = "text", size: int = 100) -> FileContent:
    return FileContent(name, size, digest or f"content of {name}", kind, (1, 2, 3))


BEFORE = tuple(file(f"t/{letter}.txt") for letter in "bcd")


def data_changes(*now: FileContent, grown: tuple[str, ...] = ()) -> list[str]:
    changes, gone = compare_sources([SourceContents("t/*.txt", BEFORE)], [SourceContents("t/*.txt", now)], grown)
    assert gone == []
    assert all(change.part == "data" and change.blocked is None for change in changes)
    return [change.what for change in changes]


@pytest.mark.parametrize(
    ("now", "what"),
    [
        ((*BEFORE, file("t/e.txt")), "1 file was added to t/*.txt: t/e.txt"),
        ((file("t/a.txt"), *BEFORE, file("t/e.txt")), "2 files were added to t/*.txt: t/a.txt, t/e.txt"),
        (BEFORE[:1], "2 files were removed from t/*.txt: t/c.txt, t/d.txt"),
        ((BEFORE[0], file("t/c.txt", "x"), BEFORE[2]), "1 file was edited in t/*.txt: t/c.txt (still 100 bytes)"),
        (
            (BEFORE[0], file("t/c.txt", "x", size=2000), BEFORE[2]),
            "1 file was edited in t/*.txt: t/c.txt (100 -> 2,000 bytes)",
        ),
        (
            (*BEFORE[1:], file("t/z.txt", BEFORE[0].digest)),
            "1 file was renamed in t/*.txt: t/b.txt -> t/z.txt",
        ),
        ((BEFORE[1], BEFORE[0], BEFORE[2]), "the files of t/*.txt are read in another order"),
        (
            (replace(BEFORE[0], kind="lines"), *BEFORE[1:]),
            "1 file is read in another format in t/*.txt: t/b.txt",
        ),
    ],
)
def test_a_change_of_the_data_says_which_files(now: tuple[FileContent, ...], what: str) -> None:
    assert data_changes(*now) == [what]


def test_several_kinds_of_change_are_told_apart() -> None:
    assert data_changes(file("t/c.txt", "x"), file("t/d.txt", "y", size=200), file("t/e.txt"), grown=("t/d.txt",)) == [
        "1 file was added to t/*.txt: t/e.txt",
        "1 file was removed from t/*.txt: t/b.txt",
        "1 file was edited in t/*.txt: t/c.txt (still 100 bytes)",
        "1 file has more text at its end in t/*.txt: t/d.txt (100 -> 200 bytes)",
    ]


def test_names_times_and_places_are_no_change() -> None:
    moved = [replace(each, name=f"elsewhere/{each.name}", stamp=(7, 8, 9)) for each in BEFORE]
    assert data_changes(*moved) == []


def test_a_source_without_any_file_is_gone_not_changed() -> None:
    before = [SourceContents("a", BEFORE), SourceContents("b", BEFORE[:1])]
    assert compare_sources(before, [SourceContents("a", BEFORE), SourceContents("b", ())]) == ([], ["b"])


def test_many_names_are_counted_and_odd_ones_made_harmless() -> None:
    (what,) = data_changes(*BEFORE, *(file(f"t/e{i:03d}\x1b[2J") for i in range(1234)))
    assert what.startswith("1234 files were added to t/*.txt: t/e000\ufffd[2J, ")
    assert what.endswith(" and 1,229 more")
    lines = told([Change("code", "last"), *(Change("data", str(i)) for i in range(40))]).splitlines()
    assert len(lines) == CHANGES_SHOWN + 1
    assert lines[0] == "  data: 0"
    assert lines[-1] == "  and 29 more changes"


def test_a_tokenizer_of_another_size_does_not_fit_a_model_of_its_own() -> None:
    before, same, other = TokenizerPrint("a", 300), TokenizerPrint("b", 300), TokenizerPrint("b", 310)
    assert compare_tokenizers(before, TokenizerPrint("a", 300), "tok", None, True) == []
    (change,) = compare_tokenizers(before, same, "tok", None, True)
    assert (change.what, change.blocked) == ("the tokenizer tok is a different one", None)
    (change,) = compare_tokenizers(before, other, "tok", None, True)
    assert change.what == "the tokenizer tok is a different one: 300 -> 310 tokens"
    assert change.blocked == "the model has 300 token embeddings"
    assert compare_tokenizers(before, other, "tok", 512, False)[0].blocked is None
    assert compare_tokenizers(before, other, "tok", 305, False)[0].blocked == "the model has 305 token embeddings"


def test_a_changed_base_model_is_named_by_its_files() -> None:
    config, weights = file("config.json"), file("model.safetensors")
    before = ModelPrint((config, weights), None, (1000, 2, 32))
    assert compare_models(before, ModelPrint((config, weights), None, (1000, 2, 32)), "base") == []
    (change,) = compare_models(
        before, ModelPrint((config, file("model.safetensors", "x")), None, (1000, 2, 32)), "base"
    )
    assert (change.what, change.blocked) == ("model.safetensors in base was edited or replaced", None)
    (change,) = compare_models(before, ModelPrint((file("config.json", "x"), weights), None, (1500, 3, 32)), "base")
    assert change.what == "config.json in base was edited or replaced"
    assert change.blocked == "the weights in the checkpoints have another shape"
    (change,) = compare_models(before, ModelPrint(), "base")
    assert "is gone" in change.what
    assert change.blocked is not None


def test_versions_count_and_convoys_own_code_at_the_same_version() -> None:
    before = CodePrint({"convoy-train": "1.0", "torch": "2.13.0"}, {"train/loop.py": "a", "data/order.py": "b"})
    assert compare_code(before, before) == []
    assert compare_code(before, CodePrint({**before.versions, "torch": "2.13.1"}, before.modules)) == [
        Change("code", "torch 2.13.0 is now 2.13.1")
    ]
    edited = CodePrint(before.versions, {**before.modules, "train/loop.py": "x"})
    assert [change.what for change in compare_code(before, edited)] == [
        "Convoy's own code differs at the same version: train/loop.py"
    ]
    upgraded = CodePrint({**before.versions, "convoy-train": "1.1"}, edited.modules)
    assert [change.what for change in compare_code(before, upgraded)] == ["convoy-train 1.0 is now 1.1"]
    assert compare_code(CodePrint(), edited) == []


def spec(**changes: Any) -> JobSpec:
    value: dict[str, Any] = {
        "name": "test",
        "model": {"architecture": "gpt2", "config": {"n_layer": 1}},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"sources": [{"files": ["a.txt"], "weight": 1.0}, {"files": ["b.txt"], "weight": 2.0}],
                 "sequence_length": 32, "validation": {"fraction": 0.1}},
        "train": {"steps": 10, "global_batch": 4, "lr": 1e-3},
    }  # fmt: skip
    for path, new in changes.items():
        *parents, last = path.split("__")
        place = value
        for key in parents:
            place = place[int(key)] if key.isdecimal() else place.setdefault(key, {})
        place[last] = new
    return JobSpec.model_validate(value)


def compared(now: JobSpec) -> list[Change]:
    return compare_settings(settings_of(spec(), ()), settings_of(now, ()), kept_settings(now))


@pytest.mark.parametrize(
    ("change", "what", "can_be_accepted"),
    [
        ({"data__sources__1__weight": 3.0}, "data: data.sources[1].weight: 2.0 -> 3.0", True),
        ({"data__sources__0__field": "body"}, "data: data.sources[0].field: text -> body", True),
        ({"data__packing": False}, "data: data.packing: true -> false", True),
        ({"data__validation__fraction": 0.2}, "data: data.validation.fraction: 0.1 -> 0.2", True),
        ({"train__seed": 7}, "data: train.seed: 0 -> 7", True),
        ({"train__global_batch": 8}, "data: train.global_batch: 4 -> 8", False),
        ({"data__sequence_length": 64}, "data: data.sequence_length: 32 -> 64", False),
        ({"tokenizer__train__vocab_size": 400}, "tokenizer: tokenizer.train.vocab_size: 300 -> 400", False),
        ({"tokenizer": {"pretrained": "tok"}}, "tokenizer: tokenizer.kind: trained -> pretrained", False),
        ({"model__config": {"n_layer": 1, "resid_pdrop": 0.1}},
         "model: model.config: {'n_layer': 1} -> {'n_layer': 1, 'resid_pdrop': 0.1}", True),
        ({"model__architecture": "llama"}, "model: model.architecture: gpt2 -> llama", False),
    ],
)  # fmt: skip
def test_settings_that_say_what_ids_samples_and_weights_mean(
    change: Mapping[str, Any], what: str, can_be_accepted: bool
) -> None:
    found = [each for each in compared(spec(**change)) if str(each) == what]
    assert [each.blocked is None for each in found] == [can_be_accepted]


@pytest.mark.parametrize(
    "change",
    [
        {"train__steps": 20}, {"train__lr": 1e-4}, {"train__warmup_steps": 5}, {"zero__stage": 3},
        {"resources__workers": 4}, {"checkpoint__interval_steps": 5}, {"data__bad_records": "error"},
        {"data__max_bad_fraction": 0.5}, {"data__cache_dir": "/x"}, {"data__sources__0__files": ["*.txt"]},
        {"name": "x"},
    ],
)  # fmt: skip
def test_what_a_run_may_change_as_it_goes_on(change: Mapping[str, Any]) -> None:
    assert compared(spec(**change)) == []


def test_a_sequence_length_without_learned_positions_can_be_accepted() -> None:
    llama: Callable[[int], JobSpec] = lambda length: spec(model__architecture="llama", data__sequence_length=length)  # noqa: E731
    (change,) = compare_settings(settings_of(llama(32), ()), settings_of(llama(64), ()), kept_settings(llama(64)))
    assert change.blocked is None


def test_settings_that_one_side_does_not_know_are_not_compared() -> None:
    now = settings_of(spec(), ())
    before = {key: value for key, value in now.items() if key != "train.mlm_probability"}
    assert compare_settings({**before, "data.of_an_older_version": 1}, now, {}) == []
    two = settings_of(spec(), ())
    one = settings_of(spec(data__sources=[{"files": ["a.txt"], "weight": 1.0}]), ())
    assert [each.what for each in compare_settings(two, one, {})] == ["data.sources: 2 -> 1"]
