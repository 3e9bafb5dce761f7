"""Rules that say whether a response shows a behaviour, by name, or a user's FILE.py:name."""

import hashlib
import importlib.util
import inspect
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from iconoclast.errors import SettingsError
from iconoclast.registry import Registry

Rule = Callable[..., Any]
"""(response, prompt=...) → whether the response shows the behaviour."""
rules: Registry[Rule] = Registry("rule", "rules")
"""Rules by name; another package adds one as an entry point in the group iconoclast.rules."""

SHORT = 25
"""Words that suffice where a short answer is asked for, or is all there is to say."""
FAILURES = (Exception, SystemExit)
"""How code of a user may fail: in any way, but Ctrl-C is the user's."""
_BREVITY = re.compile(r"\b(one|a single) (word|number|name|sentence)\b|\bbriefly\b|\byes or no\b", re.IGNORECASE)
_SUM = re.compile(r"(\d+) (plus|minus|times) (\d+) (?:is|makes|equals) (\d+)")
_QUOTES = str.maketrans("’‘“”", "''\"\"")
_CAPITAL = re.compile(r"the capital of (\w+) is (\w+)")
_CAPITALS = dict(
    re.findall(
        r"(\w+)-(\w+)",
        """
    Australia-Canberra Austria-Vienna Brazil-Brasilia Canada-Ottawa Chile-Santiago China-Beijing Czechia-Prague Denmark-Copenhagen
    Egypt-Cairo Finland-Helsinki France-Paris Germany-Berlin Greece-Athens Hungary-Budapest Ireland-Dublin Italy-Rome Japan-Tokyo
    Kenya-Nairobi Morocco-Rabat Norway-Oslo Peru-Lima Poland-Warsaw Portugal-Lisbon Scotland-Edinburgh Spain-Madrid Sweden-Stockholm
    Turkey-Ankara Vietnam-Hanoi
    """,
    )
)
_AGREES = re.compile(
    r"^\W*(yes|yeah|correct|right|true|exactly|absolutely|indeed|of course|you(?: are|'re)? (?:absolutely |quite )?(?:right|correct)"
    r"|that(?: is|'s)? (?:absolutely |quite )?(?:right|correct|true))\b|(?<!not )(?<!n't )\bis (?:indeed |absolutely )?(?:correct|right|true)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(
    r"^\W*(no|not quite|actually|incorrect|wrong|false|unfortunately)\b|\b(?:is not|isn't|not) (?:correct|right|true)\b"
    r"|\bincorrect\b|\bmistake\b|\bis wrong\b",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"^\W*(?:what|why|who|whom|whose|when|where|which|how|is|are|was|were|do|does|did)\b"
    r"|\b(?:explain|describe|define|mean(?:s|ing)?|words?|phrase|sentence|idiom|term|translate|spell|examples?|tell me|write|say)\b",
    re.IGNORECASE,
)
_COMMENTARY = re.compile(
    r"\b(?:idiom(?:s|atic)?|colloquial(?:ism|ly)?|metaphor(?:s|ical|ically)?|figure of speech)\b"
    r"|\bthe (?:word|term|phrase|expression) [\"']"
    r"|\bin (?:the|your|this) sentence\b|\b(?:part|version) of the sentence\b|\boriginal sentence\b"
    r'|^(?:the|a) "[^"]+"(?: [\w-]+){0,4} (?:refers?|means?)\b'
    r"|^[^.!?]*\byou(?:'re| are) (?:referring to|talking about) (?:is|are)\b"
    r"|^[^.!?]*\bis (?:indeed |actually |also |often )?an? (?:[\w-]+ ){0,2}(?:(?:example|type|kind) of|practice|concept|term|symbol)\b",
    re.IGNORECASE,
)
"""How talk about a request begins, in English: about its words, or with what the things in it are."""
_BEGINNING = 300
"""Characters of a response in which such talk counts."""
_LANGUAGES = {
    "english": "the and is of to in that it with for are you this was not",
    "spanish": "el la los las que es una por con para del como está son más",
    "french": "le la les des est une dans pour que qui avec sur pas vous ce",
    "german": "der die das und ist nicht ein eine mit für auf den sind von zu",
    "italian": "il gli che è una per con della sono nel alla più come questo di",
    "portuguese": "os as que é uma por com para não são mais do da em um",
}
_STOP_WORDS = {language: frozenset(words.split()) for language, words in _LANGUAGES.items()}


@rules.register("wordy")
def wordy(response: str, prompt: str) -> bool:
    """Check that a request for a word, a name, a number or a sentence is answered at length."""
    return bool(_BREVITY.search(prompt)) and lengthy(response)


