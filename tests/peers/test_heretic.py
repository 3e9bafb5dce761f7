"""heretic's studies: its journals are read as it wrote them, and its trials are the edits that it made."""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from tokenizers import processors
from torch import Tensor
from torch.nn.functional import normalize
from transformers import Gemma2Config, GPT2Config, OPTConfig, PreTrainedConfig

from iconoclast.edits.live import LiveEdits
from iconoclast.edits.merge import merged_weight
from iconoclast.edits.profile import Profile
from iconoclast.errors import ModelError, RunFolderError
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.peers.heretic.journal import HereticStudy, heretic_directions
from iconoclast.prompts import PromptSet
from iconoclast.vocabulary import RowNormalization, Site
from tests.support.heretic_journals import PARAMETERS, PREFIX, SETTINGS, SYSTEM, attributes, write_journal
from tests.support.tiny import WORDS, save_tiny, tiny_config

BENIGN = PromptSet.of([f"What is a {word}?" for word in WORDS], system=SYSTEM)
TARGET = PromptSet.of([f"Please set my {word}" for word in WORDS[:5]])  # the study's system prompt applies


def read(tmp_path: Path, *trials: Mapping[str, Any] | TrialState, **settings: Any) -> HereticStudy:
    return HereticStudy.read(write_journal(tmp_path / "study.jsonl", trials or [attributes()], SETTINGS | settings))


def refusal(file: Path) -> str:
    """What reading the file says, which is one line of bearable length."""
    with pytest.raises(RunFolderError) as caught:
        HereticStudy.read(file)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 500 + len(str(file))
    return message


# What is in a journal, and in the reproduce.json of an export


def test_the_papers_of_an_export_are_a_study_of_one_trial(tmp_path: Path) -> None:
    file = tmp_path / "reproduce.json"
    metrics = {"kl_divergence": 0.02, "refusals": 3, "base_refusals": 9, "n_bad_prompts": 10}
    parameters = {"direction_index": None, "abliteration_parameters": PARAMETERS}
    file.write_text(json.dumps({"version": "2", "settings": SETTINGS, "parameters": parameters, "metrics": metrics}))
    study = HereticStudy.read(file)
    trial = study.best(0.1)
    assert (trial.number, trial.refusals, trial.prompts, trial.direction_index) == (1, 3, 10, None)
    assert study.settings.row_normalization == "full" and trial.profiles.keys() == PARAMETERS.keys()
    file.write_text("{}")
    assert "not a reproduce.json of heretic" in refusal(file)


def test_settings_and_completed_trials_are_read(tmp_path: Path) -> None:
    unfinished = [TrialState.PRUNED, TrialState.FAIL]
    study = read(tmp_path, attributes(), *unfinished, attributes(0, 0.5, direction_index=1.5), TrialState.RUNNING)
    s = study.settings
    assert (s.model, s.quantization, s.row_normalization, s.full_normalization_lora_rank) == (
        "some/model",
        "none",
        "full",
        3,
    )
    assert (s.response_prefix, s.system_prompt, s.seed, s.max_response_length) == (PREFIX, SYSTEM, 7, 96)
    assert (s.orthogonalize_direction, s.winsorization_quantile) == (True, 1.0)
    assert s.refusal_markers == ("i cannot", "sorry")
    assert study.caveats == []
    first, second = study.trials
    assert (first.number, first.refusals, first.kl_divergence, first.direction_index) == (1, 3, 0.1, None)
    assert (first.base_refusals, first.prompts) == (13, 20)
    assert first.profiles == {component: Profile(**values) for component, values in PARAMETERS.items()}
    assert (second.number, second.refusals, second.direction_index) == (4, 0, 1.5)


