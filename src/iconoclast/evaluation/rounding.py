"""What rounding makes of a change that is too small to matter."""

import torch
from torch.nn.functional import normalize

from iconoclast.edits.edit import Edit
from iconoclast.edits.live import LiveEdits
from iconoclast.evaluation.examination import Variant
from iconoclast.models.language_model import LanguageModel

ROUNDING_PROMPTS = 64
"""Benign prompts whose responses are read for it, at most."""
STRENGTH = 0.01
"""Of the edit along random directions: enough to round otherwise, while its own divergence is some millionth."""


def barely_edited(lm: LanguageModel) -> Variant:
    """Return the base model with an edit along random directions that is too weak to change what it says."""
    writers = lm.writers()
    random = torch.Generator().manual_seed(0)
    directions = {
        site: normalize(torch.randn(writer.rows[-1], generator=random), dim=0) for site, writer in writers.items()
    }
    return Variant(
        "base model, rounded otherwise",
        lm,
        LiveEdits(writers, [Edit(directions, dict.fromkeys(directions, STRENGTH), "none")]).applied,
    )
