"""Models beside one another: whoever made them, on the same prompts, and a verdict that noise does not decide."""

import gc
import json
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from iconoclast.config.schema import JudgeChat, PromptSource, Settings
from iconoclast.documents import Plain
from iconoclast.errors import ModelError, PromptsError, RunFolderError, SettingsError
from iconoclast.evaluation.examination import Examination, ExaminedPrompts, Variant
from iconoclast.library import search
from iconoclast.models.anatomy import Writer
from iconoclast.models.language_model import LanguageModel
from iconoclast.runs.comparison import compare, seen_by, settings_for, verdict
from iconoclast.runs.documents import Decision, Seen
from iconoclast.runs.export import export_run
from iconoclast.runs.splits import Prompts
from iconoclast.runs.subjects import Loadable, ModelSubject, PeerSubject, RunSubject, find_subject, subjects
from iconoclast.scores import Count, Scores
from iconoclast.vocabulary import COMPONENTS, Component, Criterion, Site
from tests.support.heretic_journals import SETTINGS, attributes, write_journal
from tests.support.tiny import copy_run, save_tiny, tiny_config, tiny_run


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run, of which every test has its copy."""
    folder = tmp_path_factory.mktemp("made")
    search(tiny_run(tiny_folder, folder).model_copy(update={"row_normalization": "none"}))
    return folder


@pytest.fixture
def finished(made: Path, tiny_settings: Settings, tmp_path: Path) -> Path:
    return copy_run(made, tmp_path)


def test_a_run_and_its_exports_measure_the_same(finished: Path, tmp_path: Path) -> None:
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    export_run(finished, "best", "merged", tmp_path / "merged")
    subjects = [find_subject(str(path)) for path in (finished, tmp_path / "adapter", tmp_path / "merged")]
    result = compare(subjects, settings_for(subjects))
    assert [e.name for e in result.examinations][1:] == ["adapter", "merged"]
    live = result.examinations[0]
    for other in result.examinations[1:]:
        assert [a.response for a in other.target] == [a.response for a in live.target]
        assert other.token_kl == pytest.approx(live.token_kl, abs=1e-4)
        assert verdict(live, other, 1e-3) == Decision()
    assert result.sample.split == "report" and max(result.base.token_kl) < 1e-5
    document = result.document().document()
    json.dumps(document, allow_nan=False)
    assert len(document["pairs"]) == 3 and document["subjects"][0]["trial"]["index"] >= 0
    (first, *_) = result.samples(1)
    assert set(first.responses) == {"base model", *(e.name for e in result.examinations)}


def test_subjects_are_found_by_what_is_there(finished: Path, tmp_path: Path, tiny_folder: Path) -> None:
    run = find_subject(str(finished))
    assert isinstance(run, RunSubject)
    again = find_subject(str(finished / "iconoclast_study.jsonl"))
    assert isinstance(again, RunSubject) and again.saved.trial == run.saved.trial
    numbered = find_subject(f"{finished}:{run.saved.trials[0].index}")
    assert isinstance(numbered, RunSubject) and numbered.saved.trial.index == run.saved.trials[0].index
    assert isinstance(find_subject(str(tiny_folder)), ModelSubject)
    with pytest.raises(RunFolderError, match="only runs and journals of other tools have trials"):
        find_subject(f"{tiny_folder}:3")
    with pytest.raises(RunFolderError, match='no completed trial "99"'):
        find_subject(f"{finished}:99")


@dataclass(frozen=True)
class Unedited(Loadable):
    """A kind of subject of a user's: the base model itself."""

    name: str = "unedited"

    @contextmanager
    def loaded(self, base: LanguageModel, settings: Settings) -> Iterator[Variant]:
        yield Variant(self.name, base)

    def document(self, base: str) -> Plain:
        return {"tool": "mine"}