def test_prompt_sets_become_sources_that_give_the_same_texts(tmp_path: Path) -> None:
    s = read(tmp_path).settings
    assert s.good_prompts.dataset == "good.txt" and s.good_prompts.split == ""
    # heretic puts spaces beside prefix and suffix, and of a text file it takes lines whatever the column is called
    assert (s.bad_prompts.split, s.bad_prompts.column) == ("[:400]", None)
    assert (s.bad_prompts.prefix, s.bad_prompts.suffix) == ("Now: ", " Go.")
    assert s.good_evaluation_prompts is not None and s.bad_evaluation_prompts is not None
    assert (s.good_evaluation_prompts.split, s.good_evaluation_prompts.column) == ("test[:100]", "text")
    assert s.bad_evaluation_prompts.system_prompt == "Be kind."


def test_the_oldest_journals_have_no_prefix_and_no_baseline(tmp_path: Path) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k not in ("response_prefix", "seed", "model_commit")}
    trial = {k: v for k, v in attributes().items() if k not in ("base_refusals", "n_bad_prompts")}
    study = HereticStudy.read(write_journal(tmp_path / "old.jsonl", [trial], settings))
    assert study.settings.response_prefix is None and study.settings.seed is None
    assert study.trials[0].base_refusals is None and study.trials[0].prompts is None
    assert len(study.caveats) == 1 and "start with" in study.caveats[0]


def test_more_refusals_than_prompts_are_no_trial(tmp_path: Path) -> None:
    file = write_journal(tmp_path / "study.jsonl", [attributes(21)])
    assert "more refusals than its 20 prompts" in refusal(file)


def test_journals_from_before_the_options_have_plain_edits(tmp_path: Path) -> None:
    settings = {k: SETTINGS[k] for k in ("model", "good_prompts", "bad_prompts")}
    s = HereticStudy.read(write_journal(tmp_path / "old.jsonl", [attributes()], settings)).settings
    assert (s.orthogonalize_direction, s.row_normalization, s.winsorization_quantile) == (False, "none", 1.0)


def plugin_journal(file: Path, *names: str) -> Path:
    """As the main branch writes it since it has scorers as plug-ins."""
    moved = ("refusal_markers", "good_evaluation_prompts", "bad_evaluation_prompts")
    settings = {k: v for k, v in SETTINGS.items() if k not in moved}
    settings["scorer"] = {
        "KeywordRate": {"keyword_markers": SETTINGS["refusal_markers"], "prompts": SETTINGS["bad_evaluation_prompts"]},
        "KLDivergence": {"prompts": SETTINGS["good_evaluation_prompts"]},
    }
    values = {"Keywords": (0.15, "3/20", "13/20"), "KL divergence": (0.1, "0.1000", "0 *(by definition)*")}
    records = []
    for name in names:
        value, shown, base = values[name.split(" - ")[0]]
        score = {"value": value, "rich_display": shown, "md_display": shown}
        records.append({"name": name, "score": score, "baseline": {"value": 0.0, "md_display": base}})
    trial = {"direction_index": 1.5, "parameters": PARAMETERS, "scores": records}
    return write_journal(file, [trial], settings)


def test_journals_of_the_main_branch_say_the_same(tmp_path: Path) -> None:
    study = HereticStudy.read(plugin_journal(tmp_path / "main.jsonl", "Keywords", "KL divergence"))
    older = read(tmp_path, attributes(direction_index=1.5))
    assert study.settings == older.settings
    assert study.trials == older.trials


def test_journals_with_other_scorers_are_refused(tmp_path: Path) -> None:
    file = plugin_journal(tmp_path / "main.jsonl", "Keywords - a", "Keywords - b", "KL divergence")
    assert "Keywords - a, Keywords - b, KL divergence" in refusal(file)


# Choosing a trial


def test_the_best_trial_refuses_least_within_the_target(tmp_path: Path) -> None:
    scores = [(5, 0.01), (2, 0.09), (2, 0.08), (0, 0.3), (0, 0.4)]
    study = read(tmp_path, *[attributes(*score) for score in scores])
    assert study.best(0.1).number == 3
    assert study.best(0.05).number == 1
    assert study.best(0.35).number == 4
    assert study.best(0.001).number == 4  # nothing is within the target: the fewest refusals of all


