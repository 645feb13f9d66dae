"""`model` and `tokenizer`: names and values of the Hugging Face config, and how they fit together.

transformers swallows a config field it does not know and trains another model than was meant, so the names are
checked against a table made from its source (`architectures.json`, held true by a test).
"""

import re
from collections.abc import Iterator

from orchestrator.json_values import JsonValue
from orchestrator.spec.checks.architecture_fields import ArchitectureTable, tables
from orchestrator.spec.checks.partial_job import Unavailable, View
from orchestrator.spec.loading.explain import found_value, quote
from orchestrator.spec.loading.hints import listing, nearest
from orchestrator.spec.spec_errors import Problem

_SYNONYMS = {
    "n_layers": ("n_layer", "num_hidden_layers", "num_layers"),
    "layers": ("n_layer", "num_hidden_layers", "num_layers"),
    "n_heads": ("n_head", "num_attention_heads", "num_heads"),
    "heads": ("n_head", "num_attention_heads", "num_heads"),
    "n_kv_heads": ("num_key_value_heads",),
    "d_model": ("n_embd", "hidden_size"),
    "dim": ("n_embd", "hidden_size"),
    "embedding_size": ("n_embd", "hidden_size"),
    "d_ff": ("n_inner", "intermediate_size"),
    "ffn_dim": ("n_inner", "intermediate_size"),
    "d_state": ("state_size",),
    "d_conv": ("conv_kernel",),
    "context_length": ("n_positions", "max_position_embeddings"),
    "n_ctx": ("n_positions", "max_position_embeddings", "context_length"),
    "block_size": ("n_positions", "max_position_embeddings", "context_length"),
    "rope_theta": ("rope_parameters",),
    "dropout": ("resid_pdrop", "hidden_dropout_prob", "resid_dropout", "attention_dropout"),
}
"""What other codes call it: the first that the architecture has is what is meant."""

DECIDED_BY_JOB = {
    "vocab_size": "it comes from the tokenizer: set `tokenizer.train.vocab_size`, or choose `tokenizer.pretrained`",
    "bos_token_id": "it comes from the tokenizer",
    "eos_token_id": "it comes from the tokenizer",
    "pad_token_id": "it comes from the tokenizer",
    "mask_token_id": "it comes from the tokenizer",
    "dtype": "set `train.precision`",
    "torch_dtype": "set `train.precision`",
    "model_type": "set `model.architecture`",
    "architectures": "set `model.architecture`",
    "is_decoder": "`model.architecture` decides it",
    "is_encoder_decoder": "`model.architecture` decides it",
    "add_cross_attention": "`model.architecture` decides it",
    "use_cache": "training never caches; generation always does",
    "gradient_checkpointing": "set `train.activation_checkpointing`",
}

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "null": "null",
    "list": "a list",
    "map": "a section",
}
_AT_LEAST_ONE = re.compile(
    r"n_.*|num_.*heads|num_.*layers|.*_size|.*positions.*|context_length|expand|conv_kernel|head_dim"
)
_FREE_HEAD_DIM = frozenset({"mistral", "qwen3"})
"""Architectures whose heads need not divide the hidden size, since `head_dim` is their own."""


def model_source(view: View) -> Iterator[Problem]:
    """architecture xor pretrained, and what goes with which."""
    architecture, pretrained = view.given("model.architecture"), view.given("model.pretrained")
    if architecture and pretrained:
        hint = "remove `pretrained` to train from scratch, or `architecture` to continue from its weights"
        yield view.problem(
            "model.pretrained", "`model` has both `architecture` and `pretrained`, expected one", hint, True
        )
    elif not architecture and not pretrained and isinstance(view.section("model"), dict):
        hint = "`architecture: gpt2` for fresh weights, `pretrained: gpt2` for trained ones"
        yield view.problem("model", "`model` has neither `architecture` nor `pretrained`, expected one", hint, True)
    if pretrained and not architecture and view.get("model.config"):
        hint = "remove `config`: the weights come with their own config"
        yield view.problem("model.config", "`model.config` does not go with `model.pretrained`", hint, True)
    if view.given("model.revision") and not pretrained:
        hint = "remove it, or name the hub repository in `pretrained`"
        yield view.problem("model.revision", "`model.revision` is given without `model.pretrained`", hint, True)


