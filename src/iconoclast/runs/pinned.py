"""The settings that must not change within a run."""

from iconoclast.config.schema import Settings, settings_document
from iconoclast.documents import Plain
from iconoclast.privacy import portable

FIT_SETTINGS = frozenset(name for name in Settings.model_fields if name.startswith("fit_")) - {"fit_scales"}
"""Settings that a fit depends on, beside the pinned ones."""
FREE_SETTINGS = FIT_SETTINGS | frozenset(
    [
        "n_trials", "trials_per_batch", "prune_trials", "fit", "fit_scales", "exit_after_optimization", "batch_size",
        "max_batch_size", "cache_gib", "device_map", "max_memory", "study_checkpoint_dir", "study_storage",
        "template_date",  # what it changes is seen in the rendered prompts
        "full_normalization_lora_rank", "good_report_prompts", "bad_report_prompts", "borderline_report_prompts",
        "allow_overlap", "random_controls", "judge_classifier", "judge_chat", "judges",
        "judged_finalists",
    ]
)  # fmt: skip
"""Settings that may change between two starts of one run: they do not change what a trial's scores mean."""
YOUNGER = frozenset(
    [
        "refusal_patterns", "refusal_rules", "soft_refusal_rules", "constraints", "objectives", "strengthen", "thinking",
        "max_thought_length",
    ]
)  # fmt: skip
"""Settings that older runs do not have; at their defaults, or empty, they choose the trials that those runs chose."""

OF_EDITS = frozenset(
    [
        "model",
        "seed",
        "n_startup_trials",
        "good_prompts",
        "bad_prompts",
        "direction_methods",
        "direction_scopes",
        "direction_variance_floor",
        "orthogonalize_direction",
        "benign_subspace_rank",
        "winsorization_quantile",
        "components",
        "row_normalization",
        "kl_divergence_target",
        "overrefusal_penalty",
        "harmful_marker_penalty",
        "compliance_gap_penalty",
    ]
)
"""Pinned settings that say which edits are tried and chosen, and nothing about the base model's scores."""


def pinned_settings(settings: Settings) -> Plain:
    """Return the settings that must not change within a run, as plain data."""
    document = portable(settings_document(settings))
    if document.get("thinking") == "both":  # of the report alone
        document["thinking"] = "off"
    unset = {key for key in YOUNGER if document.get(key) in ([], Settings.model_fields[key].default)}
    return {key: value for key, value in document.items() if key not in FREE_SETTINGS | unset}


def changed_settings(before: Settings, after: Settings) -> list[str]:
    """Name the pinned settings that differ."""
    old, new = pinned_settings(before), pinned_settings(after)
    return sorted(key for key in {*old, *new} if old.get(key) != new.get(key))


def judged_with(settings: Settings) -> Plain:
    """Return the settings of the judges, as plain data."""
    names = {"judge_classifier", "judge_chat", "judges"}
    document: Plain = portable(settings.model_dump(mode="json", include=names))
    return document