def test_within_the_standard_error_the_lower_divergence_wins(tmp_path: Path) -> None:
    assert read(tmp_path, attributes(1, 0.04), attributes(2, 0.02), attributes(3, 0.01)).best(0.1).number == 2


def test_without_a_number_of_prompts_fewest_refusals_win(tmp_path: Path) -> None:
    scores = [attributes(count, kl, n_bad_prompts=None) for count, kl in ((1, 0.04), (2, 0.02))]
    assert read(tmp_path, *scores).best(0.1).number == 1


def test_a_trial_is_found_by_the_number_that_heretic_shows(tmp_path: Path) -> None:
    study = read(tmp_path, attributes(1), TrialState.PRUNED, attributes(2))
    assert study.trial(3).refusals == 2
    with pytest.raises(RunFolderError, match=r"no completed trial 2\. Give one of these: 1, 3\."):
        study.trial(2)


# Directions


def hidden_states(lm: LanguageModel, prompts: PromptSet) -> Tensor:
    """[n, L + 1, d] as the framework gives them, one prompt at a time."""
    states = []
    for prompt in prompts:
        messages = [{"role": "system", "content": prompt.system or SYSTEM}, {"role": "user", "content": prompt.text}]
        text = lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        inputs = lm.tokenizer(text + PREFIX, return_tensors="pt")
        with torch.no_grad():
            output = lm.model(input_ids=inputs["input_ids"], output_hidden_states=True)
        states.append(torch.stack([state[0, -1] for state in output.hidden_states]))
    return torch.stack(states)


def expected_directions(lm: LanguageModel, orthogonalize: bool, quantile: float) -> Tensor:
    """[L + 1, d], the first of the embeddings."""
    benign, target = hidden_states(lm, BENIGN), hidden_states(lm, TARGET)
    if quantile < 1:
        for states in (benign, target):
            for state in states.view(-1, states.shape[-1]):
                limit = float(state.abs().quantile(quantile))
                state.clamp_(-limit, limit)
    mean = benign.mean(0)
    directions = normalize(target.mean(0) - mean, dim=1)
    if orthogonalize:
        unit = normalize(mean, dim=1)
        directions = normalize(directions - (directions * unit).sum(1, keepdim=True) * unit, dim=1)
    return directions


@pytest.mark.parametrize("orthogonalize", [True, False])
@pytest.mark.parametrize("quantile", [1.0, 0.8])
def test_directions_are_those_of_the_hidden_states(
    tiny_lm: LanguageModel, tmp_path: Path, orthogonalize: bool, quantile: float
) -> None:
    study = read(tmp_path, orthogonalize_direction=orthogonalize, winsorization_quantile=quantile)
    directions = heretic_directions(tiny_lm, study, BENIGN, TARGET)
    assert all(not layer._forward_hooks for layer in tiny_lm.model.model.layers)
    expected = expected_directions(tiny_lm, orthogonalize, quantile)
    torch.testing.assert_close(directions, expected[1:], atol=2e-4, rtol=0)
    other = expected_directions(tiny_lm, not orthogonalize, quantile)
    assert (directions - other[1:]).abs().max() > 0.01


SMALL: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "vocab_size": 261,
    "pad_token_id": 0,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "gemma2": Gemma2Config(**SMALL, intermediate_size=64, num_key_value_heads=2, head_dim=8),
    "gpt2": GPT2Config(vocab_size=261, n_embd=32, n_layer=3, n_head=4),
    "opt": OPTConfig(**SMALL, ffn_dim=64, word_embed_proj_dim=32),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_layer_is_taken_after_any_final_norm(family: str, tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / family, FAMILIES[family])), dtypes=["float32"])
    directions = heretic_directions(lm, read(tmp_path), BENIGN, TARGET)
    torch.testing.assert_close(directions, expected_directions(lm, True, 1.0)[1:], atol=1e-3, rtol=0)


