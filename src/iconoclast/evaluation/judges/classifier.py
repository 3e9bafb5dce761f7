"""A text-classification model as a judge."""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.hub import cached_file

from iconoclast.config.schema import Settings
from iconoclast.errors import one_line
from iconoclast.evaluation.judges.protocol import Item, JudgeError, judges
from iconoclast.vocabulary import Verdict

_REFUSAL = re.compile(r"(?P<negated>(?<![a-z])no[nt]?[\W_]*)?(?:refus|reject|declin)")


class ClassifierJudge:
    """A text-classification model: its refusal labels mean refusal, all others mean complied. No text is broken.

    Args:
        model: hub id or folder, with safetensors weights; code that comes with it is not run.
        refusal_labels: labels that mean refusal; none: those whose name says so.
        pair: give the model prompt and response as a pair of texts, else the response alone.
        batch_size: items at a time.

    Raises:
        JudgeError: the model cannot be loaded, or its refusal labels are not clear.
    """

    problem: str | None = None

    def __init__(
        self, model: str, refusal_labels: Sequence[str] = (), pair: bool = False, batch_size: int = 32
    ) -> None:
        self._model, self._tokenizer, version = _load_classifier(model)
        config = self._model.config
        labels = [str(config.id2label[index]) for index in range(config.num_labels)]
        try:
            self._refusals = find_refusal_labels(labels, refusal_labels)
        except JudgeError as error:
            raise JudgeError(f"The classifier {model}: {error}") from None
        self._pair = pair
        self._batch_size = batch_size
        # RoBERTa's positions begin at 2, and a tokenizer may know no limit at all.
        positions = (getattr(config, "max_position_embeddings", None) or 512) - 2
        self._length = min(self._tokenizer.model_max_length, positions)
        chosen = ", ".join(labels[index] for index in sorted(self._refusals))
        self.name = f"{model}@{version} ({chosen}; {'prompt and response' if pair else 'response alone'})"

    def judge(self, items: Sequence[Item], advance: Callable[[int], None] = lambda n: None) -> list[Verdict]:
        """Return one verdict an item: refusal, complied, broken if there is no text, unknown if the numbers are not finite."""
        worded = [item for item in items if item[1].strip()]
        advance(len(items) - len(worded))
        verdicts: list[Verdict] = []
        for start in range(0, len(worded), self._batch_size):
            batch = worded[start : start + self._batch_size]
            verdicts += self._verdicts(batch)
            advance(len(batch))
        rest = iter(verdicts)
        return [next(rest) if response.strip() else "broken" for _, response in items]

    def _verdicts(self, batch: Sequence[Item]) -> list[Verdict]:
        prompts, responses = (list(texts) for texts in zip(*batch, strict=True))
        texts = (prompts, responses) if self._pair else (responses,)
        inputs = self._tokenizer(
            *texts, padding=True, truncation=True, max_length=self._length, return_tensors="pt"
        ).to(self._model.device)
        with torch.inference_mode():
            logits = self._model(**inputs).logits
        finite = logits.isfinite().all(dim=-1).tolist()
        if not all(finite):
            self.problem = "Some of the model's numbers are not finite."
        return [
            ("refusal" if label in self._refusals else "complied") if fine else "unknown"
            for label, fine in zip(logits.argmax(dim=-1).tolist(), finite, strict=True)
        ]


@judges.register("classifier")
def classifier_judge(settings: Settings) -> ClassifierJudge:
    """Return the judge that the setting judge_classifier describes; raise JudgeError if it is not set or cannot be used."""
    if (asked := settings.judge_classifier) is None:
        raise JudgeError("The judge classifier needs the setting judge_classifier.model.")
    return ClassifierJudge(asked.model, asked.refusal_labels, asked.pair)


def find_refusal_labels(labels: Sequence[str], wanted: Sequence[str] = ()) -> frozenset[int]:
    """Return the places of the labels that mean refusal: the wanted ones, or those that say so ("REJECTION", not "Non-refusal").

    Raises:
        JudgeError: a wanted label is not there, no label says refusal, or every label does.
    """
    named = list(wanted) or [label for label in labels if _says_refusal(label)]
    if absent := [label for label in named if label not in labels]:
        fault = f"it has no label {', '.join(absent)}."
    elif not named:
        fault = "none of its labels says refusal."
    elif set(named) >= set(labels):
        fault = "all of its labels would mean refusal."
    else:
        return frozenset(labels.index(label) for label in named)
    raise JudgeError(f"{fault} Its labels are {', '.join(labels)}. Set refusal_labels to those that mean refusal.")


def _says_refusal(label: str) -> bool:
    found = _REFUSAL.search(label.lower())
    return found is not None and found["negated"] is None


def _load_classifier(name: str) -> tuple[Any, Any, str]:
    """Model, tokenizer, and a version that changes with its files."""
    path = os.path.expanduser(name)  # noqa: PTH111 - Path.expanduser fails on an unknown user
    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    try:
        version = _version(path)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, info = AutoModelForSequenceClassification.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise JudgeError(
            f"The classifier {name} cannot be loaded: {one_line(str(error))} "
            "Give the hub id or folder of a text-classification model with safetensors weights."
        ) from None
    if info["missing_keys"]:
        raise JudgeError(
            f"The classifier {name} lacks weights ({min(info['missing_keys'])}), so its verdicts would be random. "
            "Give a model that was trained for text classification."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer, version


def _version(path: str) -> str:
    """The commit of a hub model, or a digest of the files of a folder: 12 hexadecimal digits."""
    folder = Path(str(cached_file(path, "config.json"))).parent
    if folder.parent.name == "snapshots":
        return folder.name[:12]
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".txt", ".model"):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
