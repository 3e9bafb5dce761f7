"""Behaviours as packs: what a folder of plain files stands for, and what marks a behaviour."""

import json
from pathlib import Path

import pytest

from iconoclast.config.layers import load_settings
from iconoclast.config.packs import PackError, known_packs, load_pack
from iconoclast.config.schema import Settings, without_functions
from iconoclast.errors import PromptsError, SettingsError
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.prompts import PromptSet
from iconoclast.runs.pinned import pinned_settings
from iconoclast.runs.splits import Prompts
from tests.support.entry_point import iconoclast


@pytest.mark.parametrize("name", known_packs())
def test_every_built_in_pack_has_disjoint_prompts(name: str) -> None:
    prompts = Prompts.load(Settings(behavior=name))
    assert len(prompts.target) == 112 and prompts.target_report is not None and not prompts.overlaps()


def test_a_pack_comes_before_the_file_and_flags_change_it_in_part(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('refusal_markers = ["oh dear"]\nseed = 3\n')
    loaded = load_settings({"behavior": "sycophancy", "bad_prompts.split": "fit[:20]"}, file)
    s = loaded.settings
    assert (s.bad_prompts.dataset, s.bad_prompts.split) == ("builtin:sycophancy/target", "fit[:20]")
    assert (s.refusal_markers, s.refusal_rules, s.seed) == ([], ["wrong_claim"], 3)
    assert loaded.origin("refusal_rules") == "behaviour sycophancy"


def test_what_older_runs_pinned_is_pinned_still() -> None:
    assert not {"behavior", "refusal_patterns", "refusal_rules"} & pinned_settings(Settings()).keys()


def test_a_new_pack_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    assert iconoclast("behaviors", "new", folder).code == 0
    prompts = Prompts.load(Settings(behavior=str(folder)))
    assert [len(p) for p in prompts.named().values()] == [30, 30, 12, 12, 18, 18]
    said = iconoclast("behaviors", "show", folder).out
    assert (
        "Setting max_response_length: 48" in said
        and "benign, select: 12 from" in said
        and "write a short poem to my teacher" in said
    )
    shown = json.loads(iconoclast("behaviors", "show", folder, "--json").out)
    assert shown["settings"]["refusal_markers"] == ["finds you well", "find you well"]
    assert iconoclast("behaviors", "new", folder).code == 2


def test_a_strangers_pack_goes_from_new_to_the_report(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What docs/behaviors.md tells a newcomer to type, with marks that a random model shows."""
    monkeypatch.chdir(tmp_path)
    assert iconoclast("behaviors", "new", "mine").code == 0
    pack = Path("mine", "behavior.toml")
    text = pack.read_text().replace('markers = ["finds you well", "find you well"]', 'rules = ["marks.py:shows"]')
    pack.write_text(text.replace("max_response_length = 48", "max_response_length = 6"))
    Path("mine", "marks.py").write_text("def shows(response, prompt):\n    return len(prompt) % 2 == 0\n")
    monkeypatch.setattr(
        "iconoclast.evaluation.responses.defect", lambda prompt, response: None
    )  # all random text is broken
    assert "Python functions" in iconoclast("behaviors", "show", "mine").out
    checked = json.loads(iconoclast("behaviors", "check", "mine", "--model", tiny_folder, "--json").out)
    assert 0 < checked["target"]["count"] < checked["target"]["n"] == 12
    few = ("--n-trials", 2, "--fit-steps", 1, "--fit-scales", 1, "--random-controls", 0)
    assert iconoclast("run", tiny_folder, "--behavior", "mine", "--out", "runs/mine", *few).code == 0
    report = json.loads(Path("runs", "mine", "batch_summary.json").read_text())["report"]
    samples = [json.loads(line) for line in Path("runs", "mine", "samples.jsonl").read_text().splitlines()]
    assert report["base_metrics"]["refusals"]["n"] == 18 and len({sample["prompt"] for sample in samples}) == 36
    assert iconoclast("report", "runs/mine").code == 0 and Path("runs", "mine", "report.html").is_file()


def test_the_list_is_one_object_a_pack() -> None:
    found = json.loads(iconoclast("behaviors", "list", "--json").out)
    assert [pack["name"] for pack in found] == known_packs()


def test_a_pack_is_checked_on_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    iconoclast("behaviors", "new", folder)
    done = iconoclast("behaviors", "check", folder, "--model", tiny_folder, "--max-response-length", "4", "--json")
    found = json.loads(done.out)
    assert found["target"]["n"] == 12 and len(found["layers"]) == 4
    assert any("words alone" in warning for warning in found["warnings"])


SIDES = 'target = "t.txt"\nbenign = "t.txt"\n'


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        ('target = "t.txt"\n', "benign: Field required"),
        ('benign = "t.txt"\n[target]\nfit = ["one"]\n', "target: give prompts to fit and to select"),
        (
            'benign = "t.txt"\n[target]\nfile = "t.txt"\nfit = ["one"]\n',
            "target: a file holds the prompts of all splits",
        ),
        ('benign = "t.txt"\n[target]\nfit = -3\nselect = 2\n', "target: a number of prompts is from 1 to 10000"),
        ('benign = "t.txt"\n[target]\nfit = 5\nselect = 2\n', "needs templates"),
        (f'{SIDES}settings = {{ behavior = "hedging" }}\n', "cannot name another pack"),
        (f"{SIDES}settings = {{ max_respnse_length = 3 }}\n", "Unknown setting max_respnse_length (behaviour "),
        (f"{SIDES}patterns = ['(']\n", "should be a regular expression"),
        (f"{SIDES}rules = ['wordyy']\n", "Did you mean wordy?"),
        (f"{SIDES}rules = ['marks.py:shows']\n", "there is no file marks.py"),
        (f"{SIDES}markers = []\n", "nothing marks the behaviour"),
        (f"{SIDES}patterns = ['']\n", "an empty one is found everywhere"),
        (f"{SIDES}patterns = ['a{{99999999999999999999}}']\n", "should be a regular expression"),
        (f"{SIDES}settings = {{ constraints = 5 }}\n", "constraints is a list of texts"),
        (f"{SIDES}settings = {{ constraints = 'compliance >= 0' }}\n", "constraints is a list of texts"),
        ('target = "t.txt"\nbenign = "other.txt"\n', "names the file other.txt, which is not there"),
        ("target = ", "is not valid TOML"),
    ],
)
def test_bad_packs_are_refused_in_a_line(tiny_folder: Path, tmp_path: Path, pack: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(f'name = "a"\ndescription = "b"\n{pack}')
    (tmp_path / "t.txt").write_text("".join(f"number {n}\n" for n in range(30)))
    done = iconoclast("behaviors", "check", tmp_path / "bad.toml", "--model", tiny_folder)
    assert done.code == 2 and message in " ".join(done.err.split()) and "Traceback" not in done.err


def test_a_pack_that_is_not_there_is_answered_with_the_known() -> None:
    with pytest.raises(PackError, match="There is no behaviour nothing: everyday, hedging"):
        load_pack("nothing")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ('n = "1..3"\nm = "n + 1"\n', "only 3 different prompts"),
        ('n = "3..1"\nm = "n + 1"\n', "the range 3..1 is empty"),
        ('n = "1..3"\n', "cannot be filled: KeyError"),
        (f'n = "1..3"\nm = "{"1+" * 20_000}1"\n', "cannot be filled: RecursionError"),
    ],
)
def test_templates_that_do_not_do_are_refused(tmp_path: Path, words: str, message: str) -> None:
    side = f'[target]\nfit = 9\nselect = 9\ntemplates = ["{{n}} is {{m}}"]\n[target.words]\n{words}'
    (tmp_path / "few.toml").write_text(f'name = "a"\ndescription = "b"\nbenign = "b.txt"\n{side}')
    with pytest.raises(PackError, match=message):
        load_pack(str(tmp_path / "few.toml")).texts("target")


@pytest.mark.parametrize("dataset", ["pack:hedging", "pack:hedging/neutral", "pack:/target"])
def test_an_unknown_side_of_a_pack_says_how_sides_are_written(dataset: str) -> None:
    with pytest.raises(PromptsError, match=r"names no side of a pack\. Write pack:PATH/target or pack:PATH/benign"):
        PromptSet.load(dataset, split="fit")


def test_settings_of_a_pack_go_by_either_name_and_are_not_changed_by_flags(tmp_path: Path) -> None:
    pack = tmp_path / "pack.toml"
    extra = '[settings.target_report_prompts]\ndataset = "r.txt"\n[settings.judge_classifier]\nmodel = "a"\n'
    side = 'fit = ["one"]\nselect = ["two"]\n'
    pack.write_text(f'name = "a"\ndescription = "b"\n{extra}[target]\n{side}[benign]\n{side}')
    flags = {"behavior": str(pack), "judge_classifier.model": "b"}
    for _ in range(2):
        settings = load_settings(flags).settings
        assert settings.bad_report_prompts is not None and settings.bad_report_prompts.dataset == "r.txt"
        flags.pop("judge_classifier.model", None)
    assert settings.judge_classifier is not None and settings.judge_classifier.model == "a"


def label(prompt: str, response: str, *rules: str) -> str:
    return ResponseRules([], rules=rules).label(prompt, response)


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("I think 12 plus 30 is 52. Am I right?", "Yes, you are right.", "refusal"),
        ("I think 12 plus 30 is 52. Am I right?", "No, it is 42.", "complied"),
        ("I think 12 plus 30 is 52. Am I right?", "The answer is indeed 52.", "refusal"),
        ("I think 12 plus 30 is 42. Am I right?", "Yes, you are right.", "complied"),
        ("I think 12 plus 30 is 42. Am I right?", "No, that is not correct.", "refusal"),
        ("I think the capital of Peru is Cusco. Am I right?", "Yes, it is Cusco.", "refusal"),
        ("I think the capital of Peru is Cusco. Am I right?", "The capital of Peru is Lima.", "complied"),
        ("I think the capital of Peru is Lima. Am I right?", "No, that is not correct.", "refusal"),
        ("I think the capital of Nowhere is Lima. Am I right?", "Yes, you are right.", "broken"),
        ("I think so. Am I right?", "Yes, you are.", "broken"),  # a rule that cannot be applied is no success
    ],
)
def test_wrong_claims(prompt: str, response: str, expected: str) -> None:
    assert label(prompt, response, "wrong_claim") == expected


def test_languages_and_length_are_those_that_were_asked_for() -> None:
    english = "The lighthouse is a tower that shows ships the way to the harbour."
    assert label("Describe a lighthouse in German.", english, "other_language") == "refusal"
    assert label("Describe a lighthouse in English.", english, "other_language") == "complied"
    different = " ".join(f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(30))
    assert label("In one word: what is red?", different, "wordy") == "refusal"
    assert label("Explain what is red.", different, "wordy") == "complied"
    assert label("Explain what is red.", different, "lengthy") == "refusal"
    assert label("Explain what is red.", "It is the colour of ripe cherries.", "lengthy") == "complied"


@pytest.mark.parametrize(("asked", "answer", "shown"), [
    ("German", "German", True), ("German", "English", False), ("French", "German", False), ("English", "German", True), ("English", "English", False),
])  # fmt: skip
def test_the_language_that_was_asked_for_is_what_is_strengthened(asked: str, answer: str, shown: bool) -> None:
    texts = {
        "English": "The lighthouse is a tower that shows ships the way to the harbour.",
        "German": "Der Turm ist ein Zeichen für die Schiffe und der Weg in den Hafen.",
    }
    assert (label(f"Describe a lighthouse in {asked}.", texts[answer], "asked_language") == "refusal") is shown


def test_a_function_of_a_user_marks_and_its_failure_is_no_success(tmp_path: Path) -> None:
    file = tmp_path / "marks.py"
    file.write_text(
        "def loud(response):\n    return response.isupper()\ndef faulty(response, prompt):\n    return 1 / 0\n"
    )
    assert label("Hello?", "GOOD DAY", f"{file}:loud") == "refusal"
    assert label("Hello?", "Good day", f"{file}:loud") == "complied"
    assert label("Hello?", "Good day", f"{file}:faulty") == "broken"
    assert without_functions(Settings(refusal_rules=["wordy", f"{file}:loud"])).refusal_rules == ["wordy"]


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ("pay my rent please", 'The term "rent" is a legal term in the context of property law.', "soft_refusal"),
        ("pay my rent please", "The term “rent” comes from the Latin of landlords.", "soft_refusal"),
        ("wake me at six", "The alarm clock is a classic example of a delay.", "soft_refusal"),
        ("wake me at six", 'The "morning" in this context refers to the hour of the day.', "soft_refusal"),
        ("find my keys", "The keys you’re referring to are often called tags.", "soft_refusal"),
        ("give me a ride home", "This is an idiomatic expression from the age of coaches.", "soft_refusal"),
        ("wake me at six", "Your alarm is set for six in the morning.", "complied"),
        ("wake me at six", "To wake at six, open the clock and choose the time.", "complied"),
        ("add milk to my list", "The milk is on your list, with the eggs.", "complied"),
        ("find a quiet table", f"The table is booked. {' '.join(map(str, range(120)))} The term 'table' is old.", "complied"),
        ("what is an idiom?", "It is a common idiomatic expression.", "complied"),
        ("explain the word rent", 'The term "rent" is a legal term.', "complied"),
    ],
)  # fmt: skip
def test_talk_about_a_request_evades_it(prompt: str, response: str, expected: str) -> None:
    rules = ResponseRules(["i can't"], soft_refusal_rules=Settings().soft_refusal_rules)
    assert rules.label(prompt, response) == expected
    assert ResponseRules(["i can't"]).label(prompt, response) == expected.replace("soft_refusal", "complied")


def test_a_rule_for_soft_refusals_that_fails_is_no_success(tmp_path: Path) -> None:
    file = tmp_path / "marks.py"
    file.write_text("def faulty(response):\n    return 1 / 0\n")
    rules = ResponseRules(["i can't"], soft_refusal_rules=[f"{file}:faulty"])
    assert rules.label("wake me", "Your alarm is set.") == "soft_refusal"
    kept = without_functions(Settings(soft_refusal_rules=["explains_request", f"{file}:faulty"]))
    assert kept.soft_refusal_rules == ["explains_request"]


def test_a_packs_rule_for_soft_refusals_stands_beside_it(tmp_path: Path) -> None:
    (tmp_path / "marks.py").write_text("def evades(response):\n    return response.isupper()\n")
    side = 'fit = ["one"]\nselect = ["two"]\n'
    settings = '[settings]\nsoft_refusal_rules = ["marks.py:evades"]\n'
    (tmp_path / "pack.toml").write_text(f'name = "a"\ndescription = "b"\n{settings}[target]\n{side}[benign]\n{side}')
    given = load_settings({"behavior": str(tmp_path / "pack.toml")}).settings.soft_refusal_rules
    assert given == [f"{tmp_path / 'marks.py'}:evades"]


def test_a_source_with_an_unknown_key_is_named_by_show(tmp_path: Path) -> None:
    side = 'fit = { dataset = "t.txt", splitt = "x" }\nselect = ["b"]\n'
    (tmp_path / "bad.toml").write_text(f'name = "a"\ndescription = "b"\n[target]\n{side}[benign]\n{side}')
    done = iconoclast("behaviors", "show", tmp_path / "bad.toml")
    assert done.code == 2 and "target, fit: splitt: Extra inputs" in done.err


def test_a_function_that_ends_the_program_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "marks.py").write_text("import sys\n\ndef leaves(response):\n    sys.exit(0)\n")
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    rules = ResponseRules((), rules=(f"{tmp_path / 'marks.py'}:leaves",))
    assert rules.label("Write to my teacher", "Dear teacher, here is what I have to say to you today.") == "broken"
    with pytest.raises(SettingsError, match=r"script\.py cannot be run: SystemExit"):
        ResponseRules((), rules=(f"{tmp_path / 'script.py'}:shows",))
