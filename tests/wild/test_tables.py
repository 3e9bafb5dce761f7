"""Tables of prompts as people have them, after reports of training and evaluation sets that were read wrongly.

Kinds: ShareGPT and chat-completion lists beside an identifier; turns of MT-bench; struct columns of parquet files; tables
that spreadsheets write with semicolons or tabs; one column of sentences with commas; no header.
"""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from iconoclast.errors import PromptsError
from iconoclast.prompts import PromptSet

ASK = ["Set an alarm.", "Play a song."]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def texts(name: str, content: object, column: str | None = None) -> list[str]:
    Path(name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return [prompt.text for prompt in PromptSet.load(name, column=column)]


def refused(name: str, content: object, problem: str, column: str | None = None) -> None:
    with pytest.raises(PromptsError, match=problem) as caught:
        texts(name, content, column)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keys", [("role", "user", "content"), ("from", "human", "value")])
def test_the_first_user_turn_of_a_conversation_is_the_prompt(keys):
    speaker, user, text = keys
    talks = [[{speaker: "system", text: "Be brief."}, {speaker: user, text: ask}] for ask in ASK]
    rows = [{"id": f"row {number}", "talk": talk} for number, talk in enumerate(talks)]
    assert texts("a.json", rows, "talk") == ASK
    assert {prompt.system for prompt in PromptSet.load("a.json", column="talk")} == {"Be brief."}
    assert {prompt.system for prompt in PromptSet.load("a.json", column="talk", system_prompt="")} == {None}
    assert texts("lists.json", talks) == ASK
    assert texts("only.json", [{"talk": talk} for talk in talks]) == ASK
    assert texts("written.json", [{"talk": str(talk)} for talk in talks]) == ASK
    refused("a.json", rows, "has the columns id, talk; set column")
    refused("b.json", [{"talk": [{speaker: "system", text: "x"}]}], "row 1: .* no user's turn")


def test_a_message_in_parts_is_read_and_one_with_a_picture_refused():
    parts = [{"type": "text", "text": "Set "}, {"type": "text", "text": "an alarm."}]
    assert texts("a.json", [[{"role": "user", "content": parts}]]) == ["Set an alarm."]
    refused("a.json", [[{"role": "user", "content": [{"type": "image"}]}]], "no user's turn with a text")


def test_a_list_of_turns_is_not_mistaken_for_its_category():
    rows = [{"category": "home", "turns": [ask, "Again."]} for ask in ASK]
    refused("a.json", rows, "has the columns category, turns.0")
    assert texts("a.json", rows, "turns.0") == ASK


def test_a_field_of_a_struct_is_read_by_its_path():
    table = pyarrow.table({"id": ["a", "b"], "prompt": [{"text": ask} for ask in ASK]})
    pyarrow.parquet.write_table(table, "a.parquet")
    assert [prompt.text for prompt in PromptSet.load("a.parquet", column="prompt.text")] == ASK
    for column, problem in ((None, "columns id, prompt.text"), ("prompt", r"Set column to prompt\.text")):
        with pytest.raises(PromptsError, match=problem):
            PromptSet.load("a.parquet", column=column)


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", "\t")])
def test_the_delimiter_is_found(name, mark):
    table = f"prompt{mark}kind\nSet an alarm, please{mark}clock\nPlay a song{mark}music\n"
    assert texts(name, table, "prompt") == ["Set an alarm, please", "Play a song"]
    if mark == ";":
        assert texts(name, f"sep=;\n{table}", "prompt") == ["Set an alarm, please", "Play a song"]


def test_a_row_that_does_not_fit_its_header_is_named_by_its_line():
    refused("a.csv", "text\nCall Ann\nSet an alarm, then play\n", "2 fields on line 3 and 1 in its header")
    refused("a.csv", "text,kind\nSet an alarm\nand wait,clock\n", "1 fields on line 2 and 2 in its header")
    refused("a.csv", "text,text\na,b\n", "two columns called text on line 1")


def test_a_prompt_is_never_taken_for_a_header():
    for name in ("a.csv", "a.tsv"):
        refused(name, "Set an alarm\nPlay a song\n", 'begins with the line "Set an alarm"')
    refused("a.csv", "Set an alarm, please\nPlay a song, please\n", "begins with the line")
    assert texts("a.csv", "Anfrage\nSet an alarm\n", "Anfrage") == ["Set an alarm"]
    assert texts("a.csv", "harmless_prompts\nSet an alarm\n") == ["Set an alarm"]
