"""`chat`: commands are obeyed and never sent to a model; runs, exports and models can be talked to."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest
import torch

from iconoclast.cli import chat
from iconoclast.edits.live import LiveEdits
from iconoclast.evaluation.examination import Variant
from iconoclast.models.language_model import LanguageModel
from iconoclast.runs.conversation import Conversation
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.talk import HELP, Talk
from iconoclast.runs.voices import Voices, open_voices, require_name
from tests.edits.test_live import token_ids
from tests.support.entry_point import QUICK, iconoclast, write_prompts
from tests.support.tiny import TEMPLATE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_prompts(folder)
        assert iconoclast("run", tiny_folder, *QUICK, "--n-trials", "2", "--out", "run").code == 0
        for kind in ("adapter", "merged"):
            assert iconoclast("export", "run", "--format", kind, "--to", kind).code == 0
    return folder / "run"


class Parrot:
    """A conversation without a model, which keeps what it hears."""

    def __init__(self, voice: Variant, system: str | None, longest: int) -> None:
        self.voice, self.thinking = voice, False
        self.restart(system)

    def reply(self, message):
        self.heard.append(message)
        yield f"to {message}"

    def restart(self, system_prompt):
        self.heard: list[str] = []
        self.system = system_prompt

    def document(self):
        return {"heard": self.heard}


class ParrotVoices:
    """A run of nine trials, without its models; a voice is its name and strength."""

    names = ("base", "edited", *(f"trial-{i}" for i in range(9)))
    edited, system, beside = "trial 3", "Be kind.", ""

    def voice(self, name: str, strength: float = 1) -> Variant:
        require_name(name, self.names)
        return Variant(f"{name} {strength:g}", None)  # type: ignore[arg-type]


class Room:
    """A talk with two parrots."""

    def __init__(self) -> None:
        self.talk = Talk(ParrotVoices())  # type: ignore[arg-type]
        for name in ("base", "edited"):
            self.talk._with(name)
        self.base: Any
        self.edited: Any
        self.base, self.edited = (self.talk._conversations[name] for name in ("base", "edited"))

    def hear(self, *lines: str) -> list[bool]:
        return [chat.hear(self.talk, line) for line in lines]


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr("iconoclast.runs.talk.Conversation", Parrot)
    return Room()


def test_commands_choose_who_answers(room: Room) -> None:
    assert all(room.hear("one", "/both", "two", "/base", "three", "/edited", "four"))
    assert (room.base.heard, room.edited.heard) == (["two", "three"], ["one", "two", "four"])
    assert room.hear("/quit") == [False]


def test_no_command_reaches_a_model(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(room.hear("/help", "/frobnicate", "/strength", "/strength much", "/strength nan", "/both please"))
    assert all(room.hear("/trial 12", "/thinking maybe", "/save", "/save nowhere/said.json"))
    assert room.base.heard == room.edited.heard == [] and room.edited.voice.name == "edited 1"
    said = capsys.readouterr().err
    assert HELP in said and "There is no /frobnicate. /help lists the commands." in said
    assert said.count("/strength takes a number") == 3 and "/both takes nothing after it" in said
    assert 'There is no model "trial-12" here. Use one of: base, edited, trial-0 … trial-8.' in said
    assert "/thinking takes on, off or both." in said and said.count("/save takes the name of a new file") == 2


def test_a_path_is_a_message(room: Room) -> None:
    room.hear("/etc/hosts is what?", "1 / 2", "/5")
    assert room.edited.heard == ["/etc/hosts is what?", "1 / 2", "/5"]


def test_trial_strength_and_beginning_anew(room: Room) -> None:
    room.hear("one", "/strength 0.5", "/reset")
    assert room.edited.voice.name == "edited 0.5" and room.edited.heard == [] and room.edited.system == "Be kind."
    room.hear("/trial 7")
    assert room.edited.voice.name == "trial-7 1"
    room.hear("/strength 2", "/system Be brief,\nplease.", "/reset")
    assert room.talk.title == "trial 7, strengths times 2"
    assert room.edited.voice.name == "trial-7 2" and room.base.voice.name == "base 1"
    assert room.base.system == room.edited.system == "Be brief,\nplease."
    room.hear("/system")
    assert room.base.system is None


def test_what_was_said_is_saved_once(room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room.hear("/both", "one", f"/save {tmp_path}/said.json", f"/save {tmp_path}/said.json")
    said = json.loads((tmp_path / "said.json").read_text())["conversations"]
    assert [(each["title"], each["heard"]) for each in said] == [("base model", ["one"]), ("trial 3", ["one"])]
    assert "takes the name of a new file" in capsys.readouterr().err


def test_an_interrupt_ends_a_response_and_not_the_conversation(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(message):
        yield "begun"
        raise KeyboardInterrupt

    monkeypatch.setattr(room.edited, "reply", interrupted)
    assert room.hear("one") == [True]


def test_a_line_goes_on_behind_a_backslash(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["one\\", "two", "three"])
    monkeypatch.setattr("builtins.input", lambda: next(lines))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    typed = chat.typed([])
    assert [next(typed), next(typed)] == ["one\ntwo", "three"]


def test_both_models_of_a_run_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversation.__init__, "__defaults__", (None, 8))  # short replies
    monkeypatch.setattr(Talk.__init__, "__defaults__", (8,))
    lines = ["/help", "/both", "hello", "/strength 0", "/trial 1", "hello again", "/quit", "not reached"]
    monkeypatch.setattr(chat, "typed", lambda choices: iter(lines))
    done = iconoclast("chat", f"{run}:0", typed="")
    assert done.code == 0 and HELP.splitlines()[0] in done.err
    assert "base model" in done.out and "trial 0" in done.out and "trial 1" in done.out


def replies(voices: Voices, *names: str | tuple[str, float]) -> list[str]:
    asked = [(name, 1.0) if isinstance(name, str) else name for name in names]
    return ["".join(Conversation(voices.voice(*each), longest=8).reply("hello")) for each in asked]


@pytest.fixture
def opened(run: Path, tiny_folder: Path) -> Callable[[str], Voices]:
    def open_one(kind: str) -> Voices:
        if kind == "run":
            return open_voices(str(run))
        return open_voices(str(run.parent / kind), base=str(tiny_folder))

    return open_one


@pytest.mark.parametrize("kind", ["run", "adapter"])
def test_strength_zero_is_the_base_model(kind: str, opened: Callable[[str], Voices]) -> None:
    base, weak, none, strong, again = replies(
        opened(kind), "base", ("edited", 1e-9), ("edited", 0), ("edited", 40), "base"
    )
    assert base == weak == none == again != strong


def test_exports_answer_as_their_run(opened: Callable[[str], Voices]) -> None:
    run, adapter, merged = (replies(opened(kind), "base", "edited") for kind in ("run", "adapter", "merged"))
    assert run == adapter == merged


def test_a_merged_edit_has_one_strength_and_an_export_no_trials(opened: Callable[[str], Voices], run: Path) -> None:
    with pytest.raises(Exception, match=r"merged into .* so that its strength cannot be changed"):
        opened("merged").voice("edited", 0.5)
    done = iconoclast("chat", f"{run.parent}/merged:3")
    assert done.code == 2 and "has no trials: only a run has" in done.complaint


def test_an_export_whose_base_is_elsewhere_answers_without_it(run: Path) -> None:
    voices = open_voices(str(run.parent / "merged"), base="./gone")
    assert replies(voices, "edited")[0]
    done = iconoclast("chat", run.parent / "adapter", "--base", "./gone")
    assert done.code == 2 and "no model at ./gone" in done.complaint


def test_a_plain_model_is_only_a_base(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = Talk(open_voices(str(tiny_folder)), longest=8)
    assert talk.title == "base model" and all(
        chat.hear(talk, line) for line in ["hello", "/both", "/strength 2", "/thinking on"]
    )
    said = capsys.readouterr()
    assert said.out.strip() and said.err.count('There is no model "edited" here. Use one of: base.') == 2
    assert "has no switch for thinking" in said.err


def test_edits_of_two_runs_answer_together(run: Path, tiny_lm: LanguageModel) -> None:
    voices = open_voices(str(run), "0", beside=[(run, "1")])
    first, second = (SavedRun.open(RunFolder(run), which).edit(tiny_lm) for which in "01")
    ids = token_ids(2)

    def logits(name: str, strength: float = 1) -> torch.Tensor:
        voice = voices.voice(name, strength)
        with torch.inference_mode(), voice.applied():
            found: torch.Tensor = voice.lm.model(input_ids=ids).logits
            return found

    for name, strength, edit in (
        ("edited", 1, first.followed_by(second)),
        ("edited", 0.5, first.scaled(0.5).followed_by(second.scaled(0.5))),
        ("trial-1", 1, second.followed_by(second)),
    ):
        with torch.inference_mode(), LiveEdits(voices.voice("base").lm.writers(), [edit]).applied():
            expected = voices.voice("base").lm.model(input_ids=ids).logits
        torch.testing.assert_close(logits(name, strength), expected)
        assert not torch.allclose(logits(name, strength), logits("base"))


def test_what_is_heard_is_named_with_the_edits_beside_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["/trial 1", "/strength 0.5", "/both"])
    monkeypatch.setattr(chat, "typed", lambda choices: lines)
    done = iconoclast("chat", f"{run}:0", "--with", f"{run}:1")
    assert done.code == 0 and done.err.startswith("Trial 0 + run:1. /help lists commands")
    assert "The edited model is trial 1 + run:1 from now on" in done.err
    assert "base model and trial 1 + run:1, strengths times 0.5" in " ".join(done.err.split())
    for command in ("chat", "serve"):
        refused = iconoclast(command, run.parent / "adapter", "--with", run)
        assert refused.code == 2 and "only edits of runs go together. Leave out --with" in refused.complaint
        missing = iconoclast(command, run, "--with", f"{run}:9")
        assert missing.code == 2 and 'no completed trial "9"' in missing.complaint


def test_a_run_keeps_its_own_base(run: Path) -> None:
    assert "has a base model of its own" in iconoclast("chat", run, "--base", "demo").complaint


def test_thinking_is_let_and_not_remembered(tiny_lm: LanguageModel) -> None:
    switch = "{% if enable_thinking %}<think>{% else %}<think></think>{% endif %}"
    thoughts = (
        "{% if message.reasoning_content is defined %}<think>{{ message.reasoning_content }}</think>{% endif %}"
        "{{ message['content'] }}"
    )
    template = TEMPLATE.replace("{% endif %}", f"{switch}{{% endif %}}").replace("{{ message['content'] }}", thoughts)
    tiny_lm.tokenizer.chat_template = template
    conversation = Conversation(Variant("base", tiny_lm))
    assert tiny_lm.render_messages([{"role": "user", "content": "hi"}], thinking=True).endswith("<think>")
    assert tiny_lm.render_messages([{"role": "user", "content": "hi"}]).endswith("<think></think>")
    conversation.thinking = True
    assert conversation._without_thoughts("hm, let me see</think>\nhello") == "hello"


TYPED = "from iconoclast.cli.chat import typed\nfor line in typed(['/strength', '/trial 3']): print('said', repr(line))"


def test_at_a_terminal_commands_complete_and_an_interrupt_clears_the_line() -> None:
    pytest.importorskip("prompt_toolkit")
    environment = {**os.environ, "PROMPT_TOOLKIT_NO_CPR": "1"}
    terminal = pexpect.spawn(
        sys.executable, ["-c", TYPED], timeout=120, encoding="utf-8", dimensions=(40, 60), env=environment
    )
    for keys, seen, enter, said in (
        ("/str", "/strength", "\t\r", "'/strength'"),
        ("lost\x03One\x1b\rTwo", "Two", "\r", r"'One\\nTwo'"),
        ("/tr", "/trial 3", "\t\r", "'/trial 3'"),
        ("\x1b[A" * 4, "/strength", "\r", "'/strength'"),
    ):
        terminal.expect(">")
        terminal.send(keys)
        terminal.expect(seen)
        terminal.send(enter)
        terminal.expect(f"said {said}")
    terminal.expect(">")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
