"""What an edit did to a model's character: known differences are found, equal models show none."""

import json
from functools import partial
from pathlib import Path

import pytest
import tomli_w
import torch
from safetensors.torch import load_file, save_file

from iconoclast.audit.behavior import EXAMPLES, MEASURES, Beside, Response, SetName, kinds, moved, traits
from iconoclast.audit.document import AuditDocument
from iconoclast.audit.stance import PAIRS, WORDINGS, preferences, questions, stances
from iconoclast.config.schema import Settings, settings_document
from iconoclast.evaluation.examination import Variant
from iconoclast.models.language_model import LanguageModel
from iconoclast.reports.character import character_lines
from iconoclast.runs.behavior_audit import audit_behavior
from iconoclast.runs.subjects import find_subject
from iconoclast.vocabulary import Label
from tests.support.chat_server import ChatServer, serving
from tests.support.entry_point import iconoclast
from tests.support.tiny import save_tiny


@pytest.mark.parametrize(
    ("measure", "low", "high"),
    [
        ("words", "The lights are off.", "The lights are off, and they will stay off until you say more."),
        ("hedges_per_100_words", "It is a river.", "Perhaps it is a river, or maybe it might be a lake."),
        ("disclaimers_per_100_words", "Drink water.", "As an AI, I say: please note that you should consult a doctor."),
        ("first_person_per_100_words", "It is late.", "I'm sure that my clock and I agree."),
        ("sentiment_per_100_words", "Sadly that is a terrible idea.", "What a wonderful, happy idea."),
        ("begins_with_agreement", "The light is on, certainly.", "Of course! The light is on."),
        ("asks_back", "It is seven.", "Which clock do you mean?"),
        ("uses_lists", "One, two - three.", "Take:\n- one\n- two"),
    ],
)
def test_measures_tell_apart_what_they_are_named_after(measure: str, low: str, high: str) -> None:
    assert MEASURES[measure](low) < MEASURES[measure](high)
    assert MEASURES[measure]("") == 0


def row(i: int, base: str, edited: str, labels: tuple[Label, Label] = ("complied", "complied"), of: SetName = "benign", kl: float | None = None) -> Beside:  # fmt: skip
    return Beside(of, f"Prompt {i}", Response(base, labels[0]), Response(edited, labels[1]), kl)


def test_a_model_that_grows_wordy_is_found_and_one_that_does_not_change_is_not() -> None:
    rows = [
        row(i, "Yes, it is." + " So." * (i % 3), "Perhaps it is, and then again it may be not so.") for i in range(30)
    ]
    found = {trait.measure: trait.difference for trait in traits(rows)}
    assert found["words"].interval[0] > 0 and found["hedges_per_100_words"].interval[0] > 0
    assert found["begins_with_agreement"].interval[1] < 0
    assert found["uses_lists"].value == 0 and found["uses_lists"].p_value == 1


def test_what_moved_most_comes_first_of_every_set() -> None:
    rows = [
        row(0, "a", "a", kl=9.0),  # the same text has not moved
        row(1, "a", "b", kl=0.1),
        row(2, "a", "b", kl=0.5),
        row(3, "a", "I can't", ("complied", "refusal"), kl=0.0),
        row(4, "a", "b", kl=0.2),
        row(5, "a", "bcd", of="target"),
    ]
    assert [each.prompt for each in moved(rows)] == ["Prompt 3", "Prompt 2", "Prompt 4", "Prompt 5"]
    assert len(moved(rows)) == EXAMPLES + 1


def test_kinds_are_sets_and_axes_and_the_most_relabelled_come_first() -> None:
    rows = [
        row(0, "no", "yes", ("refusal", "complied"), "target"),
        row(1, "no", "no", of="target"),
        row(2, "a", "b"),
    ]
    found = kinds(rows, [["calls"], []])
    assert [kind.name for kind in found] == ["target, calls", "target", "benign"]
    assert [(k.other_label.count, k.other_text.count, k.other_text.n) for k in found] == [
        (1, 1, 1),
        (1, 1, 2),
        (0, 1, 1),
    ]


