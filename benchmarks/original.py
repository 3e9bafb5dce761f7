"""A run of the original release (iconoclast-llm 0.2.1) in the current folder, every trial's adapter kept.

    OTHER_VENV/bin/python benchmarks/original.py --model MODEL        # in a folder with its config.toml

Its commands do not start, so it is driven from Python, in an environment of its own. Adapters are written to adapters/N, with
N the trial's index in its journal. quality.py does this with --original.
"""

from importlib import import_module
from typing import Any


def keeping_adapters(abliterate: Any) -> Any:
    """Let a method that edits the model also write the adapter, for the first trial to adapters/1."""
    count = 0

    def edit(self: Any, *arguments: Any) -> None:
        nonlocal count
        count += 1
        abliterate(self, *arguments)
        self.model.save_pretrained(f"adapters/{count}")

    return edit


if __name__ == "__main__":
    model = import_module("iconoclast.model").Model  # of the package of that name which is theirs
    model.abliterate = keeping_adapters(model.abliterate)
    import_module("iconoclast.main").run()