def test_a_users_kind_of_subject_is_found_and_measured(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(subjects._things, "mine", lambda named: Unedited() if named.text == "unedited" else None)
    found = [find_subject(str(finished)), find_subject("unedited")]
    result = compare(found, settings_for(found))
    assert result.examinations[1].scores == replace(result.base.scores, kl_divergence=0)
    assert result.document().subjects[1].tool == "mine" and result.seen[1].unknown


def test_a_model_is_let_go_before_the_next_is_loaded(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[PreTrainedModel]] = []

    @contextmanager
    def loaded(subject: Unedited, base: LanguageModel, settings: Settings) -> Iterator[Variant]:
        gc.collect()
        assert not any(model() for model in models)
        own = replace(base, model=deepcopy(base.model))
        models.append(weakref.ref(own.model))
        yield Variant(subject.name, own)

    monkeypatch.setattr(Unedited, "loaded", loaded)
    compare([Unedited("a"), Unedited("b")], settings_for([find_subject(str(finished))]))
    assert len(models) == 2


def test_a_peers_best_trial_obeys_the_settings_target(tmp_path: Path) -> None:
    journal = write_journal(tmp_path / "study.jsonl", [attributes(0, 0.09), attributes(9, 0.01)])
    for target, number in ((0.1, 1), (0.05, 2)):
        subject = find_subject(str(journal), Settings(kl_divergence_target=target))
        assert isinstance(subject, PeerSubject) and subject.name == f"heretic trial {number}"


def test_a_study_whose_settings_cannot_be_used_is_a_clear_error(tmp_path: Path) -> None:
    journal = write_journal(tmp_path / "study.jsonl", [attributes()], SETTINGS | {"refusal_markers": []})
    with pytest.raises(SettingsError, match=r"here: refusal_markers, .* Give a settings file with --config"):
        settings_for([find_subject(str(journal))])


def test_without_a_run_or_settings_the_prompts_are_not_known(tiny_folder: Path) -> None:
    with pytest.raises(SettingsError, match="--config"):
        settings_for([find_subject(str(tiny_folder))])


def test_an_adapter_of_another_model_is_a_clear_error(finished: Path, tmp_path: Path) -> None:
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    subjects = [find_subject(str(tmp_path / "adapter"))]
    with pytest.raises(ModelError, match="cannot be put on"):
        compare(subjects, settings_for([find_subject(str(finished))]))


UNKNOWN = "its files do not say, or its prompts are others now"


def examination(base: Examination, name: str, refusals: int, overrefusals: int, kl: float) -> Examination:
    return replace(base, name=name, scores=Scores(Count(refusals, 20), Count(overrefusals, 20), 0, 0.5, kl))


@pytest.mark.parametrize(
    ("first", "second", "better", "decided_by"),
    [
        ((0, 5, 0.9), (1, 0, 0.1), "a", "failures"),
        ((1, 1, 0.9), (1, 2, 0.1), "a", "overrefusals"),
        ((1, 1, 0.9), (1, 1, 0.1), "b", "kl_divergence"),
        ((1, 1, 0.1004), (1, 1, 0.1), None, None),  # closer than noise
    ],
)
def test_the_verdict_is_lexicographic(
    first: tuple[int, int, float], second: tuple[int, int, float], better: str | None, decided_by: Criterion | None
) -> None:
    base = Examination("base", Scores(Count(9, 20), Count(0, 20), 0, 0.5, 0.0), (), (), (), {}, (), 1, ())
    a, b = examination(base, "a", *first), examination(base, "b", *second)
    assert verdict(a, b, 0.001) == Decision(better=better, decided_by=decided_by)


def test_what_a_run_has_seen_of_the_prompts_is_said(finished: Path, tiny_settings: Settings, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    other = {
        "good_evaluation_prompts": tiny_settings.good_report_prompts,
        "good_report_prompts": tiny_settings.good_evaluation_prompts,
        "study_checkpoint_dir": folder,
    }
    search(tiny_settings.model_copy(update=other))
    subjects = [find_subject(str(path)) for path in (finished, folder)]
    settings = settings_for(subjects)
    assert compare(subjects, settings).seen == [Seen(), Seen(target=0, benign=2)]
    (tmp_path / "target.txt").rename(tmp_path / "elsewhere.txt")
    moved = PromptSource(dataset=str(tmp_path / "elsewhere.txt"))
    names = ("bad_prompts", "bad_evaluation_prompts", "bad_report_prompts")
    given = settings.model_copy(update=dict.fromkeys(names, moved) | {"allow_overlap": PAIRS_OF_TARGETS})
    (seen, _) = compare(subjects, given).seen
    assert seen.unknown is not None and "target.txt" in seen.unknown


def test_what_an_export_has_seen_is_in_its_papers(finished: Path, tmp_path: Path) -> None:
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    export, settings = find_subject(str(tmp_path / "adapter")), settings_for([find_subject(str(finished))])
    prompts = Prompts.load(settings)
    assert seen_by(export, prompts.reported, prompts) == Seen()
    fitted = ExaminedPrompts(prompts.target, prompts.benign_evaluation, None, "report")
    assert seen_by(export, fitted, prompts) == Seen(target=4, benign=2)
    run = find_subject(str(finished))
    assert seen_by(run, fitted, prompts) == Seen(target=4, benign=2)
    (tmp_path / "benign.txt").write_text("\n".join(f"Where is the {number}?" for number in range(8)))
    assert seen_by(run, fitted, prompts).unknown == UNKNOWN
    other = replace(prompts, benign=prompts.target)
    assert seen_by(export, other.reported, other).unknown == UNKNOWN
    assert seen_by(ModelSubject("somebody/else"), prompts.reported, prompts).unknown == UNKNOWN


PAIRS_OF_TARGETS = [
    "bad_prompts and bad_evaluation_prompts",
    "bad_prompts and bad_report_prompts",
    "bad_evaluation_prompts and bad_report_prompts",
]


def test_a_folder_does_not_decide_whose_code_is_run(finished: Path) -> None:
    run = find_subject(str(finished))
    assert isinstance(run, RunSubject)
    judge = JudgeChat(url="http://127.0.0.1:9/v1", model="m", api_key_variable="HOME")
    hostile = run.saved.settings.model_copy(update={"judge_chat": judge, "judges": ["x"], "trust_remote_code": True})
    settings = settings_for([replace(run, saved=replace(run.saved, settings=hostile))])
    assert settings.judge_chat is None and not settings.judges and settings.trust_remote_code is False


def test_an_adapter_that_changes_nothing_is_refused(finished: Path, tmp_path: Path, tiny_folder: Path) -> None:
    settings = settings_for([find_subject(str(finished))])
    export_run(finished, "best", "adapter", tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({f"x.{name}": tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="of its tensors and the model's modules do not fit"):
        compare([find_subject(str(tmp_path / "adapter"))], settings)
    prompted = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    get_peft_model(model, prompted).save_pretrained(str(tmp_path / "prompted"))
    with pytest.raises(ModelError, match="changes the prompts and not the model"):
        compare([find_subject(str(tmp_path / "prompted"))], settings)


def test_a_prompt_longer_than_the_context_is_an_error(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word " * 3000)
    long = settings_for([find_subject(str(finished))]).model_copy(
        update={"bad_report_prompts": PromptSource(dataset=str(tmp_path / "long.txt"))}
    )
    with pytest.raises(PromptsError, match="too many tokens"):
        compare([find_subject(str(finished))], long)


def test_a_model_with_one_editable_component_is_compared(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(tiny_settings.model_copy(update={"components": ["attn.o_proj"]}))
    found = LanguageModel.writers

    def only_attention(self: LanguageModel, components: Sequence[Component] = COMPONENTS) -> dict[Site, Writer]:
        if "mlp.down_proj" in components:
            raise ModelError("Leave mlp.down_proj out of components")
        return found(self, components)

    monkeypatch.setattr(LanguageModel, "writers", only_attention)
    subjects = [find_subject(str(tiny_settings.study_checkpoint_dir))]
    assert len(compare(subjects, settings_for(subjects)).examinations) == 1
    models = [find_subject(str(tiny_settings.model))]
    assert len(compare(models, tiny_settings).examinations) == 1


def test_a_whole_model_is_quantised_as_its_base_is(tiny_settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path / "base", tiny_config(hidden_size=64, intermediate_size=128))
    search(tiny_settings.model_copy(update={"model": str(folder), "quantization": "bnb_4bit", "n_trials": 1}))
    subjects = [find_subject(str(tiny_settings.study_checkpoint_dir)), find_subject(str(folder))]
    result = compare(subjects, settings_for(subjects))
    assert max(result.examinations[1].token_kl) < 1e-5  # the base model itself
