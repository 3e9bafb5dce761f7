"""An example of every command, which its --help ends with."""

from typing import Any

from iconoclast.peers import PEER

EXAMPLES = {
    "": "iconoclast run Qwen/Qwen3-0.6B --out runs/mine",
    "run": "iconoclast run Qwen/Qwen3-0.6B --config settings.toml --out runs/mine --n-trials 100",
    "demo": "iconoclast demo --out demo-run",
    "report": "iconoclast report runs/mine --open",
    "export": "iconoclast export runs/mine --trial best --format adapter --to my-adapter",
    "chat": "iconoclast chat runs/mine",
    "serve": "iconoclast serve runs/mine --port 8000",
    "plot": "iconoclast plot runs/mine",
    "evaluate": "iconoclast evaluate my-adapter --config settings.toml --json figures.json",
    "compare": "iconoclast compare runs/mine runs/other:7 --to comparison",
    "export-and-compare": f"iconoclast export-and-compare --iconoclast-checkpoint runs/mine --{PEER}-checkpoint "
    "study.jsonl --output-dir both",
    "benchmark": "iconoclast benchmark runs/mine --tasks arc_easy,hellaswag --limit 200",
    "summarize": "iconoclast summarize runs --markdown table.md",
    "status": "iconoclast status runs/mine",
    "list": "iconoclast list runs",
    "replay": "iconoclast replay runs/mine:7 --json drift.json",
    "verify": "iconoclast verify my-adapter --base Qwen/Qwen3-0.6B --config runs/mine/iconoclast_config.toml",
    "upload": "iconoclast upload my-adapter you/model --dry-run",
    "audit": "iconoclast audit some/edited-model --base Qwen/Qwen3-0.6B --weights-only --json audit.json",
    "restore": "iconoclast restore some/edited-model --base Qwen/Qwen3-0.6B --out restored",
    "cache": "iconoclast cache list",
    "cache list": "iconoclast cache list",
    "cache size": "iconoclast cache size",
    "cache clear": "iconoclast cache clear",
    "config": "iconoclast config show",
    "config show": "iconoclast config show --config settings.toml",
    "config schemas": "iconoclast config schemas schemas",
    "config reference": "iconoclast config reference > settings.md",
    "behaviors": "iconoclast behaviors list",
    "behaviors list": "iconoclast behaviors list",
    "behaviors show": "iconoclast behaviors show hedging",
    "behaviors check": "iconoclast behaviors check hedging --model Qwen/Qwen3-0.6B",
    "behaviors new": "iconoclast behaviors new my-pack",
    "cluster": "iconoclast cluster status /shared/runs/mine",
    "cluster submit": "iconoclast cluster submit --config settings.toml --out /shared/runs/mine --workers 8 --gpus 1",
    "cluster script": "iconoclast cluster script --config settings.toml --out /shared/runs/mine --workers 8",
    "cluster sweep": "iconoclast cluster sweep settings/*.toml --out /shared/runs --workers 4",
    "cluster work": "iconoclast cluster work /shared/runs/mine",
    "cluster status": "iconoclast cluster status /shared/runs/mine",
    "cluster cancel": "iconoclast cluster cancel /shared/runs/mine",
}


def write_example(ctx: Any, formatter: Any) -> None:
    """End a command's help with its example."""
    _, _, command = str(ctx.command_path).partition(" ")
    if command in EXAMPLES:
        with formatter.section("Example"):
            formatter.write(f"{' ' * formatter.current_indent}{EXAMPLES[command]}\n")
