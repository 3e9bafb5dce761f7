"""The report page: whole in one file, nothing from outside, markup as text, small for a large run."""

import json
import math
import re
import shutil
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from iconoclast.audit.document import AuditDocument
from iconoclast.layout import COMPARISON
from iconoclast.reports.pages.figures import trial_point
from iconoclast.reports.pages.of_audit import audit_page
from iconoclast.reports.pages.of_export import export_page
from iconoclast.reports.pages.of_run import RunPage
from iconoclast.reports.pages.page import Page, asset
from iconoclast.reports.pages.responses import differences, exchanges
from iconoclast.runs.documents import FirstToken, Geometry, Sample, ShownPrompt, TokenPrompt, TokenView
from tests.support.entry_point import iconoclast

MADE = Path(__file__).parents[1] / "fixtures" / "version-0.1.0"
MARKUP = "</script><script>alert('said')</script><b>bold & bald</b>"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MADE / "run", tmp_path / "run"))


def sample(prompt: str, base: str, edited: str) -> Sample:
    responses = {
        "base model": {"response": base, "label": "refusal"},
        "trial 1": {"response": edited, "label": "complied"},
    }
    return Sample.model_validate({"set": "target", "prompt": prompt, "responses": responses})


def token_view(trial: int, layers: int) -> TokenView:
    """What a page shows at most of tokens."""
    tokens = ["<|im_start|>", "\n", *(f" token{i}" for i in range(28)), MARKUP, "é"]
    grid = [[round((layer * token % 7 - 3) / 9, 3) for token in range(len(tokens))] for layer in range(layers)]
    first = [FirstToken(token=f" word{i}", base=0.4 / (i + 1), edited=0.02 * i) for i in range(20)]
    prompts = [
        TokenPrompt(set=name, text=MARKUP * 2, tokens=tokens, base=grid, edited=grid, first=first)
        for name in ("target", "benign")
    ]
    return TokenView(trial=trial, layers=list(range(3, 3 + layers)), prompts=prompts * 3)


def geometry(layers: int, *, pacmap: bool = True) -> Geometry:
    """What a run keeps at most of its residuals."""
    kinds = ["benign"] * 120 + ["target"] * 120
    points = [
        [[round(math.sin(layer + i), 2), 2.0 * (kind == "target")] for layer in range(layers)]
        for i, kind in enumerate(kinds)
    ]
    return Geometry(
        separation=[1.0] * layers,
        benign_variance_kept_out=[0.5] * layers,
        points=points,
        pca=points,
        pacmap=points if pacmap else None,
        prompts=[ShownPrompt(set=kind, text=f"{i} {MARKUP}") for i, kind in enumerate(kinds)],  # type: ignore[arg-type]
    )


def assert_asks_for_nothing(html: str) -> None:
    assert not re.findall(r"<(?:script|img|iframe|link)[^>]*(?:src|href)", html)
    assert "default-src 'none'" in unescape(html) and html.count("<script") == 3


def test_a_run_becomes_one_page(run: Path) -> None:
    done = iconoclast("report", run)
    assert done.code == 0, done.err
    html = (run / "report.html").read_text()
    assert_asks_for_nothing(html)
    for section in ("summary", "scores", "front", "edit", "layers", "responses", "origin"):
        assert f'id="{section}"' in html
    assert len(html) < 500_000


def test_an_export_is_left_as_it_is(tmp_path: Path) -> None:
    export = Path(shutil.copytree(MADE / "adapter", tmp_path / "adapter"))
    before = {file.name for file in export.iterdir()}
    assert iconoclast("report", export).code == 0
    assert "only runs have trials" in iconoclast("report", f"{export}:3").complaint
    assert {file.name for file in export.iterdir()} == before
    assert_asks_for_nothing((tmp_path / "adapter-report.html").read_text())
    assert export_page(export).figures["strengths"]["trials"]


