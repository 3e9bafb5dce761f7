"""Checkpoints as people make them, drawn at random: an edit is the same live, as an adapter, merged, and verified.

The public reports behind this are many of one kind: a padding row of zeros, a head that is tied or not, biases where others have none,
shards of odd sizes, a stored type beside the one declared, templates without a system role, with a beginning-of-text token
or without a generation prompt. Each works alone; what breaks is a combination that nobody had tried.

In CI a few seconds of them are drawn, the same ones every time. By hand, draw others for longer:
`GENERATED_CHECKPOINTS=600 pytest tests/wild/test_generated_checkpoints.py` (seconds).
"""

import copy
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from iconoclast.config.schema import Settings
from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.record import save_edit
from iconoclast.layout import EDIT_FILE, TRIAL_INFORMATION
from iconoclast.models.adapters import put_adapter
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.prompts import Prompt
from iconoclast.runs.export import write_edit
from iconoclast.runs.verify import verify
from iconoclast.vocabulary import ExportFormat, RowNormalization
from tests.support.tiny import TEMPLATE, tiny_tokenizer

PAPERS = Path(__file__).parents[1] / "fixtures" / "version-0.1.0" / "adapter"
"""What stands in an export that is not looked at here."""

LONGER = "GENERATED_CHECKPOINTS"
"""Environment variable: seconds of new checkpoints in place of those of CI."""

SECONDS = float(os.environ.get(LONGER, 15))

KINDS: dict[str, dict[str, list[Any]]] = {
    "llama": {"attention_bias": [False, True], "mlp_bias": [False, True]},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"attention_bias": [False, True]},
    "gemma2": {},
    "gemma3_text": {},
    "olmo2": {"attention_bias": [False, True]},
    "phi3": {},
    "granite": {"attention_bias": [False, True]},
    "gpt2": {},
    "qwen3_moe": {"decoder_sparse_step": [1, 2]},
}
"""Configuration class → its own options and their values."""

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.15}
"""Largest difference of logits, relative to the largest: float32 is exact but for the order of sums, bfloat16 is rounded again where
merged weights are stored (and narrow models with norms behind a site have 5 % of rounding in the live edit alone)."""

SYSTEM = {
    "shown": TEMPLATE,
    "refused": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TEMPLATE,
}


