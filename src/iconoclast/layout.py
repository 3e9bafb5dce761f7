"""Names and schema version of everything that a run or an export leaves behind."""

SCHEMA_VERSION = 1
"""Version of the JSON files (docs/runs.md); raised when an older reader would misunderstand them."""

# A run folder
CONFIG = "iconoclast_config.toml"
MANIFEST = "manifest.json"
JOURNAL = "iconoclast_study.jsonl"
BASELINE = "baseline.json"
DIRECTIONS = "directions.safetensors"
GEOMETRY = "geometry.json"
TOKENS = "tokens.json"
FITS = "fits"
SUMMARY = "batch_summary.json"
SAMPLES = "samples.jsonl"
COMPARISON = "comparison.json"
COMPARISON_SUMMARY = "summary.json"
LOG = "log.txt"
WORKERS = "workers"
CLUSTER = "cluster"
LOCK = ".lock"
ALONE = ".alone"

BEFORE_A_RUN = frozenset([LOCK, ALONE, WORKERS, CLUSTER])
"""Contents that a run folder may have before the run begins."""

# An export
TRIAL_INFORMATION = "trial_information.json"
"""The mark of an export: a folder with this file is not searched for runs."""
EDIT_FILE = "edit.safetensors"
CARD = "README.md"
GGUF_FILE = "model.gguf"
GGUF_ADAPTER = "adapter.gguf"
CHECKSUMS = "SHA256SUMS"

# What is written where the user says
AUDIT = "audit.json"


def quant_file(name: str) -> str:
    """Return the file of an export that is quantised to this type."""
    return f"model-{name}.gguf"


def config_file(number: int) -> str:
    """Return the file of an export that holds the settings of the first, second, … of the runs whose edits it holds."""
    return CONFIG if number == 1 else CONFIG.replace(".toml", f"-{number}.toml")