def model_text_not_empty(view: View) -> Iterator[Problem]:
    """An id or path of no characters names nothing."""
    for where in ("model.pretrained", "model.revision", "tokenizer.pretrained"):
        if view.given(where) and not str(view.get(where)).strip():
            yield view.problem(where, f"`{where}` is empty text, expected a path or a hub id")


def tokenizer_source(view: View) -> Iterator[Problem]:
    """Exactly one tokenizer, which may be the one that comes with the weights."""
    trained, pretrained = view.given("tokenizer.train"), view.given("tokenizer.pretrained")
    weights = view.given("model.pretrained")
    if trained and pretrained:
        hint = "remove one of the two"
        yield view.problem("tokenizer.train", "`tokenizer` has both `train` and `pretrained`, expected one", hint, True)
    elif trained and weights and not view.given("model.architecture"):
        hint = "remove `tokenizer`: the weights come with their own"
        message = "`tokenizer.train` makes new tokens, which the weights in `model.pretrained` know nothing of"
        yield view.problem("tokenizer.train", message, hint, True)
    elif not trained and not pretrained and view.given("model.architecture") and not weights:
        hint = "`tokenizer: {train: {vocab_size: 8192}}` trains one on the corpus, `{pretrained: gpt2}` takes one"
        view.get("tokenizer")
        yield view.problem(
            "tokenizer", "the job has no tokenizer, expected `tokenizer.train` or `tokenizer.pretrained`", hint, True
        )


def config_keys(view: View) -> Iterator[Problem]:
    """Every key of `model.config` is a field of the architecture, of the right type, and not decided elsewhere."""
    name, config = view.optional_text("model.architecture"), view.mapping("model.config")
    if name is None:
        return
    table = tables()[name]
    for key, value in config.items():
        where = ("model", "config", key)
        field = table["fields"].get(key)
        if key in DECIDED_BY_JOB:
            message = f"`model.config` may not hold `{key}`: the job decides it"
            yield view.problem(where, message, _instead(DECIDED_BY_JOB[key]), True)
        elif field is None:
            hint = _config_hint(name, key, table)
            yield view.unknown_key(where, f"{name} has no such field", hint)
        else:
            yield from _config_value(view, key, value, field["kinds"])


def _instead(reason: str) -> str:
    return reason if reason.startswith("set ") else f"remove it: {reason}"


def _config_hint(name: str, key: str, table: ArchitectureTable) -> str | None:
    fields = [field for field in table["fields"] if field not in DECIDED_BY_JOB]
    if key in table["aliases"]:
        return f"did you mean `{table['aliases'][key]}`? That is {name}'s own name for it"
    for synonym in _SYNONYMS.get(key, ()):
        if synonym in fields:
            return f"did you mean `{synonym}`?"
    for other in tables().values():
        common = next((alias for alias, own in other["aliases"].items() if own == key), None)
        if common and (own_name := table["aliases"].get(common, common)) in fields:
            return f"did you mean `{own_name}`?"
    alias = nearest(key, table["aliases"])
    near = nearest(key, fields) or (table["aliases"].get(alias) if alias else None)
    if near:
        return f"did you mean `{near}`?"
    owners = [other for other, entry in tables().items() if key in entry["fields"]]
    if owners:
        return f"it is a field of {', '.join(owners)}"
    return f"{name} takes {listing(fields)}"


def _config_value(view: View, key: str, value: JsonValue, kinds: list[str]) -> Iterator[Problem]:
    where = ("model", "config", key)
    kind = _kind(value)
    wanted = " or ".join(_WORDS[k] for k in kinds if k != "null" or len(kinds) == 1)
    if kind not in kinds:
        if kind == "int" and "float" in kinds:
            hint = f"write `{key}: {value}.0`; transformers is strict about it"
            yield view.problem(where, f"`{key}` is `{value}`, expected a number with a decimal point", hint)
            return
        number = isinstance(value, str) and {"int", "float"} & set(kinds) and re.fullmatch(r"[-+.0-9eE]+", value)
        hint2 = f"remove the quotes: `{key}: {value}`" if number else None
        yield view.problem(where, f"`{key}` is {found_value(value)}, expected {wanted}", hint2)
    elif isinstance(value, int | float) and kind != "bool":
        if "drop" in key and not 0 <= value < 1:
            yield view.problem(where, f"`{key}` is `{value}`, expected a number of at least 0 and less than 1")
        elif kind == "int" and _AT_LEAST_ONE.fullmatch(key) and value < 1:
            yield view.problem(where, f"`{key}` is `{value}`, expected a whole number of at least 1")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "map"}
    return names[type(value)]


