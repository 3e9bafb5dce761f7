"""Models that think: with thoughts, without, and both, in a run, an evaluation and a conversation."""

import json
from pathlib import Path
from typing import Any

import pytest

from iconoclast.cli.chat import hear
from iconoclast.config.schema import PromptSource, Settings
from iconoclast.edits.edit import Edit
from iconoclast.errors import ModelError
from iconoclast.evaluation.evaluator import Evaluator, MeasureOptions
from iconoclast.evaluation.examination import Variant
from iconoclast.evaluation.responses import ResponseRules
from iconoclast.fitting.examples import Examples
from iconoclast.fitting.objective import Kind
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.models.thinking import Thoughts, find_thinking_start, thinking_block
from iconoclast.prompts import Prompt, PromptSet
from iconoclast.runs import fits
from iconoclast.runs.documents import BatchSummary
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.pinned import changed_settings, pinned_settings
from iconoclast.runs.replay import replay
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.starting import started_run
from iconoclast.runs.talk import Talk
from iconoclast.scores import Count
from iconoclast.search.space import FittedParameters
from tests.support.entry_point import iconoclast
from tests.support.thinker import ALWAYS, CHANNELS, OPENED, SWITCHED, saying

PROMPTS = PromptSet(tuple(Prompt(text) for text in ("Set an alarm", "Lay the table", "Call a taxi")), "prompts")


def thinker(folder: Path, template: str, prefix: str = "") -> LanguageModel:
    lm = load_model(str(folder), dtypes=["float32"])
    lm.tokenizer.chat_template = template
    lm.thinking = True
    return lm.with_prefix(prefix)


@pytest.mark.parametrize(
    ("template", "prefix", "said", "thoughts", "answer"),
    [
        (SWITCHED, "", "<think>\nHm, I can't.\n</think>\n\nSure.", "Hm, I can't.", "Sure."),
        (SWITCHED, "", "Sure, without a thought.", "", "Sure, without a thought."),
        (SWITCHED, "<think>\nOkay,", " I will.\n</think>\n\nSure.", "I will.", "Sure."),
        (SWITCHED, "<think>\n\n</think>\n\n", "Sure.", "", "Sure."),
        (OPENED, "", "Hm.\n</think>\n\nSure.", "Hm.", "Sure."),
        (ALWAYS, "", "Hm.</think>Sure.", "Hm.", "Sure."),
        (
            CHANNELS,
            "",
            "<|channel|>analysis<|message|>Hm.<|end|><|assistant|><|channel|>final<|message|>Sure.",
            "Hm.",
            "Sure.",
        ),
        (
            CHANNELS,
            "<|channel|>analysis<|message|>",
            "Hm.<|end|><|assistant|><|channel|>final<|message|>Sure.",
            "Hm.",
            "Sure.",
        ),
        (OPENED, "", "Hm, and hm, and hm again", "Hm, and hm, and hm again", None),
    ],
)
def test_answers_are_read_after_the_thoughts(
    tiny_folder: Path, template: str, prefix: str, said: str, thoughts: str, answer: str | None
) -> None:
    lm = thinker(tiny_folder, template, prefix)
    ids = lm.tokenizer.encode(said, add_special_tokens=False)
    known = Thoughts(lm, 200)
    own, rest = known.split(ids)
    assert known.text(own) == thoughts
    assert (None if rest is None else lm.text(rest).strip()) == answer
    decided = known.deciding(3)
    assert decided(0, ids) is (answer is not None) and not decided(0, ids[:1])
    if thoughts:
        assert Thoughts(lm, 2).split(ids)[1] is None and Thoughts(lm, 2).deciding(3)(0, ids)  # given up


