"""A response token by token: greedy as decoded, whole characters only, nothing behind a stop text."""

import pytest

from iconoclast.errors import ModelError
from iconoclast.models.decoding import decode
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.sampling import Sampling, _Text, respond
from iconoclast.prompts import Prompt


def said(lm: LanguageModel, text: str, *stop: str) -> tuple[list[str], bool]:
    """What is given out of a text, byte by byte, and whether it was stopped."""
    given = _Text(lm, stop)
    pieces = []
    for token in lm.tokenizer.encode(text, add_special_tokens=False):
        pieces.append(given.add(token))
        if given.stopped:
            break
    return [*pieces, given.rest()], given.stopped


def test_a_greedy_response_is_what_is_decoded(tiny_lm: LanguageModel) -> None:
    for text in ("hello", "set my alarm", "a b c"):
        ids = tiny_lm.encode([Prompt(text)])[0]
        pieces = list(respond(tiny_lm, ids, Sampling(longest=20, top=2)))
        tokens = [piece.chosen.token for piece in pieces if piece.chosen.token != tiny_lm.tokenizer.eos_token_id]
        assert tokens == decode(tiny_lm, [ids], 20, 1)[0]
        assert "".join(piece.text for piece in pieces) == tiny_lm.tokenizer.decode(tokens, skip_special_tokens=True)
        assert all(piece.chosen == piece.top[0] for piece in pieces)
        assert [piece.ended for piece in pieces[:-1]] == [""] * (len(pieces) - 1) and pieces[-1].ended


def test_only_whole_characters_are_given_out(tiny_lm: LanguageModel) -> None:
    assert said(tiny_lm, "aé!") == (["a", "", "é", "!", ""], False)


def test_nothing_of_a_stop_text_is_given_out(tiny_lm: LanguageModel) -> None:
    assert said(tiny_lm, "xaabc", "abc") == (["x", "", "a", "", "", ""], True)
    assert said(tiny_lm, "xab", "abc") == (["x", "", "", "ab"], False)
    assert said(tiny_lm, "one two", "tw", "o") == (["", ""], True)


def test_a_response_fits_into_the_context(tiny_lm: LanguageModel) -> None:
    room = tiny_lm.context
    assert room is not None
    assert len(list(respond(tiny_lm, [5] * (room - 2), Sampling()))) <= 2
    with pytest.raises(ModelError, match=r"has 2,048 tokens, and .* reads 2,048. Shorten it."):
        respond(tiny_lm, [5] * room, Sampling())