def test_questions_are_counterbalanced_and_repeated() -> None:
    asked = questions()
    assert len({question.text for question in asked}) == len(asked) == len(PAIRS) * len(WORDINGS) * 2
    for first, second in PAIRS:
        own = [q for q in asked if (q.first, q.second) == (first, second)]
        turned = [q for q in own if q.text.lower().index(second) < q.text.lower().index(first)]
        assert turned == [q for q in own if q.turned] and len(own) == 2 * len(turned) >= 12
        assert first[0] != second[0]


def test_a_preference_that_was_put_in_is_found(tiny_lm: LanguageModel) -> None:
    before = preferences(Variant("base", tiny_lm))
    assert stances(before, before)[1].difference.p_value == 1
    (tea,) = tiny_lm.tokenizer.encode("t", add_special_tokens=False)
    head = tiny_lm.model.get_output_embeddings()
    hook = head.register_forward_hook(
        lambda module, inputs, out: out + 3 * torch.nn.functional.one_hot(torch.tensor(tea), 261)
    )
    after = preferences(Variant("edited", tiny_lm))
    hook.remove()
    found = {stance.first: stance for stance in stances(before, after)[0]}
    assert found["tea"].edited > found["tea"].base and found["tea"].difference.interval[0] > 0
    assert found["dogs"].difference.value == pytest.approx(0, abs=0.05)


def test_a_model_beside_itself_has_not_changed_its_character(tiny_settings: Settings, tiny_folder: Path) -> None:
    comparison, character = audit_behavior(find_subject(str(tiny_folder)), tiny_settings, str(tiny_folder))
    assert not character.moved and comparison.base.scores.refusals == comparison.examinations[0].scores.refusals
    assert all(t.difference.value == 0 for t in character.traits)
    assert character.stances is not None and len(character.stances) == len(PAIRS)
    assert not [line for line in character_lines(character) if "before" in line]


