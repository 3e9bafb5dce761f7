"""Preparation of a tokenizer: a chat template, a pad token, padding on the left."""

import os
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from iconoclast.errors import ModelError

# Ready templates for tokenizers that bring none.
TEMPLATES = {
    "plain": (
        "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "raw": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, chat_template: str | None, name: str) -> None:
    """Set left padding, a pad token and a chat template; raise ModelError without a usable template."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    if chat_template is not None:
        tokenizer.chat_template = TEMPLATES.get(chat_template) or _read(chat_template)
    if not tokenizer.chat_template:
        raise ModelError(
            f"The tokenizer of {name} has no chat template, so prompts cannot be put to it as a user would. "
            "Set chat_template to plain, raw, or a Jinja file."
        )


def _read(chat_template: str) -> str:
    file = Path(os.path.expanduser(chat_template))  # noqa: PTH111 - Path.expanduser fails on an unknown user
    if not file.is_file():
        raise ModelError(f"chat_template {chat_template} is neither plain nor raw nor a Jinja file.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ModelError(f"The chat template {chat_template} is not UTF-8 text. Convert it to UTF-8.") from None
    except OSError as error:
        raise ModelError(f"The chat template {chat_template} cannot be read: {error.strerror}.") from None
