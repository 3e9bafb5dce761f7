"""A prompt set is the same wherever it comes from, and a bad one says what is wrong with it."""

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from iconoclast.config.schema import PromptSource
from iconoclast.errors import PromptsError
from iconoclast.prompts import Prompt, PromptSet, load_prompts

TEXTS = ["name a river", 'say "hello", please', "what is 2 + 2?", "größe auf englisch?", "call a taxi", "a" * 300]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative names of data sets are looked up in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub without a network: `answer` is what it gives (or raises), `asked` what it was asked for."""
    state = SimpleNamespace(answer=None, asked=[])

    def load_dataset(*arguments: object) -> object:
        state.asked.append(arguments)
        if isinstance(state.answer, BaseException):
            raise state.answer
        return state.answer

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return state


def texts(dataset: str | Path, split: str = "train", **options: str) -> list[str]:
    """The texts that are loaded."""
    return [prompt.text for prompt in PromptSet.load(str(dataset), split, **options)]


def refused(dataset: str | Path, split: str = "train", **options: str) -> str:
    """The message with which loading fails: one line that names the data set."""
    with pytest.raises(PromptsError) as caught:
        PromptSet.load(str(dataset), split, **options)
    message = str(caught.value)
    assert str(dataset) in message
    assert "\n" not in message
    assert caught.value.exit_code == 2
    return message


def file(name: str, content: str | bytes) -> str:
    """A file with that content."""
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return name


def lines(count: int) -> str:
    """A text file of `count` different prompts."""
    return file("prompts.txt", "".join(f"prompt {i}\n" for i in range(count)))


FORMATS = ["prompts.txt", "no-ending", "prompts.csv", "texts.json", "objects.json", "prompts.jsonl", "prompts.parquet"]


def written(name: str, items: list[str]) -> str:
    """The texts in a file of that format or a folder with that kind of data set."""
    rows = [{"id": number, "text": text} for number, text in enumerate(items)]
    if name == "prompts.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), name)
    elif name == "saved-set":
        datasets.Dataset.from_list(rows).save_to_disk(name)
    elif name == "saved-splits":
        splits = {"test": datasets.Dataset.from_dict({"text": ["other"]}), "train": datasets.Dataset.from_list(rows)}
        datasets.DatasetDict(splits).save_to_disk(name)
    else:
        quoted = ['"' + text.replace('"', '""') + '"' for text in items]
        contents = {
            "prompts.txt": "\n".join(items),
            "no-ending": "\n".join(items),
            "prompts.csv": "id,text\n" + "".join(f"{number},{text}\n" for number, text in enumerate(quoted)),
            "texts.json": json.dumps(items),
            "objects.json": json.dumps(rows, ensure_ascii=False),
            "prompts.jsonl": "\n\n".join(map(json.dumps, rows)),
        }
        file(name, contents[name])
    return name


@pytest.mark.parametrize("name", [*FORMATS, "saved-set", "saved-splits"])
def test_every_format_gives_the_same_prompts(name, hub):
    written(name, TEXTS)
    assert texts(name) == TEXTS
    assert PromptSet.load(name).fingerprint == PromptSet.of(TEXTS).fingerprint
    assert texts(name, "train[1:4]") == TEXTS[1:4]
    assert "is empty" in refused(name, "train[4:4]")
    assert "no column Goal" in refused(name, column="Goal")
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("byte-order-mark.txt", "\ufeffhello\n", ["hello"]),
        ("byte-order-mark.csv", "\ufefftext,answer\nhello,hi\n", ["hello"]),
        ("byte-order-mark.json", '\ufeff["hello"]', ["hello"]),
        ("byte-order-mark.jsonl", '\ufeff"hello"\n', ["hello"]),
        ("LETTER-CASE.CSV", "text\nhello\n", ["hello"]),
        ("blank-lines.txt", "\n  one  \r\n\r\n\t\ntwo", ["one", "two"]),
        ("two-line-prompt.csv", 'text\n"one\ntwo"\n', ["one\ntwo"]),
        ("two-line-prompt.jsonl", '{"text": "one\\ntwo"}\n', ["one\ntwo"]),
        ("line-separator.txt", "one\u2028two\x0bthree\nfour\n", ["one\u2028two\x0bthree", "four"]),
        ("line-separator.jsonl", '"one\u2028two"\n"three"\n', ["one\u2028two", "three"]),
    ],
)
def test_a_file_is_read_as_its_format_says(name, content, expected):
    assert texts(file(name, content)) == expected


def test_a_hub_data_set_is_asked_for_by_id_and_configuration(hub):
    rows = {"Index": range(100), "Goal": [f"goal {i}" for i in range(100)]}
    hub.answer = datasets.DatasetDict({"harmful": datasets.Dataset.from_dict(rows)})
    options = {"name": "behaviors", "column": "Goal"}
    assert texts("JailbreakBench/JBB-Behaviors", "harmful[80:100]", **options) == [f"goal {i}" for i in range(80, 100)]
    assert hub.asked == [("JailbreakBench/JBB-Behaviors", "behaviors")]


def test_a_hub_data_set_that_cannot_be_loaded_is_one_line_with_the_reason(hub):
    for failure in (datasets.exceptions.DatasetNotFoundError, ConnectionError, ValueError):
        hub.answer = failure("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']")
        assert "cannot be loaded: Config name is missing. Give a hub id" in refused("someone/prompts")


@pytest.mark.parametrize("name", ["absent.csv", "data/absent.txt", "./absent", "/absent/one", "~nobody-at-all/one"])
def test_a_missing_file_is_not_looked_for_on_the_hub(name, hub):
    assert "does not exist. Check the path" in refused(name)
    assert hub.asked == []


# Splits and slices


def test_a_slice_selects_prompts_by_position_or_percent():
    dataset = lines(10)
    expected = {
        "train": range(10),
        "train[:]": range(10),
        "train[:4]": range(4),
        "train[4:]": range(4, 10),
        "train[2:5]": range(2, 5),
        "train[:10]": range(10),
        "train[-3:]": range(7, 10),
        "train[:-3]": range(7),
        "train[10%:50%]": range(1, 5),
        "train[-20%:]": range(8, 10),
        "train[50%:8]": range(5, 8),
        "[:2]": range(2),
    }
    assert {s: texts(dataset, s) for s in expected} == {s: [f"prompt {i}" for i in r] for s, r in expected.items()}


@pytest.mark.parametrize("split", ["train[:50%]", "train[33%:66%]", "train[10%:]", "train[-15%:]", "train[:-5%]"])
def test_percentages_round_as_those_of_hugging_face_datasets(split):
    for size in (1, 3, 8, 13, 64, 199, 240):
        [theirs] = datasets.ReadInstruction.from_spec(split).to_absolute({"train": size})
        expected = [f"prompt {i}" for i in range(size)][theirs.from_ : theirs.to]
        dataset = lines(size)
        if expected:
            assert texts(dataset, split) == expected
        else:
            assert "is empty" in refused(dataset, split)


@pytest.mark.parametrize("split", ["[:11]", "[11:]", "[-11:]", "[:-11]", "[:101%]", "[-101%:]"])
def test_a_slice_out_of_range_says_how_many_prompts_there_are(split):
    assert f'"{split}" is out of range: prompts.txt has 10 prompts' in refused(lines(10), split)


@pytest.mark.parametrize("split", ["train[3]", "train[1:2", "[a:b]", "[1:2:3]", "[:5]+train[7:]", "[1.5:3]", "[:5] "])
def test_a_split_that_is_not_understood_is_answered_with_an_example(split):
    assert re.search(rf'"{re.escape(split)}" .* is not understood\..*"train\[:240\]"', refused(lines(10), split))


def test_a_column_called_split_selects_rows_of_a_file():
    dataset = file("a.csv", "text,split\na,fit\nb,test\nc,fit\n")
    assert texts(dataset, "fit") == ["a", "c"]
    assert texts(dataset, "fit[1:]") == ["c"]
    assert texts(dataset) == ["a", "b", "c"]
    assert 'no split "select". It has fit, test' in refused(dataset, "select")


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "saved-set"])
def test_a_data_set_without_splits_has_no_other_than_train(name):
    assert '"test" selects nothing. Use "train"' in refused(written(name, TEXTS), "test")


def test_splits_are_named_when_another_is_asked_for(hub):
    hub.answer = datasets.DatasetDict({n: datasets.Dataset.from_dict({"text": ["a"]}) for n in ("train", "test")})
    assert 'no split "validation". It has train, test' in refused("someone/prompts", "validation")
    assert 'no split "validation". It has test, train' in refused(written("saved-splits", TEXTS), "validation")


# Columns, and what is put around a prompt


def test_the_prompts_stand_in_the_named_column_or_in_text_or_in_the_only_one_of_text():
    assert texts(file("a.csv", "text,Goal\na,b\nc,d\n"), column="Goal") == ["b", "d"]
    assert texts(file("a.csv", "Goal,text\na,b\n")) == ["b"]
    assert texts(file("a.json", '[{"id": 1, "Goal": "a", "split": "train"}]')) == ["a"]


def test_a_column_that_is_missing_or_in_doubt_is_answered_with_those_that_are_there():
    dataset = file("a.csv", "question,answer\na,b\n")
    assert "has the columns question, answer; set column" in refused(dataset)
    assert "has no column Goal. It has question, answer" in refused(dataset, column="Goal")
    assert "no column text" in refused(file("a.jsonl", '{"text": "a"}\n{"prompt": "b"}\n'))


@pytest.mark.parametrize("cell", ["", "   "])
def test_a_cell_without_text_is_an_error_that_names_the_row_of_the_data_set(cell):
    dataset = file("a.csv", f"text,id\na,1\n{cell},2\nc,3\n")
    for split in ("train", "train[1:]"):
        assert "row 2: the column text holds no text" in refused(dataset, split)


def test_prefix_and_suffix_stand_around_every_prompt():
    expected = ["Please: prompt 0 Be brief.", "Please: prompt 1 Be brief."]
    assert texts(lines(2), prefix="Please: ", suffix=" Be brief.") == expected


def test_the_system_prompt_of_the_set_goes_before_the_general_one():
    cases = [(None, None, None), (None, "general", "general"), ("own", "general", "own"), ("own", None, "own")]
    for own, general, expected in [*cases, ("", "general", None)]:
        source = PromptSource(dataset=lines(2), system_prompt=own)
        assert {prompt.system for prompt in load_prompts(source, general)} == {expected}


def test_too_few_prompts_are_an_error_that_says_how_many_are_needed():
    for count, minimum, found in ((0, 1, "is empty"), (1, 2, "holds 1 prompt"), (2, 3, "holds 2 prompts")):
        source = PromptSource(dataset=lines(count))
        with pytest.raises(PromptsError, match=rf"prompts\.txt train {found}\. This set needs at least {minimum}\."):
            load_prompts(source, minimum=minimum)
        assert len(load_prompts(PromptSource(dataset=lines(minimum)), minimum=minimum)) == minimum
    with pytest.raises(PromptsError, match="mine is empty"):
        PromptSet.of([], "mine")


# Files that are not what their name says


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("latin.txt", b"fine\n\xff\xfe\n", r"not UTF-8 text \(byte 5\)\. Convert it to UTF-8"),
        ("latin.csv", b"text\nfine\n\xe9\n", r"not UTF-8 text \(byte 10\)"),
        ("latin.json", b'["\xe9"]', r"not UTF-8 text \(byte 2\)"),
        ("latin.jsonl", b'"fine"\n"\xe9"\n', r"not UTF-8 text \(byte 8\)"),
        ("packed.tar.gz", b"\x1f\x8b\x08\x00", r"not UTF-8 text \(byte 1\)"),
        ("blank.txt", "\n \n", "is empty"),
        ("nothing.csv", "", "is empty"),
        ("header.csv", "text\n", "is empty"),
        ("list.json", "[]", "is empty"),
        ("blank.jsonl", "\n", "is empty"),
        ("nothing.json", "", "not valid JSON: .* line 1"),
        ("comma.json", '[\n"a",\n]', "not valid JSON: .* line 3"),
        ("object.json", '{"prompts": ["a"]}', "must hold a JSON list"),
        ("number.json", '["a", 2]', "item 2"),
        ("surrogate.json", '["a", "\\ud800"]', "row 2: the text is no valid Unicode"),
        ("deep.json", "[" * 100_000, "not valid JSON"),
        ("digits.json", "1" * 5000, "not valid JSON"),
        ("word.jsonl", '"a"\nb\n', "not valid JSON on line 2"),
        ("list.jsonl", '"a"\n\n["b"]\n', "line 3"),
        ("deep.jsonl", '"a"\n' + "[" * 100_000, "not valid JSON on line 2"),
        ("digits.jsonl", '"a"\n' + "1" * 5000, "not valid JSON on line 2"),
        ("quote.csv", 'text\n"never closed\n', "not valid CSV"),
        ("nothing.parquet", "", "not a valid parquet file"),
        ("start.parquet", "PAR1 and no more", "not a valid parquet file"),
    ],
    ids=lambda value: value if re.fullmatch(r"[\w.]{5,15}", str(value)) else "",
)
def test_a_malformed_file_is_an_error_that_says_where(name, content, problem):
    assert re.search(problem, refused(file(name, content)))


def test_a_damaged_parquet_file_is_not_a_valid_one():
    content = Path(written("prompts.parquet", TEXTS)).read_bytes()
    damaged = file("damaged.parquet", content[:20] + bytes(len(content) - 40) + content[-20:])
    assert "is not a valid parquet file" in refused(damaged)


@pytest.mark.parametrize("content", ["", "{}"])
@pytest.mark.parametrize("name", ["dataset_dict.json", "state.json", "data-00000-of-00001.arrow"])
def test_a_damaged_saved_data_set_is_an_error(name, content):
    folder = Path(written("saved-splits" if name == "dataset_dict.json" else "saved-set", TEXTS))
    assert (folder / name).is_file()
    (folder / name).write_text(content, encoding="utf-8")
    assert "cannot be loaded" in refused(folder)
    Path("no-data-set").mkdir()
    assert "cannot be loaded" in refused("no-data-set")


@pytest.mark.parametrize("role", ["target", "benign"])
def test_a_built_in_set_is_the_sum_of_its_splits(role):
    name = f"builtin:everyday/{role}"
    assert texts(name) == [text for split in ("fit", "select", "report") for text in texts(name, split)]
    assert "It has fit, select, report" in refused(name, "train2")


@pytest.mark.parametrize("name", ["builtin:everyday", "builtin:everyday/neutral", "builtin:weather/target", "builtin:"])
def test_an_unknown_built_in_set_is_answered_with_those_there_are(name):
    assert "There are builtin:everyday/target, builtin:everyday/benign" in refused(name)


# Fingerprint and overlap


def test_a_fingerprint_tells_any_difference():
    sets = [PromptSet.of(items) for items in (["a", "b"], ["a", "b", "c"], ["b", "a"], ["a", "B"], ["a", "b "], ["ab"])]
    sets += [PromptSet.of(["a", "b"], system="be brief"), PromptSet((Prompt("a", "be brief"), Prompt("b")), "texts")]
    assert len({prompts.fingerprint for prompts in sets}) == len(sets)


def test_a_fingerprint_is_the_sha256_of_system_prompts_and_texts_whatever_their_source():
    content = '[["be brief", "größe"], ["be brief", "two\\nlines"]]'
    for source in ("one", "two"):
        prompts = PromptSet.of(["größe", "two\nlines"], source, system="be brief")
        assert prompts.fingerprint == hashlib.sha256(content.encode()).hexdigest()


def test_overlap_counts_shared_prompts_letter_case_and_spaces_aside():
    mine = PromptSet.of(["Call a taxi", "what  is\nthis?", "alone"])
    theirs = PromptSet.of(["call a TAXI ", "What is this?", "other", "other still"])
    assert mine.overlap(theirs) == 2
    assert mine.overlap(PromptSet.of(["call", "taxi"])) == 0
    assert mine.overlap(mine) == len(mine)