@dataclass(frozen=True)
class Drawn:
    """A random checkpoint."""

    kind: str
    options: dict[str, Any]
    dtype: str
    shard: int | None
    zero_rows: bool
    template: str
    normalization: RowNormalization
    components: tuple[str, ...]
    strength: float
    seed: int

    def write(self, folder: Path) -> None:
        """Write its files."""
        torch.manual_seed(self.seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(self.kind, **self.options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(1 if parameter.ndim == 1 else 0, 0.15)
            if self.zero_rows:
                model.get_input_embeddings().weight[:3] = 0
        sharding = {} if self.shard is None else {"max_shard_size": f"{self.shard}KB"}
        model.to(getattr(torch, self.dtype)).save_pretrained(folder, **sharding)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = self.template
        tokenizer.save_pretrained(folder)


def options_of(draw: Any, kind: str) -> dict[str, Any]:
    heads, size = draw(st.sampled_from([2, 4])), draw(st.sampled_from([4, 8]))
    width = heads * size
    options = {
        "vocab_size": draw(st.sampled_from([261, 264, 300])),
        "hidden_size": width,
        "intermediate_size": draw(st.sampled_from([width, 2 * width + 4])),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([heads, heads // 2])),
        "head_dim": size,
        "max_position_embeddings": 256,
        "tie_word_embeddings": draw(st.booleans()),
        "pad_token_id": draw(st.sampled_from([None, 0, 2])),
        "bos_token_id": draw(st.sampled_from([None, 1])),
        "eos_token_id": 1,
        **{name: draw(st.sampled_from(values)) for name, values in KINDS[kind].items()},
    }
    if kind == "gpt2":
        renamed = {"n_embd": width, "n_layer": options["num_hidden_layers"], "n_head": heads, "n_positions": 256}
        kept = ("vocab_size", "tie_word_embeddings", "pad_token_id", "bos_token_id", "eos_token_id")
        return renamed | {name: options[name] for name in kept}
    if kind == "qwen3_moe":
        options |= {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        }  # grouped products need multiples of 16 bytes
    return options


@st.composite
def checkpoints(draw: Any) -> Drawn:
    """A random small checkpoint and an edit of it."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    opening = draw(st.sampled_from(["", "{{ bos_token }}", "<|end|>"]))
    closing = draw(st.sampled_from(["", "{{ '' }}\n"]))
    return Drawn(
        kind,
        options_of(draw, kind),
        # Rounding to bfloat16 can send a token to other experts, and so far away.
        "float32" if kind.endswith("moe") else draw(st.sampled_from(sorted(TOLERANCE))),
        draw(st.sampled_from([None, 8, 40])),
        draw(st.booleans()),
        opening + draw(st.sampled_from(list(SYSTEM.values()))) + closing,
        draw(st.sampled_from(["none", "pre", "full"])),
        draw(st.sampled_from([("attn.o_proj",), ("mlp.down_proj",), ("attn.o_proj", "mlp.down_proj")])),
        draw(st.sampled_from([0.6, 1.0, 1.3])),
        draw(st.integers(0, 1000)),
    )


def logits(lm: LanguageModel, ids: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = lm.model(input_ids=ids).logits.float()
        return result


def edit_of(lm: LanguageModel, drawn: Drawn) -> Edit:
    generator = torch.Generator().manual_seed(drawn.seed)
    direction = torch.nn.functional.normalize(torch.randn(lm.hidden_size, generator=generator), dim=0)
    directions = {s: w.site_direction(direction) for s, w in lm.writers(drawn.components).items()}  # type: ignore[arg-type]
    return Edit(directions, dict.fromkeys(directions, drawn.strength), drawn.normalization)


def exported(base: LanguageModel, edit: Edit, kind: ExportFormat, folder: Path, settings: Settings) -> LanguageModel:
    """Write an export with the papers that `verify` reads, and load it."""
    folder.mkdir()
    write_edit(edit, base, kind, folder, settings)
    save_edit(edit, folder / EDIT_FILE)
    papers = json.loads((PAPERS / TRIAL_INFORMATION).read_bytes())
    papers |= {"format": kind, "base_model": base.path, "quantization": "none", "approximations": []}
    (folder / TRIAL_INFORMATION).write_text(json.dumps(papers))
    if kind == "merged":
        return load_model(str(folder), dtypes=[base.dtype])
    adapted = load_model(base.path, dtypes=[base.dtype])
    put_adapter(adapted, str(folder))
    return adapted


def check(drawn: Drawn, folder: Path) -> None:
    """Edit the checkpoint live, as an adapter and merged, and compare."""
    drawn.write(folder / "base")
    lm = load_model(str(folder / "base"), dtypes=[drawn.dtype])
    before = copy.deepcopy(lm.model.state_dict())
    settings = Settings(
        model=lm.path,
        components=list(drawn.components),  # type: ignore[arg-type]
        row_normalization=drawn.normalization,
        full_normalization_lora_rank="auto",
    )
    edit, ids = edit_of(lm, drawn), torch.tensor(lm.encode([Prompt("Please set my alarm", system="Be brief.")]))
    assert (
        "Please set my alarm" in (text := lm.render(Prompt("Please set my alarm", system="Be brief.")))
        and "Be brief." in text
    )
    base = logits(lm, ids)
    with LiveEdits(lm.writers(drawn.components), [edit]).applied():  # type: ignore[arg-type]
        live = logits(lm, ids)
    scale = float(live.abs().max())
    for kind in ("adapter", "merged"):
        other = logits(exported(lm, edit, kind, folder / kind, settings), ids)
        # An adapter of a full edit stands for it up to 1 % of every update.
        allowed = TOLERANCE[drawn.dtype] + (2e-2 if kind == "adapter" and drawn.normalization == "full" else 0)
        assert float((other - live).abs().max()) <= allowed * scale, kind
        checks = {each.name: each for each in verify(folder / kind, lm.path, measure=False)}
        assert checks["tensors"].passed, (kind, checks["tensors"].detail)
    assert not torch.equal(base, live)
    assert all(torch.equal(before[name], tensor) for name, tensor in lm.model.state_dict().items())


def test_an_edit_of_any_checkpoint_is_the_same_live_as_an_adapter_merged_and_verified() -> None:
    """Within the time budget; the examples of CI are the same every time, as far as the time goes."""
    ends = time.monotonic() + SECONDS
    longer = LONGER in os.environ

    @hypothesis.settings(
        max_examples=100_000 if longer else 60,
        derandomize=not longer,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(checkpoints())
    def every(drawn: Drawn) -> None:
        if time.monotonic() < ends:
            with TemporaryDirectory() as folder:
                check(drawn, Path(folder))

    every()
