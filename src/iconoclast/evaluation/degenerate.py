"""Text that answers nothing, whatever the question: empty, looping, in the wrong script."""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Literal

Defect = Literal["empty", "looping", "wrong script"]

REPEATED_WORDS = 12
"""Consecutive words that must repeat earlier ones before a text counts as looping."""
FEWEST_LETTERS = 10
"""Letters of a foreign script before it can be the wrong one."""
_SAYS_NOTHING = re.compile(r"[\s.…*=~|+_\ufffd-]*")
_SAYS_ONE_SIGN = re.compile(r"\s*([^\w\s]{1,4}?)(?:\s*\1){7,}\s*")
# In scripts without spaces each character counts as a word. Numbers do not count: a loop with a counter is still a loop.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]+")
_STUTTER = re.compile(r"([^\W_]{1,4}?)\1{19}|([^\W_]\S{4,31}?)\2{7}")
# Signs of which rules and tables are drawn may repeat.
_SIGNS = re.compile(r"([^\w\s=*~.|+-]{1,4}?|\d+)(?:\s*\1){39}")


def defect(prompt: str, response: str) -> Defect | None:
    """Name what breaks a response: empty, looping or wrong script; None if nothing does."""
    if _SAYS_NOTHING.fullmatch(response):
        return "empty"
    if loop_end(response) is not None or _SAYS_ONE_SIGN.fullmatch(response):
        return "looping"
    return "wrong script" if _wrong_script(prompt, response) else None


def loop_end(text: str) -> int | None:
    """Return the position at which the text is certain to loop, whatever follows; None if it does not.

    It loops where the same words come at least twice in a row, `REPEATED_WORDS` of them repeating earlier ones, or
    1 to 4 letters come twenty times, 5 to 32 letters or signs without a space eight times, or a number or up to four signs forty times.
    """
    text = text.lower()
    words = [(m.group(), m.end()) for m in _WORD.finditer(text) if m.end() < len(text)]  # the last may still grow
    ends = [end for period in range(1, len(words) // 2 + 1) if (end := _repetition_end(words, period)) is not None]
    ends += [match.end() for pattern in (_STUTTER, _SIGNS) if (match := pattern.search(text))]
    return min(ends, default=None)


def _repetition_end(words: list[tuple[str, int]], period: int) -> int | None:
    """Return the position where enough words have repeated those `period` words before them."""
    needed, run = max(period, REPEATED_WORDS), 0
    passed = range(needed - 1, len(words) - period, needed)  # a run of that length passes one of these places
    if all(words[i][0] != words[i + period][0] for i in passed):
        return None
    for (before, _), (word, end) in zip(words, words[period:], strict=False):
        run = run + 1 if word == before else 0
        if run == needed:
            return end
    return None


def may_loop(tokens: list[int]) -> bool:
    """Check quickly whether the last tokens repeat earlier ones, so that `loop_end` is worth its cost."""
    return any(tokens[-8:] == tokens[-8 - lag : -lag] for lag in range(1, len(tokens) - 7))


def _wrong_script(prompt: str, response: str) -> bool:
    """Check for mostly letters of scripts foreign to the prompt; Latin is never wrong, as code and names use it."""
    if response.isascii():
        return False
    expected = {"LATIN", *_scripts(prompt)}
    scripts = _scripts(response)
    foreign = sum(count for script, count in scripts.items() if script not in expected)
    return foreign >= FEWEST_LETTERS and 2 * foreign > scripts.total()


def _scripts(text: str) -> Counter[str]:
    """Count the letters of each script; undecodable characters are a script of their own."""
    return Counter(_script(c) for c in text if c.isalpha() or c == "\ufffd")


@lru_cache(4096)
def _script(character: str) -> str:
    name = unicodedata.name(character, "UNKNOWN").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name.removesuffix("-COMPATIBILITY")
