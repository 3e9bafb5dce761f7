"""`chat`: commands are obeyed and never sent to a model; both models can be asked side by side."""

from pathlib import Path

import pytest

from iconoclast.cli.chat import HELP, Talk
from iconoclast.edits.edit import Edit
from iconoclast.runs.conversation import Conversation
from iconoclast.runs.folder import RunFolder
from iconoclast.runs.saved import SavedRun
from tests.support.entry_point import QUICK, iconoclast, write_prompts


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_prompts(tmp_path)
    assert iconoclast("run", tiny_folder, *QUICK, "--out", "run").code == 0
    return Path("run")


class Parrot(Conversation):
    """A conversation without a model, which keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.system: str | None = "unset"

    def reply(self, message, emit=lambda piece: None):
        self.heard.append(message)
        emit(f"to {message}")
        return f"to {message}"

    def restart(self, system_prompt):
        self.heard, self.system = [], system_prompt


class Room:
    """A talk with two parrots."""

    def __init__(self) -> None:
        self.base, self.edited = Parrot(), Parrot()
        self.factors: list[float] = []
        self.talk = Talk("trial 3", self.base, self.edited, self.factors.append, "Be kind.")

    def hear(self, *lines: str) -> list[bool]:
        return [self.talk.hear(line) for line in lines]


@pytest.fixture
def room() -> Room:
    return Room()


def test_commands_choose_who_answers(room: Room) -> None:
    assert all(room.hear("one", "/both", "two", "/base", "three", "/edited", "four"))
    assert (room.base.heard, room.edited.heard) == (["two", "three"], ["one", "two", "four"])
    assert room.hear("/quit") == [False]


def test_no_command_reaches_a_model(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(room.hear("/help", "/frobnicate", "/strength", "/strength much", "/strength nan", "/both please"))
    assert room.base.heard == room.edited.heard == [] and room.factors == []
    said = capsys.readouterr().err
    assert HELP in said and "There is no /frobnicate. /help lists the commands." in said
    assert said.count("/strength takes a number") == 3 and "/both takes nothing after it" in said


def test_a_path_is_a_message(room: Room) -> None:
    room.hear("/etc/hosts is what?", "1 / 2", "/5")
    assert room.edited.heard == ["/etc/hosts is what?", "1 / 2", "/5"]


def test_strength_and_beginning_anew(room: Room) -> None:
    room.hear("one", "/strength 0.5", "/reset")
    assert room.factors == [0.5] and room.edited.heard == [] and room.edited.system == "Be kind."
    room.hear("/system Be brief,\nplease.", "/reset")
    assert room.base.system == room.edited.system == "Be brief,\nplease."
    room.hear("/system")
    assert room.base.system is None


def test_at_a_terminal_both_models_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversation.__init__, "__defaults__", (None, 8))  # short replies
    done = iconoclast("chat", run, typed="/help\n/both\nhello\n/strength 0\nhello again\n/quit\nnot reached\n")
    assert done.code == 0 and HELP.splitlines()[0] in done.err
    assert "base model" in done.out and "trial 0" in done.out


def test_strength_zero_is_the_base_model(run: Path) -> None:
    saved = SavedRun.open(RunFolder(run), "best")
    lm = saved.load_model()
    edit = saved.edit(lm)
    base, edited = (
        Conversation(lm, each, saved.settings.components, None, longest=8) for each in (Edit.nothing(), edit.scaled(40))
    )
    assert edited.reply("hello") != base.reply("hello")
    edited.carry(edit.scaled(0))
    for conversation in (base, edited):
        conversation.restart(None)
    assert edited.reply("hello") == base.reply("hello")
