"""Packs that name axes of their target prompts, and the report that says where an edit does not carry."""

from pathlib import Path

import pytest

from iconoclast.config.packs import PackError, load_pack
from iconoclast.config.schema import PromptSource, Settings
from iconoclast.errors import PromptsError
from iconoclast.library import search
from iconoclast.prompts import load_prompts
from iconoclast.reports.pages.of_run import RunPage
from iconoclast.reports.tables import axes_table
from iconoclast.runs.documents import AxisCarried, BatchSummary
from iconoclast.runs.folder import RunFolder
from iconoclast.scores import AxisScores, Count, Scores
from tests.support.entry_point import iconoclast
from tests.support.tiny import WORDS

TEMPLATES = """
[target]
fit = 8
select = 6
report = 6
axis = "topic"
templates = ["Please set my {topic}, number {n}"]
words = { topic = ["alarm", "taxi"], n = "1..99" }
"""
FILES = '[target.files]\nalarm = "alarm.txt"\ntaxi = "taxi.txt"\n'
COLUMN = '[target]\nfile = "target.csv"\naxis = "topic"\n'


def written(folder: Path, target: str) -> str:
    folder.mkdir(exist_ok=True)
    for topic in ("alarm", "taxi"):
        texts = [f"Please set my {topic}, number {n}" for n in range(10)]
        (folder / f"{topic}.txt").write_text("\n".join(texts))
    rows = [f'"{topic} {n}, please",{topic}' for n in range(10) for topic in ("alarm", "taxi")]
    (folder / "target.csv").write_text("\n".join(["text,topic", *rows]))
    (folder / "benign.txt").write_text("\n".join(f"What is a {word} {n}?" for word in WORDS for n in range(3)))
    pack = f'name = "x"\ndescription = "y"\nmarkers = ["ee", "aa"]\nbenign = "benign.txt"\n{target}'
    (folder / "behavior.toml").write_text(pack)
    return str(folder)


@pytest.mark.parametrize(("target", "sizes"), [(TEMPLATES, (8, 6, 6)), (FILES, (10, 4, 6)), (COLUMN, (10, 4, 6))])
def test_a_pack_names_axes_by_words_files_or_a_column(target: str, sizes: tuple[int, ...], tmp_path: Path) -> None:
    sources = load_pack(written(tmp_path / "pack", target)).sources()
    names = ("bad_prompts", "bad_evaluation_prompts", "bad_report_prompts")
    sets = [load_prompts(PromptSource(**sources[name])) for name in names]
    assert tuple(map(len, sets)) == sizes
    for prompts in sets:
        for prompt in prompts:
            assert len(prompt.axes) == 1 and prompt.axes[0] in prompt.text
    if target != TEMPLATES:
        assert [sum("taxi" in p.axes for p in prompts) for prompts in sets] == [n // 2 for n in sizes]
    assert not any(prompt.axes for prompt in load_prompts(PromptSource(**sources["good_prompts"])))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (TEMPLATES.replace('axis = "topic"', 'axis = "tone"'), "the axis tone is not one of the words"),
        (FILES.replace("taxi.txt", "bus.txt"), "names the file bus.txt, which is not there"),
        ('[target]\nfile = "alarm.txt"\nfiles = { a = "taxi.txt" }', "leave out fit, select and report"),
    ],
)
def test_axes_that_are_not_there_are_said(target: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=message):
        load_pack(written(tmp_path / "pack", target)).sources()


def test_a_column_that_is_not_there_is_said(tmp_path: Path) -> None:
    pack = written(tmp_path / "pack", COLUMN.replace('axis = "topic"', 'axis = "tone"'))
    with pytest.raises(PromptsError, match="the axis column tone is missing"):
        load_prompts(PromptSource(**load_pack(pack).sources()["bad_prompts"]))


def test_an_edit_carries_where_failures_fall_by_more_than_chance() -> None:
    def scores(**failures: int) -> Scores:
        none = Count(0, 40)
        axes = {name: AxisScores(1.0, Count(n, 40), none, none, 0.5) for name, n in failures.items()}
        return Scores(none, none, 0, 0.5, 0.0, axes=axes)

    found = AxisCarried.of(
        scores(german=38, french=30, greek=0, latin=20), scores(german=2, french=27, greek=0, latin=38)
    )
    assert [(each.axis, each.carries) for each in found] == [
        ("german", True),
        ("french", False),
        ("greek", None),
        ("latin", False),
    ]
    carries = list(axes_table(found, "refused").columns[3].cells)
    assert carries == ["yes", "not shown", "nothing to remove", "not shown"]


def test_the_report_of_a_pack_says_where_its_edit_carries(tiny_settings: Settings, tmp_path: Path) -> None:
    sources = load_pack(written(tmp_path / "pack", FILES)).as_settings()
    own = {key: PromptSource(**value) for key, value in sources.items() if key.endswith("_prompts")}
    search(tiny_settings.model_copy(update={**own, "n_trials": 3, "fit": False, "random_controls": 0}))
    report = BatchSummary.read(RunFolder(tmp_path / "run").summary).report
    assert report is not None and [each.axis for each in report.axes] == ["alarm", "taxi"]
    assert all(each.before.n == 3 for each in report.axes)
    page = RunPage.open(tmp_path / "run").page()
    (section,) = page.sections
    assert [row[0] for row in section.tables[f"By axis: {report.metrics.failing}"]] == ["Axis", "alarm", "taxi"]
    assert '<section id="axes">' in page.html() and "95 % intervals" in section.about
    assert "of taxi: 2" in iconoclast("behaviors", "show", tmp_path / "pack").out