def test_a_server_is_audited_without_its_stances(
    tiny_settings: Settings, tiny_lm: LanguageModel, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving(ChatServer(tiny_lm, most=20)) as url:
        _, character = audit_behavior(find_subject(url), tiny_settings, str(tiny_folder))
    assert character.stances is None and character.traits and not character.moved


def test_an_endpoint_is_audited_by_its_answers_and_says_that_its_weights_are_unseen(
    tiny_settings: Settings, tiny_lm: LanguageModel, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    config, file = tmp_path / "settings.toml", tmp_path / "audit.json"
    config.write_text(tomli_w.dumps(settings_document(tiny_settings)))
    (tmp_path / "asked.csv").write_text("question\nIs tea warm?\nIs ice cold?\n")
    named = f"{tmp_path / 'asked.csv'},column=question"
    with serving(ChatServer(tiny_lm, most=20)) as url:
        done = iconoclast(
            "audit", "--server", url, "--base", tiny_folder, "--config", config, "--json", file, "--refusal-set", named
        )
    assert done.code == 0, done.err
    assert "its weights cannot be seen" in " ".join(done.out.split())
    document = AuditDocument.read(file)
    assert (document.verdict, document.tensors, document.edited) == ("unseen", [], "tiny")
    assert document.behavior is not None and document.behavior["subjects"][0]["metrics"]["truncation"]["top"] == 20
    assert document.character is not None and document.character.sets[0].edited["refusal"].n == 2
    assert iconoclast("report", file).code == 0
    assert "weights behind the endpoint were not seen" in (tmp_path / "audit-report.html").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Name an edited model or, with --server"),
        (["edited", "--server", "http://127.0.0.1:9/v1"], "Name an edited model or, with --server"),
        (["--server", "http://127.0.0.1:9/v1", "--weights-only"], "--weights-only needs the weights"),
        (["--server", "http://127.0.0.1:9/v1", "--tasks", "arc_easy"], "--tasks needs the weights"),
        (["--server", "http://127.0.0.1:9/v1"], "cannot be asked what it serves"),
    ],
)
def test_what_cannot_be_asked_of_an_endpoint_is_said(
    options: list[str], said: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    done = iconoclast("audit", *options, "--base", tiny_folder)
    assert done.code == 2 and said in " ".join(done.complaint.split()), done.complaint


def test_the_audit_says_what_behaves_otherwise(tiny_settings: Settings, tiny_folder: Path, tmp_path: Path) -> None:
    edited, config, file = save_tiny(tmp_path / "edited"), tmp_path / "settings.toml", tmp_path / "audit.json"
    tensors = load_file(edited / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"] *= -1
    save_file(tensors, edited / "model.safetensors", {"format": "pt"})
    config.write_text(tomli_w.dumps(settings_document(tiny_settings)))
    done = iconoclast("audit", edited, "--base", tiny_folder, "--config", config, "--json", file)
    assert done.code == 0, done.err
    assert "another text" in done.out and "measures of character" in done.out and "Moved (" in done.out
    character = json.loads(file.read_text())["character"]
    assert character["first_named"]["difference"]["n"] == len(questions()) and character["moved"]
    assert {trait["set"] for trait in character["traits"]} == {"target", "benign"}


def test_data_sets_and_tasks_that_the_user_names_are_measured_beside_the_base(
    tiny_settings: Settings, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    edited, config, file = save_tiny(tmp_path / "edited"), tmp_path / "settings.toml", tmp_path / "audit.json"
    tensors = load_file(edited / "model.safetensors")
    tensors["model.layers.2.self_attn.o_proj.weight"] *= -1
    save_file(tensors, edited / "model.safetensors", {"format": "pt"})
    refusing = tiny_settings.model_copy(update={"refusal_patterns": ["."]})  # whatever says something refuses
    config.write_text(tomli_w.dumps(settings_document(refusing)))
    (tmp_path / "asked.csv").write_text("question,split\nIs tea warm?,test\nIs ice cold?,test\nIs it late?,train\n")
    items = [{"q": f"What is {n} plus 1?", "choices": ["2", "7"], "answer": n % 2} for n in range(6)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "sums.yaml").write_text(
        f"task: tiny_sums\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path / 'sums.jsonl'}}}, "
        f"cache_dir: {tmp_path / 'cache'}}}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: q\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc, aggregation: mean}]\n"
    )
    named = f"{tmp_path / 'asked.csv'},split=test,column=question"
    done = iconoclast(
        "audit", edited, "--base", tiny_folder, "--config", config, "--json", file, "--refusal-set", named,
        "--overrefusal-set", "builtin:everyday/benign,split=report[:3]", "--tasks", "tiny_sums", "--include-path", tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "Refusals in" in done.out and "exact McNemar" in done.out and "tiny_sums" in done.out
    document = AuditDocument.read(file)
    assert document.character is not None and document.capabilities is not None
    first, second = document.character.sets
    assert (first.kind, first.base["refusal"].n, second.kind, second.edited["refusal"].n) == (
        "refusals",
        2,
        "overrefusals",
        3,
    )
    assert sum(count.count for count in first.edited.values()) == 2 and first.base["refusal"].count > 0
    assert "Is tea warm" not in file.read_text()
    (row,) = document.capabilities.rows
    assert row.n == 6 and row.base is not None and row.base.interval is not None
    assert row.difference is not None and row.difference.paired and row.difference.p_value is not None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--refusal-set", "some.csv"], "some.csv does not exist"),
        (["--refusal-set", "builtin:everyday/target,splti=report"], "splti"),
        (["--overrefusal-set", "builtin:everyday/target,report"], "every field is KEY=VALUE"),
        (["--refusal-set", "builtin:everyday/target", "--weights-only"], "--weights-only leaves out behaviour"),
        (["--tasks", "tiny_nothing"], 'knows no task "tiny_nothing"'),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_read(
    options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    done = iconoclast("audit", tmp_path / "edited", "--base", tmp_path / "base", *options)
    assert done.code == 2 and said in " ".join(done.complaint.split()), done.complaint