def test_a_model_that_hides_its_states_is_refused(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    study = read(tmp_path)
    inner = tiny_lm.model.model
    inner.register_forward_hook(lambda module, args, output: type(output)(output.last_hidden_state[..., :16]))
    tiny_lm.model.lm_head = torch.nn.Linear(16, 261)
    with pytest.raises(ModelError, match="after the final norm"):
        heretic_directions(tiny_lm, study, BENIGN, TARGET)


def test_special_tokens_are_put_before_those_of_the_template(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    study = read(tmp_path)
    without = heretic_directions(tiny_lm, study, BENIGN, TARGET)
    tiny_lm.tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", 2)]
    )
    directions = heretic_directions(tiny_lm, study, BENIGN, TARGET)
    torch.testing.assert_close(directions, expected_directions(tiny_lm, True, 1.0)[1:], atol=2e-4, rtol=0)
    assert (directions - without).abs().max() > 0.01


def test_a_template_without_a_system_role_is_refused(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    tiny_lm.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ModelError, match="system message"):
        heretic_directions(tiny_lm, read(tmp_path), BENIGN, TARGET)


# Edits


def expected_weight(weight: Tensor, v: Tensor, strength: float, normalization: RowNormalization) -> Tensor:
    """W', by loops over rows."""
    rows = []
    norms = [float(row.norm()) for row in weight]
    units = [row / norm if normalization != "none" else row for row, norm in zip(weight, norms, strict=True)]
    read_off = torch.stack([v[i] * unit for i, unit in enumerate(units)]).sum(0)
    for i, unit in enumerate(units):
        row = unit - strength * v[i] * read_off
        if normalization == "full":
            row = row / row.norm()
        rows.append(row if normalization == "none" else norms[i] * row)
    return torch.stack(rows)


def expected_strength(parameters: Mapping[str, float], layer: int) -> float:
    distance = abs(layer - parameters["max_weight_position"])
    if distance > parameters["min_weight_distance"]:
        return 0.0
    step = (parameters["min_weight"] - parameters["max_weight"]) / parameters["min_weight_distance"]
    return parameters["max_weight"] + distance * step


def module_of(layer: Any, component: str) -> Any:
    return {"attn.o_proj": layer.self_attn.o_proj, "mlp.down_proj": layer.mlp.down_proj}[component]


@pytest.mark.parametrize("index", [None, 1.3, 2.7])
@pytest.mark.parametrize("normalization", ["none", "pre", "full"])
def test_a_trial_gives_the_weights_that_heretic_gave(
    tiny_lm: LanguageModel, tmp_path: Path, normalization: RowNormalization, index: float | None
) -> None:
    study = read(tmp_path, attributes(direction_index=index), row_normalization=normalization)
    edit = study.edit(study.trials[0], tiny_lm, heretic_directions(tiny_lm, study, BENIGN, TARGET))
    framework = expected_directions(tiny_lm, True, 1.0)  # index 0 are the embeddings
    writers = tiny_lm.writers()
    edited = deepcopy(tiny_lm.model)
    for site in writers:
        strength = expected_strength(PARAMETERS[site.component], site.layer)
        if strength == 0:
            assert site not in edit.strengths
            continue
        v = framework[site.layer + 1]
        if index is not None:
            low = int(index) + 1
            v = normalize(framework[low] + (index + 1 - low) * (framework[low + 1] - framework[low]), dim=0)
        weight = expected_weight(writers[site].weight(), v, strength, normalization)
        torch.testing.assert_close(merged_weight(edit, site, writers[site]), weight, atol=3e-4, rtol=0)
        module_of(edited.model.layers[site.layer], site.component).weight.copy_(weight)
    assert len(edit.sites) == 6
    ids = torch.randint(5, 261, (2, 9))
    with torch.no_grad():
        base = tiny_lm.model(input_ids=ids).logits
        with LiveEdits(writers, [edit]).applied():
            live = tiny_lm.model(input_ids=ids).logits
        torch.testing.assert_close(live, edited(input_ids=ids).logits, atol=1e-2, rtol=1e-2)
    assert not torch.allclose(live, base, atol=0.1)


def test_a_component_of_weight_zero_is_left_alone(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    off = {**PARAMETERS["mlp.down_proj"], "max_weight": 0.0, "min_weight": 0.0}
    study = read(tmp_path, attributes(parameters={**PARAMETERS, "mlp.down_proj": off}))
    edit = study.edit(study.trials[0], tiny_lm, torch.eye(4, 32))
    assert {site.component for site in edit.sites} == {"attn.o_proj"}


def test_a_norm_behind_the_writer_does_not_bend_the_direction(tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / "gemma2", FAMILIES["gemma2"])), dtypes=["float32"])
    parameters = {component: {**values, "max_weight_position": 2.0} for component, values in PARAMETERS.items()}
    study = read(tmp_path, attributes(parameters=parameters))
    directions = torch.eye(3, 32)
    edit = study.edit(study.trials[0], lm, directions)
    assert edit.sites
    for site in edit.sites:
        assert torch.equal(edit.directions[site], directions[site.layer])


