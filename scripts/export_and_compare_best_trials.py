"""Export the best trial of a run as merged weights and compare it with the best trial of a heretic study.

    python scripts/export_and_compare_best_trials.py --iconoclast-checkpoint runs/mine/iconoclast_study.jsonl \
        --heretic-checkpoint checkpoints/study.jsonl --output-dir exported --sample-count 5

Writes iconoclast-best-merged/, comparison.json and summary.json. The same as `iconoclast export-and-compare`;
`iconoclast compare` compares any models.
"""

import typer

from iconoclast.cli.app import run_alone
from iconoclast.cli.export_and_compare import export_and_compare

if __name__ == "__main__":
    run_alone(lambda: typer.run(export_and_compare))