class _Sizes:
    """The numbers of an architecture, given or by default. A wrong one makes the check inapplicable."""

    def __init__(self, view: View) -> None:
        self.name = view.optional_text("model.architecture")
        self._config = view.mapping("model.config")
        if self.name is None:
            raise Unavailable("model.architecture")
        self._table = tables()[self.name]

    def require_known_names(self) -> None:
        """Raises Unavailable if a name is unknown: it may be a misspelt size, and then conclusions from the default are
        useless."""
        if not self._config.keys() <= self._table["fields"].keys():
            raise Unavailable("model.config")

    def own(self, name: str) -> str:
        """The architecture's name for a common field."""
        return str(self._table["aliases"].get(name, name))

    def get(self, name: str) -> int | None:
        """The value, or the default; None if the architecture has no such field or it is null."""
        own = self.own(name)
        field = self._table["fields"].get(own)
        if field is None:
            return None
        value = self._config.get(own, field["default"])
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Unavailable(own)
        return value

    def given(self, name: str) -> bool:
        return self.own(name) in self._config

    def shown(self, name: str) -> str:
        """`n_head` (12, the default)."""
        rest = "" if self.given(name) else ", the default"
        return f"`{self.own(name)}` ({self.get(name)}{rest})"

    def place(self, *names: str) -> tuple[str, ...]:
        """The place to report: the first of `names` that is given."""
        chosen = next((name for name in names if self.given(name)), None)
        return ("model", "config", self.own(chosen)) if chosen else ("model", "config")


def heads_divide(view: View) -> Iterator[Problem]:
    """The hidden size is cut evenly over the heads, and the heads over the key-value heads."""
    sizes = _Sizes(view)
    sizes.require_known_names()
    hidden, heads = sizes.get("hidden_size"), sizes.get("num_attention_heads")
    own_head_dim = sizes.name in _FREE_HEAD_DIM and sizes.get("head_dim") is not None
    if hidden and heads and hidden % heads and not own_head_dim:
        message = f"{sizes.shown('hidden_size')} is not divisible by {sizes.shown('num_attention_heads')}"
        best = min((n for n in range(1, 1025) if hidden % n == 0), key=lambda n: abs(n - heads))
        hint = f"for example `{sizes.own('num_attention_heads')}: {best}`"
        yield view.problem(sizes.place("hidden_size", "num_attention_heads"), message, hint)
    groups = sizes.get("num_key_value_heads")
    if heads and groups and heads % groups:
        message = f"{sizes.shown('num_attention_heads')} is not divisible by {sizes.shown('num_key_value_heads')}"
        hint = f"`num_key_value_heads: {heads}` gives every head its own keys and values"
        yield view.problem(sizes.place("num_key_value_heads", "num_attention_heads"), message, hint)


def positions_suffice(view: View) -> Iterator[Problem]:
    """A sample is no longer than the model has positions for."""
    sizes = _Sizes(view)
    length = view.integer("data.sequence_length")
    name = "max_position_embeddings"
    if sizes.given(name) and (positions := sizes.get(name)) is not None and positions < length:
        message = f"`{sizes.own(name)}` is {positions}, less than `data.sequence_length` ({length})"
        hint = f"remove `{sizes.own(name)}`: it follows `data.sequence_length` unless it is given"
        yield view.problem(sizes.place(name), message, hint)


def masked_models(view: View) -> Iterator[Problem]:
    """What only makes sense for BERT, and what does not for it."""
    name = view.optional_text("model.architecture")
    if name == "bert" and view.get("generate.prompt"):
        hint = "remove `generate`: a masked language model fills gaps and does not continue a prompt"
        yield view.problem("generate.prompt", "`generate.prompt` does not go with `architecture: bert`", hint, True)
    if name is not None and name != "bert" and view.changed("train.mlm_probability"):
        message = f"`train.mlm_probability` does not go with `architecture: {quote(name)[1:-1]}`"
        yield view.problem("train.mlm_probability", message, "remove it: only BERT is trained on masked tokens", True)


CHECKS = (
    model_source,
    model_text_not_empty,
    tokenizer_source,
    config_keys,
    heads_divide,
    positions_suffice,
    masked_models,
)