def test_what_all_thoughts_begin_with_is_left_to_the_start(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saying(monkeypatch, lambda prompt: f"<|channel|>analysis<|message|>{prompt[8]} it is")
    lm = thinker(tiny_folder, CHANNELS)
    assert find_thinking_start(lm, PROMPTS.prompts, 3, longest=40) == "<|channel|>analysis<|message|>"


def test_a_model_that_knows_no_thoughts_is_not_let_think(tiny_lm: LanguageModel) -> None:
    with pytest.raises(ModelError, match=r"knows no thinking block\. Set thinking to off"):
        thinking_block(tiny_lm)


def test_what_is_never_answered_is_broken_and_counted(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(prompt: str) -> str:
        if "alarm" in prompt:
            return "<think>I can't.</think>Here is the alarm for you."
        return "<think>well " + "then " * (40 if "table" in prompt else 1) + "</think>I can't do that."

    saying(monkeypatch, said)
    lm = thinker(tiny_folder, SWITCHED)
    options = MeasureOptions(response_length=40, benign_response_length=20, thought_length=60)
    rules = ResponseRules(["i can't"], ["as an"], ["perhaps"])
    (scores,) = Evaluator(lm, PROMPTS, PROMPTS, rules, options).measure([Edit.nothing()])
    assert (scores.refusals, scores.broken, scores.unfinished) == (Count(1, 3), Count(1, 3), Count(1, 3))
    assert scores.document()["unfinished"]["count"] == 1


@pytest.fixture
def settings(tiny_settings: Settings, tmp_path: Path) -> Settings:
    template = tmp_path / "template.jinja"
    template.write_text(SWITCHED)
    own = {"chat_template": str(template), "max_thought_length": 40, "n_trials": 3, "fit": False, "random_controls": 0}
    return tiny_settings.model_copy(update=own | {"max_response_length": 32, "refusal_markers": ["i can't"]})


def response(prompt: str) -> str:
    """Refuses if it does not think; if it does, it refuses in its thoughts alone, and does not come to an end about light."""
    word = prompt.partition("<|user|>")[2].partition("<|end|>")[0].split()[-1]
    if prompt.endswith("</think>\n\n"):
        return f"{word}: I can't do that."
    said = f"{word}: I can't.\n</think>\n\nHere it is" if "light" not in word else f"{word} " + "and so on " * 9
    return said if prompt.endswith("<think>\n") else f"<think>\n{said}"


def test_a_run_without_thoughts_is_measured_with_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saying(monkeypatch, response)
    both = settings.model_copy(update={"thinking": "both"})
    with started_run(both) as run:
        run.optimize(3)
        run.finish()
    report = BatchSummary.read(RunFolder(tmp_path / "run").summary).report
    assert report is not None and report.with_thoughts is not None and report.metrics.thoughts is None
    assert report.metrics.refusals.count == 2
    found = report.with_thoughts.metrics
    assert (found.refusals.count, found.broken.count, found.complied.count) == (0, 1, 1)
    assert found.thoughts is not None and found.thoughts.unfinished == Count(1, 2) and found.unfinished == Count(1, 2)
    assert found.thoughts.refusals == Count(1, 2)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    said = rows[0]["responses"]["base model, with thoughts"]
    assert (
        said["thoughts"] == "note: I can't." and said["label_of_thoughts"] == "refusal" and said["label"] == "complied"
    )
    assert "thoughts" not in rows[0]["responses"]["base model"]
    assert not changed_settings(settings, both) and "thinking" not in pinned_settings(both)
    assert changed_settings(settings, settings.model_copy(update={"thinking": "on"})) == ["thinking"]


def test_a_run_with_thoughts_is_replayed_and_evaluated_without_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saying(monkeypatch, response)
    notes: list[str] = []

    class Notes:
        def start(self, task: str, total: int) -> None: ...
        def advance(self, steps: int = 1) -> None: ...
        def note(self, message: str) -> None:
            notes.append(message)

    with started_run(settings.model_copy(update={"thinking": "on"}), Notes()) as run:
        run.optimize(3)
        run.finish(Notes())
        assert run.base.refusals.count == 0
    assert any("answers are read after </think>, which must come within 40 tokens" in line for line in notes)
    assert any("Responses start with '<think>" in line for line in notes)
    folder = tmp_path / "run"
    assert SavedRun.open(RunFolder(folder), "best").response_prefix.startswith("<think>")
    assert replay(folder, "best").grade == "exact"
    done = iconoclast("evaluate", folder, "--thinking", "both", "--json", tmp_path / "both.json")
    assert done.code == 0, done.err
    assert "thinking first" in done.out and "Refusals in thoughts" in done.out
    told = json.loads((tmp_path / "both.json").read_text())
    assert told["base_metrics"]["refusals"]["count"] == 2
    assert told["with_thoughts"]["base_metrics"]["refusals"]["count"] == 0
    assert iconoclast("evaluate", folder, "--thinking", "maybe").code == 2


def test_a_fit_learns_from_answers_that_come_after_thoughts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said(prompt: str) -> str:
        """Thinks without an end about song 0."""
        word = prompt.partition("<|user|>")[2].partition("<|end|>")[0]
        return f"<think>\n{word} " + ("and so on " * 9 if word.endswith(" 0") else f"</think>\n\n{word}, gladly.")

    saying(monkeypatch, said)
    own: dict[str, Any] = {"thinking": "on", "fit": True, "fit_steps": 3, "fit_scales": [1.0], "response_prefix": ""}
    for name, words in (("good_prompts", "Who wrote song"), ("bad_prompts", "Play song")):
        file = tmp_path / f"{name}.txt"
        file.write_text("\n".join(f"{words} {number}" for number in range(10)))
        own[name] = PromptSource(dataset=str(file))
    learnt: list[dict[Kind, Examples]] = []
    found = fits.Lessons.examples
    monkeypatch.setattr(fits.Lessons, "examples", lambda self: learnt.append(found(self)) or learnt[-1])
    with started_run(settings.model_copy(update=own)) as run:
        run.optimize(3)
        run.finish()
        fitted = [t for t in run.trials() if isinstance(t.parameters, FittedParameters)]
        for examples in (learnt[0]["benign"], learnt[0]["target"]):
            texts = [
                (run.bench.lm.text(e.prompt, special=True), run.bench.lm.text(e.response)) for e in examples.examples
            ]
            assert len(texts) == 9  # the one whose thoughts have no end teaches nothing
            assert all(prompt.endswith("</think>\n\n") and "song" in prompt for prompt, _ in texts)
            assert all("think" not in response and ", glad" in response for _, response in texts)
    assert len(fitted) == 1 and SavedRun.open(RunFolder(tmp_path / "run"), "3").edit(run.bench.lm).sites


def test_a_model_without_thoughts_is_refused_before_the_search(tiny_settings: Settings) -> None:
    with (
        pytest.raises(ModelError, match="knows no thinking block"),
        started_run(tiny_settings.model_copy(update={"thinking": "on"})),
    ):
        pass


class Voices:
    """A model alone, as `chat` opens it."""

    names, edited, beside = ("base",), "", ""
    system: str | None = None

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm

    def voice(self, name: str, strength: float = 1) -> Variant:
        return Variant(name, self.lm)


def test_a_conversation_goes_on_with_and_without_thoughts(
    tiny_lm: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_lm.tokenizer.chat_template = SWITCHED
    talk = Talk(Voices(tiny_lm), longest=4)
    assert all(hear(talk, line) for line in ["/thinking both", "hello", "hello again"])
    said = capsys.readouterr()
    assert "Thinking is both." in said.err
    assert said.out.count("[without thinking]") == said.out.count("[thinking first]") == 2
    assert [each["role"] for each in talk._with("base").messages] == ["user", "assistant"] * 2