def test_an_audit_becomes_a_page(tmp_path: Path) -> None:
    known = {"relative_norm": 0.02, "rank": 1, "construction": "rank_one", "row_normalization": "none"}
    tensors: list[dict[str, object]] = [
        {"name": f"layers.{n}.mlp.down_proj.weight", "status": "changed", "strength": 0.1 * n, **known}
        for n in range(3)
    ]
    claim = {
        "name": MARKUP,
        "metric": "refusals",
        "value": 0.03,
        "count": {"count": 3, "n": 100},
        "source": "README.md",
    }
    file = tmp_path / "audit.json"
    AuditDocument.model_validate(
        {
            "base": "/home/somebody/base",
            "edited": "/home/somebody/edited",
            "verdict": "rank_one",
            "row_normalization": "none",
            "tensors": [*tensors, {"name": "norm.weight", "status": "unchanged"}],
            "lost": ["tokenizer.json"],
            "claims": [claim],
        }
    ).write(file)
    done = iconoclast("report", file)
    assert done.code == 0, done.err
    html = (tmp_path / "audit-report.html").read_text()
    assert_asks_for_nothing(html)
    for said in ("3 of 4 tensors", "tokenizer.json", "3/100", "not measured", "0.200"):
        assert said in html
    assert "/home/somebody" not in html and "<b>bold" not in html
    assert audit_page(file).figures["strengths"]["trials"]["edit"]["of"] == {"mlp.down_proj": [0.0, 0.1, 0.2]}


def audited_document() -> dict[str, object]:
    """An audit with all parts; a measure that differs by more than chance, and a response that holds markup."""
    far = {"value": 2.0, "n": 9, "interval": [1.0, 3.0], "p_value": 0.0002}
    near = {"value": 0.1, "n": 9, "interval": [-0.1, 0.3], "p_value": 0.6}
    labels = {label: {"count": 0, "n": 4} for label in ("complied", "soft_refusal", "refusal", "broken")}
    stance = {"first": "tea", "second": "coffee", "base": 0.4, "edited": 0.5, "difference": near}
    figure = {"value": 0.5, "stderr": 0.1, "interval": [0.3, 0.7]}
    said = {"label": "refusal", "response": "I cannot set an alarm, as I have no clock."}
    return {
        "base": "base",
        "edited": "edited",
        "verdict": "weak",
        "tensors": [],
        "lost": [],
        "character": {
            "traits": [
                {"set": "benign", "measure": "asks_back", "base": 0.1, "edited": 0.2, "difference": near},
                {"set": "target", "measure": "hedges_per_100_words", "base": 1.0, "edited": 3.0, "difference": far},
            ],
            "kinds": [
                {"name": "target, alarms", "other_text": {"count": 3, "n": 4}, "other_label": {"count": 1, "n": 4}}
            ],
            "moved": [
                {
                    "set": "target",
                    "prompt": "Set an alarm.",
                    "base": said,
                    "edited": {"label": "complied", "response": MARKUP},
                }
            ],
            "stances": [stance],
            "first_named": {**stance, "first": "named first", "second": "named second"},
            "sets": [
                {
                    "kind": "refusals",
                    "source": "/home/somebody/asked.csv",
                    "sha256": "0",
                    "base": {**labels, "refusal": {"count": 4, "n": 4}},
                    "edited": labels,
                    "refusals": {"only_before": 4, "only_after": 0, "p_value": 0.125},
                }
            ],
        },
        "capabilities": {
            "lm_eval_version": "0.4.13",
            "limit": 9,
            "num_fewshot": None,
            "batch_size": 8,
            "apply_chat_template": False,
            "rows": [
                {
                    "task": "sums",
                    "metric": "acc",
                    "n": 9,
                    "higher_is_better": True,
                    "base": figure,
                    "edited": figure,
                    "difference": {
                        "value": 0.0,
                        "stderr": 0.1,
                        "interval": [-0.2, 0.2],
                        "paired": False,
                        "p_value": 0.9,
                    },
                }
            ],
        },
    }


