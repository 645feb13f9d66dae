"""The tokenizer of a job: trained on its corpus, or a pretrained one, with the special tokens that training needs."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from orchestrator.atomic_files import write_json, write_text
from orchestrator.data.tokens.encode import TokenizerText
from orchestrator.domain.errors import DataError
from orchestrator.json_values import JsonFields, JsonObject, JsonValue
from orchestrator.spec.model import TokenizerTrainSpec

EOS, PAD, MASK = "<|endoftext|>", "<|pad|>", "<|mask|>"

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"

_END_NAMES = (EOS, "</s>", "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
_PAD_NAMES = (PAD, "<pad>", "[PAD]")
_MASK_NAMES = (MASK, "<mask>", "[MASK]")


@dataclass(frozen=True)
class JobTokenizer:
    """A tokenizer ready to use: its text, its config for `transformers`, its special ids."""

    text: TokenizerText
    config: JsonObject
    eos_id: int
    pad_id: int
    mask_id: int | None
    vocab_size: int
    """Above every id."""

    @property
    def key(self) -> str:
        """Stands for all of it. Saved and loaded, a tokenizer keeps its key."""
        return hashlib.sha256(f"{self.ids_key} {json.dumps(self.config, sort_keys=True)}".encode()).hexdigest()

    @property
    def ids_key(self) -> str:
        """Stands for what decides the ids of a text: not for the rest of the config, such as a chat template."""
        return f"{self.text.key} {self.eos_id} {self.pad_id} {self.mask_id}"

    @property
    def dtype(self) -> str:
        """The smallest that holds every id."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"

    def save(self, directory: Path) -> None:
        """Write a directory that `transformers.AutoTokenizer.from_pretrained` loads."""
        directory.mkdir(parents=True, exist_ok=True)
        special = {key: self.config[key] for key in ("eos_token", "pad_token", "mask_token") if self.config.get(key)}
        write_json(directory / CONFIG_FILE, dict(sorted(self.config.items())))
        write_json(directory / SPECIAL_FILE, special)
        write_text(directory / TOKENIZER_FILE, self.text.json)


def train(texts: Iterable[str], spec: TokenizerTrainSpec) -> JobTokenizer:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016; GPT-2's pre-tokenizer). Every text can be encoded and
    comes back unchanged. The same texts give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=spec.vocab_size,
        min_frequency=spec.min_frequency,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in (EOS, PAD, MASK)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return _with_special(tokenizer, {})


def load(directory: Path, name: str) -> JobTokenizer:
    """A tokenizer directory, or its `tokenizer.json`. Raises DataError if it is none, or lacks an end token."""
    path = directory / TOKENIZER_FILE if directory.is_dir() else directory
    if not path.is_file():
        raise DataError(
            f"the tokenizer {name} has no {TOKENIZER_FILE} in {path.parent}",
            hint="write one: transformers.AutoTokenizer.from_pretrained(PATH).save_pretrained(PATH)",
        )
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for anything it cannot parse
        raise DataError(f"{path} is not a tokenizer: {error}") from error
    config = _read_json(path.parent / SPECIAL_FILE) | _read_json(path.parent / CONFIG_FILE)
    return _with_special(tokenizer, config, name)


def tokenizer_digest(directory: Path) -> str | None:
    """Of the files that `JobTokenizer.save` writes, whatever version of the library reads them; None if one is
    missing."""
    digest = hashlib.sha256()
    try:
        for name in (TOKENIZER_FILE, CONFIG_FILE):
            digest.update(hashlib.sha256((directory / name).read_bytes()).digest())
    except OSError:
        return None
    return digest.hexdigest()[:32]


def _read_json(path: Path) -> JsonObject:
    try:
        value: JsonValue = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def _with_special(tokenizer: Tokenizer, config: JsonFields, name: str = "") -> JobTokenizer:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    eos = _token(tokenizer, config, "eos_token", _END_NAMES) or _token(tokenizer, config, "sep_token", ())
    if eos is None:
        raise DataError(
            f"the tokenizer {name} names no end-of-text token",
            hint=f'add "eos_token" to its {CONFIG_FILE}',
        )
    pad = _token(tokenizer, config, "pad_token", _PAD_NAMES) or eos
    mask = _token(tokenizer, config, "mask_token", _MASK_NAMES)
    ids = tokenizer.get_vocab(with_added_tokens=True)
    text = tokenizer.to_str()
    # The class is the generic one whatever the original was: it takes tokenizer.json as it is, and so encodes as we do.
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("tokenizer_class", "auto_map", "added_tokens_decoder")
    }
    kept |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "pad_token": pad}
    kept |= {"mask_token": mask} if mask else {}
    return JobTokenizer(
        TokenizerText(hashlib.sha256(text.encode()).hexdigest(), text),
        kept | {"clean_up_tokenization_spaces": False},
        ids[eos],
        ids[pad],
        ids[mask] if mask else None,
        max(len(ids), max(ids.values()) + 1),
    )


def _token(tokenizer: Tokenizer, config: JsonFields, key: str, names: tuple[str, ...]) -> str | None:
    """The special token that the config names under `key`, else the first of the usual names that exists."""
    named = config.get(key)
    content = named.get("content") if isinstance(named, dict) else named
    candidates = ([content] if isinstance(content, str) else []) + list(names)
    return next((name for name in candidates if tokenizer.token_to_id(name) is not None), None)


def spread_sample(texts: Iterable[tuple[str, int]], total_bytes: int, sample_bytes: int) -> Iterator[str]:
    """At most `sample_bytes` characters of `texts`, spread evenly: a text is taken when the share taken is behind.

    `texts` come with the position in bytes of the corpus reached, of `total_bytes`."""
    ratio = min(1.0, sample_bytes / max(1, total_bytes))
    taken = 0
    for text, position in texts:
        room = sample_bytes - taken
        if room <= 0:
            return
        if ratio == 1.0 or taken <= ratio * position:
            part = text[:room]
            taken += len(part)
            yield part
