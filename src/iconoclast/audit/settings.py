"""What two models' files say differently beside their weights: settings, vocabulary, special tokens, chat template."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedConfig

from iconoclast.audit.document import SettingFinding
from iconoclast.audit.gguf_file import GgufFile
from iconoclast.audit.pairs import Adapted, Source
from iconoclast.documents import Plain
from iconoclast.errors import ModelError, first_line, one_line
from iconoclast.models.gguf import SCALED, USUAL_BASE
from iconoclast.models.gguf_tensors import ARCHITECTURE, DAMAGES, values
from iconoclast.models.transformers_internals import gguf_settings

OF_WRITING = (
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
    "architectures",
    "use_cache",
    "_from_model_config",
)
"""Keys of a folder's settings that say who has written them, or how they are run."""

ALSO = {
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_used_count": "num_experts_per_tok",
}
"""Settings in a GGUF header, and their names in a configuration, beside those that transformers reads."""

BASE, KIND, FACTOR, LENGTH = (
    "rope.freq_base", "rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length",
)  # fmt: skip
DIVISORS = "rope_freqs.weight"
"""Tensor by which the frequencies of rotary positions are divided."""

USUAL = {BASE: USUAL_BASE, KIND: "none", FACTOR: 1.0}
"""What llama.cpp takes where a header says nothing."""

IDS = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
"""Special tokens, and what a GGUF header calls their ids."""

PADDING = "[PAD"
"""Beginning of the tokens with which converters fill a vocabulary up to the embedding's size."""

SHOWN = 60
"""Characters of a text that are shown from where it differs."""


@dataclass(frozen=True)
class Told:
    """Settings, vocabulary and chat template by a model's files.

    Attributes:
        settings: by the names of a configuration or, where one of both is a GGUF file, of its header.
        tokens: id → token.
        merges: pairs of a byte-pair encoding, in their order.
        special: name in `IDS` → ids that it can have, as several files name them.
    """

    settings: Mapping[str, Any]
    tokens: Mapping[int, str]
    merges: list[str]
    special: Mapping[str, set[int]]
    template: str | None


def differing(one: Source, other: Source) -> list[SettingFinding]:
    """Return what a base and an edited model both say, and say differently; an adapter has only weights.

    Raises:
        ModelError: a file of settings is damaged.
    """
    if isinstance(other, Adapted):
        return []
    header = next((source for source in (other, one) if isinstance(source, GgufFile)), None)
    try:
        base, edited = _told(one, header), _told(other, header)
        return [*_settings(base, edited), *_special(base, edited), *_vocabulary(base, edited), *_template(base, edited)]
    except (*DAMAGES, AttributeError) as error:
        raise ModelError(
            f"What {one.folder} or {other.folder} says of its settings and tokenizer is damaged: {first_line(error)}."
        ) from None


def _told(source: Source, header: GgufFile | None) -> Told:
    """Return what a source says, by the names of a header if one of both has one."""
    return _of_file(source) if isinstance(source, GgufFile) else _of_folder(source.folder, header)


def _of_file(file: GgufFile) -> Told:
    kind = str(file.reader.fields[ARCHITECTURE].contents())
    said = {key: field.contents() for key, field in file.reader.fields.items()}
    own = {key.removeprefix(f"{kind}."): value for key, value in said.items() if key.startswith(f"{kind}.")}
    divisors = [values(tensor) for tensor in file.reader.tensors if tensor.name == DIVISORS]
    known = {name: said.get(f"tokenizer.ggml.{key}") for name, key in IDS.items()}
    return Told(
        {**USUAL, DIVISORS: float(divisors[0].max()) if divisors else 1.0, **own},
        dict(enumerate(said.get("tokenizer.ggml.tokens", []))),
        said.get("tokenizer.ggml.merges", []),
        {name: {number} for name, number in known.items() if number is not None},
        said.get("tokenizer.chat_template"),
    )


def _of_folder(folder: Path, header: GgufFile | None) -> Told:
    config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    tokenizer, own = _json(folder / "tokenizer.json"), _json(folder / "tokenizer_config.json")
    named = {
        key: each.get("content") if isinstance(each, dict) else each
        for key, each in own.items()
        if key.endswith("_token")
    }
    settings = _flat(_whole(folder, config)) | _flat(generation, "generation.") | _flat(named, "tokenizer.")
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else own.get("chat_template")
    merges = tokenizer.get("model", {}).get("merges") or []
    tokens = _tokens(tokenizer)
    return Told(
        settings if header is None else _in_header(header),
        tokens,
        [each if isinstance(each, str) else " ".join(each) for each in merges],
        {} if header is None else _ids(config, generation, named, tokens),
        template if isinstance(template, str) else None,
    )


def _json(file: Path) -> Plain:
    """Read a file of settings; empty if there is none."""
    if not file.is_file():
        return {}
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise ModelError(f"{file} is damaged: it holds no JSON object.")
    return read


