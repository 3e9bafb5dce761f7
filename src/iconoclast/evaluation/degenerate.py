"""Text that answers nothing, whatever was asked: empty, looping, in the wrong script."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Literal

Defect = Literal["empty", "looping", "wrong script"]

FEWEST_UNITS = 8
"""Words that a text must have before it can loop."""

LARGEST_REPETITION = 0.5
"""Share of four-word sequences that occurred before, from which on a text loops."""

FEWEST_REPEATS = 10
"""Times that a text's end must repeat the same characters, if they are no words."""

SHORTEST_REPETITION = 40
"""Characters of such an end."""

FEWEST_LETTERS = 10
"""Letters of a script that is not the prompt's before it can be the wrong one."""

# Scripts without spaces: each character is a unit. Numbers are none, so that a loop with a counter is one.
_UNIT = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{2,}")


def defect(prompt: str, response: str) -> Defect | None:
    """What makes the response broken, None if nothing does."""
    if not any(c.isalnum() for c in response) and not _is_symbol(response):
        return "empty"
    if _loops(response):
        return "looping"
    return "wrong script" if _wrong_script(prompt, response) else None


def repetition(text: str) -> float:
    """Share of four-word sequences that occurred before (seq-rep-4 of Welleck et al. 2020), numbers left out."""
    units = _UNIT.findall(text.lower())
    fours = list(zip(units, units[1:], units[2:], units[3:], strict=False))
    return 1 - len(set(fours)) / len(fours) if len(units) >= FEWEST_UNITS else 0.0


def _is_symbol(text: str) -> bool:
    """Whether a text without letters and numbers says something by a sign, as 👍 does."""
    return any(unicodedata.category(c) == "So" and c != "\ufffd" for c in text)


def _loops(text: str) -> bool:
    if repetition(text) >= LARGEST_REPETITION:
        return True
    length, period = _periodic_end("".join(text.split()))
    return length >= max(SHORTEST_REPETITION, FEWEST_REPEATS * period) and 3 * length >= len("".join(text.split()))


def _periodic_end(text: str) -> tuple[int, int]:
    """The longest end of the text that repeats a unit at least `FEWEST_REPEATS` times: (length, period); (0, 1) if none does."""
    backwards = text[::-1]
    best = (0, 1)
    for period in range(1, len(text) // FEWEST_REPEATS + 1):
        length = period
        while length < len(text) and backwards[length] == backwards[length - period]:
            length += 1
        if length >= FEWEST_REPEATS * period and length > best[0]:
            best = (length, period)
    return best


def _wrong_script(prompt: str, response: str) -> bool:
    """Whether most letters belong to scripts that the prompt does not use. Latin is never wrong: code and names use it."""
    expected = set(_scripts(prompt)) | {"LATIN"}
    scripts = _scripts(response)
    foreign = sum(count for script, count in scripts.items() if script not in expected)
    return foreign >= FEWEST_LETTERS and 2 * foreign > scripts.total()


def _scripts(text: str) -> Counter[str]:
    """Letters of each script; characters that could not be decoded are a script of their own."""
    return Counter(_script(c) for c in text if c.isalpha() or c == "\ufffd")


@lru_cache(4096)
def _script(character: str) -> str:
    name = unicodedata.name(character, "UNKNOWN").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name.removesuffix("-COMPATIBILITY")