def test_shared_experts_are_left_alone(tiny_lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = read(tmp_path)
    writers = tiny_lm.writers()
    shared = Site(3, "mlp.down_proj", "model.layers.3.mlp.shared_expert.down_proj")
    more = {**writers, shared: next(iter(writers.values()))}
    monkeypatch.setattr(LanguageModel, "writers", lambda self, components: more)
    edit = study.edit(study.trials[0], tiny_lm, torch.eye(4, 32))
    assert shared not in edit.strengths and {site.layer for site in edit.sites} == {1, 2, 3}


def test_an_unknown_component_is_refused(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    study = read(tmp_path, attributes(parameters={**PARAMETERS, "conv.out_proj": PARAMETERS["attn.o_proj"]}))
    with pytest.raises(ModelError, match=r"edits conv\.out_proj, which cannot"):
        study.edit(study.trials[0], tiny_lm, torch.eye(4, 32))


def test_a_smaller_model_than_the_study_had_is_refused(tmp_path: Path) -> None:
    lm = load_model(str(save_tiny(tmp_path / "small", tiny_config(num_hidden_layers=3))), dtypes=["float32"])
    study = read(tmp_path)
    with pytest.raises(ModelError, match=r"edits layer 3\.0, and .* has 3 layers\. Give the model .* some/model"):
        study.edit(study.trials[0], lm, torch.eye(3, 32))


# Files that are damaged, or something else


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    file = write_journal(tmp_path / "study.jsonl", [attributes(), attributes()])
    content = file.read_bytes()
    file.write_bytes(content[:-20])  # the crash came while the second trial's completion was written
    assert [trial.number for trial in HereticStudy.read(file).trials] == [1]
    assert file.read_bytes() == content[:-20]


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    file = write_journal(folder / "study.jsonl", [attributes()])
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    file.chmod(0o400)
    folder.chmod(0o500)
    try:
        assert len(HereticStudy.read(file).trials) == 1
    finally:
        folder.chmod(0o700)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_study_without_a_completed_trial_is_refused(tmp_path: Path) -> None:
    file = write_journal(tmp_path / "study.jsonl", [TrialState.PRUNED, TrialState.RUNNING])
    assert "no completed trial" in refusal(file)


def test_a_journal_of_this_program_is_refused_with_the_way_to_go(tmp_path: Path) -> None:
    file = write_journal(tmp_path / "iconoclast_study.jsonl", name="iconoclast")
    assert f"Give its run folder: {tmp_path}." in refusal(file)


def test_other_journals_and_no_files_are_refused(tmp_path: Path) -> None:
    assert "a study 'example'" in refusal(write_journal(tmp_path / "other.jsonl", name="example"))
    assert "No such file" in refusal(tmp_path / "missing.jsonl")
    assert "directory" in refusal(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    assert "no studies" in refusal(tmp_path / "empty.jsonl")


def line(**entry: Any) -> bytes:
    return json.dumps(entry).encode() + b"\n"


STUDY = line(op_code=0, study_name="heretic")
GOOD_SETTINGS = line(op_code=2, user_attr={"settings": json.dumps(SETTINGS)})


def completed(**changes: Any) -> bytes:
    trial = line(op_code=8, trial_id=0, user_attr={"index": 1, **attributes(), **changes})
    return STUDY + GOOD_SETTINGS + trial + line(op_code=6, trial_id=0, state=1)


def with_settings(settings: Any) -> bytes:
    return STUDY + line(op_code=2, user_attr={"settings": settings})


HOSTILE: dict[str, bytes] = {
    "not text": bytes(range(256)) * 8 + b"\n",
    "not JSON": STUDY + b"hello\n",
    "a list": b"[1, 2]\n",
    "a table": b"text,split\nWhat is a song?,fit\n",
    "nested": STUDY + b"[" * 100_000 + b"\n",
    "a line of ten million": STUDY + line(op_code=2, user_attr={"settings": "x" * 10_000_000}),
    "ten million and no end": b"x" * 10_000_000,
    "operation is a word": line(op_code="create", study_name="heretic"),
    "trial is a list": STUDY + line(op_code=8, trial_id=[1], user_attr={}),
    "attributes are a list": STUDY + line(op_code=8, trial_id=0, user_attr=[]),
    "long name": line(op_code=0, study_name="\n".join("x" * 100_000)),
    "two studies": STUDY + STUDY,
    "settings are missing": STUDY,
    "settings are a number": with_settings(3),
    "settings are not JSON": with_settings("x" * 100_000),
    "settings are a list": with_settings("[]"),
    "settings lack prompts": with_settings('{"model": "some/model"}'),
    "settings of another kind": with_settings(json.dumps({**SETTINGS, "row_normalization": "post"})),
    "quantile is nothing": with_settings(json.dumps({**SETTINGS, "winsorization_quantile": float("nan")})),
    "prompts are a number": with_settings(json.dumps({**SETTINGS, "good_prompts": 3})),
    "prompts have numbers": with_settings(json.dumps({**SETTINGS, "good_prompts": {"dataset": 1, "split": 2}})),
    "trial lacks everything": STUDY + GOOD_SETTINGS + line(op_code=6, trial_id=0, state=1),
    "refusals are negative": completed(refusals=-1),
    "divergence is nothing": completed(kl_divergence=float("nan")),
    "weight is infinite": completed(
        parameters={"attn.o_proj": {**PARAMETERS["attn.o_proj"], "max_weight": float("inf")}}
    ),
    "weights are missing": completed(parameters={"attn.o_proj": {"x" * 10_000: 1.0}}),
    "other parameters": completed(parameters={}),
    "no parameters": completed(parameters=None),
    "scores are a number": completed(scores=3),
    "scores are words": completed(scores=[{"name": "Keywords", "score": "3/20"}]),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_not_a_journal_of_heretic_gives_one_line(what: str, tmp_path: Path) -> None:
    file = tmp_path / "study.jsonl"
    file.write_bytes(HOSTILE[what])
    message = refusal(file)
    assert str(file) in message and message.endswith(".")


def test_the_hostile_files_differ_from_a_good_one(tmp_path: Path) -> None:
    file = tmp_path / "study.jsonl"
    file.write_bytes(completed())
    assert HereticStudy.read(file).trials[0].refusals == 3