def test_character_and_capabilities_are_on_the_page_of_an_audit(tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    AuditDocument.model_validate(audited_document()).write(file)
    page = audit_page(file)
    html = page.html()
    assert_asks_for_nothing(html)
    for said in (
        "target, alarms",
        "3/4",
        "hedges per 100 words",
        "named second",
        "+0.00",
        "0.500 (0.300 to 0.700)",
        "Only the first 9",
    ):
        assert said in html
    found, capabilities, character = page.sections
    assert html.index(f"<h2>{found.title}</h2>") < html.index(f"<h2>{capabilities.title}</h2>")
    assert [row[0] for row in character.tables["Measures"][1:]] == ["target", "benign"]  # beyond chance first
    assert [row[-1] for row in character.tables["Measures"][1:]] == ["yes", ""]
    assert character.tables["Data sets"][1] == [
        "asked.csv", "refusals", "4/4 (51% to 100%)", "0/4 (0% to 49%)", "0/4", "0/4", "0.12",
    ]  # fmt: skip
    assert capabilities.tables["Tasks"][1][-2].endswith("*")
    (moved,) = page.exchanges
    assert moved.changed and "<b>bold" not in html and "/home/somebody" not in html


def test_what_cannot_be_reported_on_is_said(tmp_path: Path) -> None:
    done = iconoclast("report", tmp_path)
    assert done.code == 2 and "is not a run, an export, a comparison or an audit" in done.err
    (tmp_path / COMPARISON).write_text("{}")
    assert iconoclast("report", tmp_path).code != 0


def test_a_figure_that_is_no_number_is_said(run: Path) -> None:
    summary = run / "batch_summary.json"
    summary.write_text(re.sub(r'"kl_divergence": [^,]+,', '"kl_divergence": NaN,', summary.read_text()))
    done = iconoclast("report", run)
    assert done.code == 2 and "Traceback" not in done.err and not (run / "report.html").exists()


def test_markup_in_a_response_is_text() -> None:
    said, _ = exchanges([sample(MARKUP, MARKUP, MARKUP)])
    html = Page(
        kind="run", title=MARKUP, exchanges=said, figures={"residuals": {"texts": [MARKUP], "views": {}}}
    ).html()
    assert html.count("<script") == 3 and "<b>" not in html
    assert "&lt;b&gt;bold &amp; bald" in html
    data = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert data is not None and json.loads(data[1])["residuals"]["texts"] == [MARKUP]


def test_every_trial_is_drawn_once_and_the_chosen_one_marked(run: Path) -> None:
    page = RunPage.open(run)
    points = page.figures()["front"]["points"]
    names = [point["name"] for point in points]
    expected = len(page.saved.trials) + len(page.saved.pruned) + 1
    assert len(names) == len(set(names)) == expected
    assert [p["name"] for p in points if p.get("chosen")] == [f"trial {page.saved.trial.index}"]
    chosen = next(p for p in points if p.get("chosen"))
    assert chosen["values"]["failures"][0] == pytest.approx(page.saved.trial.scores.failures.rate, abs=1e-3)


def test_an_axis_that_was_not_measured_is_said(run: Path) -> None:
    opened = RunPage.open(run)
    assert "KL over tokens was measured in the report only" in opened.page().html()
    scores = replace(opened.saved.trial.scores, own={"token_kl": 0.01})
    measured = replace(opened.saved, trials=[replace(opened.saved.trial, scores=scores)])
    assert "KL over tokens was measured" not in replace(opened, saved=measured).page().html()


def test_a_trial_that_violates_a_constraint_says_so(run: Path) -> None:
    trial = RunPage.open(run).saved.trial
    assert "violates" not in trial_point(trial)
    violating = trial_point(replace(trial, scores=replace(trial.scores, violated=("overrefusals <= 2 %",))))
    assert violating["violates"] and "violates overrefusals <= 2 %" in violating["text"]


def test_a_page_of_two_hundred_trials_is_small(run: Path) -> None:
    token_view(0, layers=60).write(run / "tokens.json")
    geometry(80).write(run / "geometry.json")
    opened = RunPage.open(run)
    trials = [replace(opened.saved.trial, index=i) for i in range(200)]
    page = replace(opened, saved=replace(opened.saved, trials=trials, trial=trials[0])).page()
    assert page.figures["tokens"] and len(page.figures["residuals"]["views"]) == 3
    for text in ("many words in a row ", 'if "x" < y & z: ', "静かな朝です。", "a "):
        said, unsaid = exchanges([sample(f"prompt {i}", text * 40, text * 40 + "and more") for i in range(2000)])
        assert len(replace(page, exchanges=said, unsaid=unsaid).html().encode()) < 1_500_000
        assert len(said) + unsaid == 2000 and unsaid


def test_projections_are_drawn_as_they_were_kept(run: Path) -> None:
    kept = geometry(3, pacmap=False)
    kept.write(run / "geometry.json")
    shown = RunPage.open(run).figures()["residuals"]
    assert list(shown["views"]) == ["pca", "means"] and shown["kinds"].count("target") == 120
    view = shown["views"]["pca"]
    places = [[view["low"] + view["step"] * x for x in layer] for layer in view["layers"]]
    assert places[2][2 * 7 : 2 * 7 + 2] == pytest.approx(kept.points[7][2], abs=0.01)


def test_deep_models_show_fewer_prompts_of_both_sets(run: Path) -> None:
    geometry(100).write(run / "geometry.json")
    shown = RunPage.open(run).figures()["residuals"]
    assert len(shown["kinds"]) == len(shown["texts"]) == len(shown["views"]["means"]["layers"][0]) / 2 == 60
    assert shown["kinds"].count("target") == 30


def test_a_run_without_projections_says_how_to_add_them(run: Path) -> None:
    assert "This run kept nothing of its residuals" in RunPage.open(run).page().html()
    older = geometry(3).document()
    del older["pca"], older["pacmap"]
    (run / "geometry.json").write_text(json.dumps(older))
    assert "This run was made before PCA was kept" in RunPage.open(run).page().html()


def test_texts_can_be_read_on_what_they_stand_on() -> None:
    """4.5 to 1 (WCAG 2.2, 1.4.3), also within figures, where axe-core does not look."""
    found = re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", asset("shared.css"))
    for scheme in (1, 2):
        color = {each[0]: luminance(each[scheme]) for each in found}
        texts = {*color} - {"paper", "raised", "rule", "edge", "mark"}
        faint = [
            (text, ground)
            for text in texts
            for ground in ("paper", "raised")
            if contrast(color[text], color[ground]) < 4.5
        ]
        assert (
            faint == [] and contrast(color["ink"], color["mark"]) > 4.5 and contrast(color["edge"], color["paper"]) > 3
        )


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: float, second: float) -> float:
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)


def test_differences_are_what_the_other_text_lacks() -> None:
    base, edited = "I will set the alarm for you now", "I will set the alarm for seven"
    assert differences(edited, base) == [("I will set the alarm for ", False), ("seven", True)]
    assert differences("the cat", "a dog") == [("the cat", False)]
    assert "".join(text for text, _ in differences(base, edited)) == base
    assert differences("", base) == []


def test_responses_that_share_little_are_not_marked() -> None:
    assert differences("the last week of " + "one " * 30, "the last week of " + "two " * 30)[0][1] is False


def test_the_example_of_an_audit_gives_its_page(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "docs" / "examples" / "audit.json"
    done = iconoclast("report", example, "--to", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "model.layers.9.mlp.down_proj.weight" in (tmp_path / "page.html").read_text()
