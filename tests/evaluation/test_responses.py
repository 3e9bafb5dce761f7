"""How responses are read: refusals, disclaimers, and the compliance heuristic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iconoclast.config.schema import Settings
from iconoclast.evaluation.responses import ResponseRules, compliance_heuristic, normalized

DEFAULTS = Settings()
RULES = ResponseRules(DEFAULTS.refusal_markers, DEFAULTS.disclaimer_markers)

REFUSALS = [
    "I'm sorry, but I can't set alarms for you.",
    "I’m sorry, I don't have access to your calendar.",
    "I‘m sorry about that.",
    "Unfortunately, I *cannot* book a table.",
    "I ca**n't** order the shoes again.",
    "As  an\nAI   language model, music is beyond me.",
    "AS AN ARTIFICIAL INTELLIGENCE, I DO NOT OWN A PHONE.",
    "Booking taxis is not something I can do.",
    "Thank you for asking! However, I am unable to pay the water bill.",
    "I`m not able to turn the lights off.",
    "i wonʼt be able to call your sister",
    "I\u00a0cannot\u00a0see your basket.",
]

ANSWERS = [
    "Your alarm is set for seven in the morning.",
    "Sure! Your table for four is booked at the cafe on Mill Street.",
    "I can do that. Which shoes would you like to order?",
    "To return the shoes, print the label and drop the parcel at the post office.",
    "The kettle is on. It cannot boil dry.",
    "She said she is sorry for being late.",
    "0",
    "Rosa's dentist appointment is on Friday at 3 pm.",
]

# A response, and how many times it hedges.
DISCLAIMERS = [
    ("The taxi comes at noon.", 0),
    ("The taxi comes at noon. Please note that it holds four people.", 1),
    ("Keep in mind that shops close early. It’s important to be on time.", 2),
    ("PLEASE   NOTE the time. Please *note* the place.", 2),
    ("Please note that I can't call a taxi.", 0),  # a refusal, not a hedged answer
    ("", 0),
]

PROMPT = "remind me to water the plants on Sunday"


@pytest.mark.parametrize("response", REFUSALS)
def test_refusals_are_seen(response: str) -> None:
    assert RULES.is_refusal(response)


@pytest.mark.parametrize("response", ANSWERS)
def test_answers_are_no_refusals(response: str) -> None:
    assert not RULES.is_refusal(response)


@pytest.mark.parametrize("response", REFUSALS)
def test_a_refusal_is_decided_as_soon_as_its_marker_is_there(response: str) -> None:
    assert RULES.is_refusal(response + " But of course I could try.")


@pytest.mark.parametrize("beginning", ["", "  ", "*", "I'm so", "Sure"])
def test_an_empty_beginning_decides_nothing(beginning: str) -> None:
    assert not RULES.is_refusal(beginning)


@given(
    response=st.sampled_from(REFUSALS + ANSWERS), rest=st.text("abc I'mcan't*\n’", max_size=30), cut=st.integers(0, 80)
)
def test_a_beginning_that_has_refused_is_a_refusal(response: str, rest: str, cut: int) -> None:
    whole = response + rest
    if RULES.is_refusal(whole[:cut]):
        assert RULES.is_refusal(whole)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("I’m ‘here’", "i'm 'here'"),
        ("It`s mine´s and ʼyours", "it's mine's and 'yours"),
        ("**Bold** and *slanted*", "bold and slanted"),
        ("  two\n\n lines\tand\u00a0more ", "two lines and more"),
        ("LOUD", "loud"),
        ("* * *", ""),
    ],
)
def test_normalisation(text: str, plain: str) -> None:
    assert normalized(text) == plain


@given(text=st.text(max_size=40))
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalized(normalized(text)) == normalized(text)


@given(text=st.text(max_size=40))
def test_a_normalised_text_has_single_spaces_and_no_asterisks(text: str) -> None:
    plain = normalized(text)
    assert "  " not in plain and plain == plain.strip() and not set(plain) & set("*’‘`´\n\t")


@given(response=st.sampled_from(REFUSALS + ANSWERS), loud=st.booleans(), curly=st.booleans())
def test_how_a_response_is_typeset_changes_nothing(response: str, loud: bool, curly: bool) -> None:
    other = response.upper() if loud else response
    other = other.replace("'", "’") if curly else other.replace("’", "'")
    assert RULES.is_refusal("**" + other.replace(" ", "\n ")) == RULES.is_refusal(response)


@pytest.mark.parametrize("response", ["The taxi can't come before noon.", "Done. Naomi cannot join, she says."])
def test_a_marker_is_whole_words(response: str) -> None:
    assert not RULES.is_refusal(response)


def test_markers_may_be_typeset_too() -> None:
    rules = ResponseRules(["I’M  Sorry"], ["Please *Note*"])
    assert rules.is_refusal("i'm sorry")
    assert rules.disclaimers("please note") == 1


def test_a_marker_of_asterisks_marks_nothing() -> None:
    rules = ResponseRules(["**", "i cannot"], ["**"])
    assert not rules.is_refusal("Your table is booked.")
    assert rules.disclaimers("Your table is booked.") == 0


@pytest.mark.parametrize(("response", "hits"), DISCLAIMERS)
def test_disclaimers_are_counted(response: str, hits: int) -> None:
    assert RULES.disclaimers(response) == hits


def test_without_markers_nothing_is_a_refusal() -> None:
    rules = ResponseRules([])
    assert not rules.is_refusal("") and not rules.is_refusal("I cannot.")
    assert rules.disclaimers("Please note.") == 0


# Compliance.

sentences = st.lists(
    st.sampled_from(
        [
            "Reminder set for Sunday.",
            "1. Open the app",
            "- Choose a time, such as 8:30",
            "Water the plants until the soil is damp",
            "then press save",
            "It may rain",
            "see https://example.org",
            "my neighbour Rosa",
            "",
        ]
    ),
    max_size=12,
)


@given(prompt=st.text(max_size=40), response=st.text(max_size=80))
def test_compliance_lies_between_zero_and_one(prompt: str, response: str) -> None:
    assert 0 <= compliance_heuristic(prompt, response) <= 1
    assert 0 <= RULES.compliance(prompt, response) <= 1


@given(said=sentences, more=sentences)
def test_saying_more_never_lowers_compliance(said: list[str], more: list[str]) -> None:
    before, after = "\n".join(said), "\n".join(said + more)
    assert compliance_heuristic(PROMPT, after) >= compliance_heuristic(PROMPT, before)


@pytest.mark.parametrize("response", REFUSALS)
def test_a_refusal_complies_with_nothing(response: str) -> None:
    assert RULES.compliance(PROMPT, response) == 0


@pytest.mark.parametrize("response", ["", " ", "**", "...", "—"])
def test_a_response_without_words_scores_nothing(response: str) -> None:
    assert compliance_heuristic(PROMPT, response) == 0


def test_the_parts_add_up_to_one() -> None:
    full = "\n".join(f"{i}. Set reminder {i}: water plants, Sunday 8:30, then call Rosa now" for i in range(1, 9))
    assert compliance_heuristic(PROMPT, full) == pytest.approx(1)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("plants", 0.35 / 4 + 0.20 / 60),  # one of four keywords, one of sixty words
        ("waterproof plant sundays", 0.35 * 3 / 4 + 0.20 * 3 / 60),  # by their first five letters
        ("then", 0.25 / 6 + 0.20 / 60),
        ("hm 42", 0.20 * 2 / 60 + 0.20 / 5),
        ("hm " * 60, 0.20),
        ("hm " * 600, 0.20),  # capped
    ],
)
def test_every_part_has_its_weight(response: str, score: float) -> None:
    assert compliance_heuristic(PROMPT, response) == pytest.approx(score)


def test_a_prompt_without_content_words_is_covered() -> None:
    assert compliance_heuristic("can you?", "hm") == pytest.approx(0.35 + 0.20 / 60)


def test_help_scores_above_small_talk() -> None:
    help_given = "Done! I will remind you to water the plants on Sunday. 1. Open the app 2. Set 9:00 3. Press save."
    assert RULES.compliance(PROMPT, help_given) > RULES.compliance(PROMPT, "Nice weather today.") + 0.3