def _tokens(tokenizer: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = tokenizer.get("model", {}).get("vocab") or {}
    listed = vocabulary.items() if isinstance(vocabulary, dict) else ((each[0], i) for i, each in enumerate(vocabulary))
    added = {each["id"]: each["content"] for each in tokenizer.get("added_tokens") or []}
    return {number: token for token, number in listed} | added


def _ids(config: Plain, generation: Plain, named: Plain, tokens: dict[int, str]) -> dict[str, set[int]]:
    """Return the ids that any file names for every special token."""
    numbers = {token: number for number, token in tokens.items()}
    found: dict[str, set[int]] = {}
    for name in IDS:
        told = [
            config.get(f"{name}_token_id"),
            generation.get(f"{name}_token_id"),
            numbers.get(str(named.get(f"{name}_token"))),
        ]
        found[name] = {
            number for each in told for number in (each if isinstance(each, list) else [each]) if number is not None
        }
    return found


def _whole(folder: Path, config: Plain) -> Plain:
    """Return a folder's configuration with what it leaves to the defaults, if its type is known."""
    try:
        known: Plain = AutoConfig.from_pretrained(folder).to_dict()
    except (*DAMAGES, ImportError, AttributeError, StrictDataclassError):
        return config
    return known


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Plain:
    found: Plain = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif key not in OF_WRITING:
            found[f"{prefix}{key}"] = value
    return found


def _in_header(file: GgufFile) -> Plain:
    """Return the configuration of a folder as the header of a GGUF file of its model says it."""
    assert file.layout is not None
    config: PreTrainedConfig = file.layout.model.config.get_text_config()
    names = gguf_settings(str(file.reader.fields[ARCHITECTURE].contents())) | ALSO
    found = {key: getattr(config, name, None) for key, name in names.items()}
    told = getattr(config, "rope_parameters", None) or {}
    told = told.get("full_attention", told)
    if base := told.get("rope_theta"):
        kind = told.get("rope_type", "default")
        found |= {BASE: base, KIND: kind if kind in SCALED and kind != "llama3" else "none", DIVISORS: 1.0}
        if kind == "llama3":
            found[DIVISORS] = told.get("factor")
        if found[KIND] != "none":
            found |= {FACTOR: told.get("factor"), LENGTH: told.get("original_max_position_embeddings")}
    return {key: value for key, value in found.items() if value is not None}


def _settings(base: Told, edited: Told) -> Iterator[SettingFinding]:
    for name in sorted(base.settings.keys() & edited.settings.keys()):
        one, other = base.settings[name], edited.settings[name]
        if not _alike(one, other):
            yield SettingFinding(name=name, base=_shown(one), edited=_shown(other))


def _alike(one: Any, other: Any) -> bool:
    """Compare values of which a header keeps single precision, and lists a value for every layer where layers differ."""
    if isinstance(one, list) != isinstance(other, list):  # of layers that have none of it, such as heads, a list says 0
        one, other = (max(each, default=None) if isinstance(each, list) else each for each in (one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return isclose(one, other, rel_tol=1e-5)
    return bool(one == other)


def _special(base: Told, edited: Told) -> Iterator[SettingFinding]:
    for name in IDS:
        one, other = base.special.get(name), edited.special.get(name)
        if one and other and not one & other:  # files of one model can name several, and a header has room for one
            shown = (", ".join(map(str, sorted(ids))) for ids in (one, other))
            yield SettingFinding(name=f"{name}_token_id", base=next(shown), edited=next(shown))


def _vocabulary(base: Told, edited: Told) -> Iterator[SettingFinding]:
    if base.tokens and edited.tokens:
        one, other = (
            {i: _plain(t) for i, t in told.tokens.items() if not t.startswith(PADDING)} for told in (base, edited)
        )
        different = sorted(i for i in one.keys() | other.keys() if one.get(i) != other.get(i))
        if different:
            first = different[0]
            more = f" ({len(different)} tokens differ)"
            yield SettingFinding(name="vocabulary", base=_token(first, one), edited=_token(first, other) + more)
    if base.merges and edited.merges and base.merges != edited.merges:
        pairs = zip([*base.merges, None], [*edited.merges, None], strict=False)
        number, (before, after) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        yield SettingFinding(name="merges", base=f"{number}: {before!r}", edited=f"{number}: {after!r}")


def _plain(token: str) -> str:
    return token.replace("\u2581", " ")


def _token(number: int, tokens: Mapping[int, str]) -> str:
    return f"{number}: {tokens[number]!r}" if number in tokens else f"{number}: none"


def _template(base: Told, edited: Told) -> Iterator[SettingFinding]:
    one, other = ((told.template or "").strip() for told in (base, edited))
    if other and one != other:
        same = next(
            (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
        )
        start = max(0, same - SHOWN // 3)
        shown = [("…" if start else "") + _shown(text[start:]) if text else None for text in (one, other)]
        yield SettingFinding(name="chat template", base=shown[0], edited=shown[1])


def _shown(value: Any) -> str:
    return one_line(str(value), SHOWN)
