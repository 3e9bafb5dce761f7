"""Tiny random models with a byte-level tokenizer, and a run on one."""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast

from iconoclast.config.schema import PromptSource, Settings

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]

WORDS = ("alarm", "table", "taxi", "list", "bill", "song", "note", "light")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 261 tokens with a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=SPECIAL[2:]
    )
    fast.chat_template = TEMPLATE
    return fast


def tiny_config(**changes: Any) -> LlamaConfig:
    """A llama of four layers and 32 dimensions for the tiny tokenizer."""
    options: dict[str, Any] = {
        "vocab_size": 261,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "bos_token_id": None,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**options, **changes})


def tiny_run(model: Path, folder: Path) -> Settings:
    """Settings of a complete run on a tiny model that takes a second, in the folder with its prompts."""
    target, benign = folder / "target.txt", folder / "benign.txt"
    target.write_text("\n".join(f"Please set my {word}" for word in WORDS))
    benign.write_text("\n".join(f"What is a {word}?" for word in WORDS))

    def source(file: Path, split: str) -> PromptSource:
        return PromptSource(dataset=str(file), split=split)

    return Settings(
        model=str(model),
        dtypes=["float32"],
        good_prompts=source(benign, "train[:4]"),
        bad_prompts=source(target, "train[:4]"),
        good_evaluation_prompts=source(benign, "train[4:6]"),
        bad_evaluation_prompts=source(target, "train[4:6]"),
        good_report_prompts=source(benign, "train[6:]"),
        bad_report_prompts=source(target, "train[6:]"),
        benign_subspace_rank=1,
        max_response_length=6,
        max_benign_response_length=3,
        # A random byte model never apologises: single letters make some of its responses refusals.
        refusal_markers=["zz", "qx", "ee", "aa", "th"],
        n_trials=6,
        n_startup_trials=3,
        trials_per_batch=2,
        study_checkpoint_dir=folder / "run",
    )


def copy_run(made: Path, to: Path) -> Path:
    """Copy the run of `tiny_run` from one folder to another, as if it had been made there."""
    run = shutil.copytree(made / "run", to / "run")
    for file in run.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".toml", ".txt"):
            file.write_bytes(file.read_bytes().replace(str(made).encode(), str(to).encode()))
    return run


def save_tiny(folder: Path, config: PreTrainedConfig | None = None, seed: int = 0) -> Path:
    """A random tiny model with its tokenizer in `folder`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config or tiny_config())
    with torch.no_grad():
        for parameter in model.parameters():  # weights large enough that edits and prompts matter
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