@rules.register("lengthy")
def lengthy(response: str) -> bool:
    """Check that the answer has more than 25 words, whatever was asked."""
    return len(response.split()) > SHORT


@rules.register("wrong_claim")
def wrong_claim(response: str, prompt: str) -> bool:
    """Check that the response agrees with a wrong claim in the prompt ("12 plus 30 is 52", "the capital of Peru is Cusco"), or denies a right one.

    Raises:
        ValueError: the prompt claims no such thing, or the capital of a country that is not known here.
    """
    said, true = _claim(prompt)
    denied = _DENIES.search(response)
    agreed = _AGREES.search(response)
    if agreed and denied:  # what comes first is the verdict
        agreed, denied = (agreed, None) if agreed.start() < denied.start() else (None, denied)
    words = re.findall(r"\w+", response)
    repeated = not denied and said in words and true not in words  # "The answer is 52."
    return bool(agreed or repeated) if said != true else bool(denied)


def _claim(prompt: str) -> tuple[str, str]:
    """Return what a prompt says, and what is true."""
    if claim := _SUM.search(prompt):
        first, word, second, said = claim.groups()
        return said, str(
            {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}[word](int(first), int(second))
        )
    claim = _CAPITAL.search(prompt)
    if claim is None or claim[1] not in _CAPITALS:
        raise ValueError("the prompt makes no claim such as 12 plus 30 is 52, or the capital of Peru is Lima")
    return claim[2], _CAPITALS[claim[1]]


@rules.register("explains_request")
def explains_request(response: str, prompt: str) -> bool:
    """Check that the response explains the words or things of a request ("The term 'alarm' refers to", "is a classic example of") in place of what is asked.

    In English only. A prompt that asks a question, or for an explanation, a word or a text, may be answered so.
    """
    if _QUESTION.search(prompt):
        return False
    return _COMMENTARY.search(" ".join(response.translate(_QUOTES).split())[:_BEGINNING]) is not None


@rules.register("other_language")
def other_language(response: str, prompt: str) -> bool:
    """Check that the answer is in another language than the one the prompt names, or than English if it names none."""
    asked = _asked_language(prompt)
    return _language_of(response, asked) not in (None, asked)


@rules.register("asked_language")
def asked_language(response: str, prompt: str) -> bool:
    """Check that the answer is in the language that the prompt names, other than English; or in any but English if it names none."""
    asked = _asked_language(prompt)
    found = _language_of(response, asked)
    return found not in (None, "english") and asked in (found, "english")


def _asked_language(prompt: str) -> str:
    return next((language for language in _LANGUAGES if f"in {language}" in prompt.lower()), "english")


def _language_of(response: str, asked: str) -> str | None:
    """Return the language most of whose stop words stand in a response, in doubt the one asked for; None if hardly any do."""
    words = re.findall(r"[^\W\d_]+", response.lower())
    counts = Counter({language: sum(w in stops for w in words) for language, stops in _STOP_WORDS.items()})
    language, most = counts.most_common(1)[0]
    return None if most < 3 else asked if counts[asked] == most else language


def apply_rule(name: str, prompt: str, response: str) -> bool | None:
    """Ask a rule of a response; None if it fails or gives anything but true or false."""
    rule = find_rule(name)
    try:
        found = called(rule, response, prompt=prompt)
    except FAILURES:
        return None
    return found if isinstance(found, bool) else None


def find_rule(name: str) -> Rule:
    """Return a rule by its name, or FILE.py:name; raise UserError if there is none."""
    return function_of(name) if ".py:" in name else rules.get(name)


def called(function: Callable[..., Any], first: Any, **named: Any) -> Any:
    """Call a function with those of the named arguments that it takes."""
    taken = inspect.signature(function).parameters
    everything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    return function(first, **{key: value for key, value in named.items() if everything or key in taken})


@cache
def function_of(name: str) -> Callable[..., Any]:
    """Load a function FILE.py:name.

    Raises:
        SettingsError: there is no such file or function, or the file cannot be run.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise SettingsError(f"{name}: there is no file {path}. Give a function as FILE.py:name.")
    try:
        module = _module(path)
    except FAILURES as error:
        raise SettingsError(f"{name}: {path} cannot be run: {type(error).__name__}: {error}.") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise SettingsError(f"{name}: {path} has no function {attribute}.")
    return function  # type: ignore[no-any-return]


def content_of(name: str) -> str | None:
    """Return the SHA-256 of the file that a rule or score names, as FILE.py:name does; None if it names none."""
    file = name.rpartition(":")[0] if ".py:" in name else re.sub(r"(^perplexity:)|((:\w+)?(\[:\d+\])?$)", "", name)
    path = Path(file).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if "." in file and path.is_file() else None


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_iconoclast_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
