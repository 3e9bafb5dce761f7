"""The real model: the job from its prompts to its export, and the example of the README."""

import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

import iconoclast as ic
from iconoclast.edits.live import LiveEdits
from iconoclast.edits.lora import save_adapter
from iconoclast.edits.merge import save_merged
from iconoclast.models.demo import FILE, PACKAGE, demo_folder
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.vocabulary import RowNormalization

pytestmark = pytest.mark.model
ROOT = Path(__file__).parents[1]


def prompts(role: str, split: str) -> ic.PromptSet:
    return ic.PromptSet.load(f"builtin:everyday/{role}", split=split)


@pytest.fixture(scope="module")
def directions(demo_lm: LanguageModel) -> ic.Directions:
    return ic.estimate_directions(demo_lm, prompts("benign", "fit"), prompts("target", "fit"), subspace_rank=8)


def edit_of(lm: LanguageModel, directions: ic.Directions, normalization: RowNormalization = "pre") -> ic.Edit:
    mountain = ic.Profile(1.3, 19, 0.4, 12)
    profiles = {"attn.o_proj": mountain, "mlp.down_proj": mountain}
    return ic.make_edit(lm, directions, profiles, ic.DirectionSpec(scope="global", index=19.5), normalization)


def test_an_edit_takes_away_most_refusals_and_little_else(demo_lm: LanguageModel, directions: ic.Directions) -> None:
    target, benign = prompts("target", "select[:24]"), prompts("benign", "select[:24]")
    base, edited = ic.measure(demo_lm, [ic.Edit.nothing(), edit_of(demo_lm, directions)], target, benign)
    assert base.refusals.rate > 0.7 and base.overrefusals.rate < 0.1
    assert edited.refusals.rate < 0.2 and edited.overrefusals.rate < 0.1
    assert base.kl_divergence < 0.01 < edited.kl_divergence < 0.15
    assert edited.compliance > base.compliance


def next_token(model: torch.nn.Module, lm: LanguageModel) -> torch.Tensor:
    """Log-probabilities of the first response token of 16 prompts, one by one, so that no padding adds its noise."""
    ids = lm.encode([*prompts("benign", "report[:8]"), *prompts("target", "report[:8]")])
    with torch.inference_mode():
        return torch.stack([model(input_ids=torch.tensor([i])).logits[0, -1].float().log_softmax(-1) for i in ids])


@pytest.mark.parametrize("normalization", ["none", "pre"])
def test_live_edit_adapter_and_merged_weights_agree(
    demo_lm: LanguageModel, directions: ic.Directions, tmp_path: Path, normalization: RowNormalization
) -> None:
    edit = edit_of(demo_lm, directions, normalization)
    save_adapter(edit, demo_lm.writers(), demo_lm.path, tmp_path)
    save_merged(edit, demo_lm.writers(), demo_lm.model, tmp_path / "merged")
    with LiveEdits(demo_lm.writers(), [edit]).applied():
        live = next_token(demo_lm.model, demo_lm)
    # As in the verification snippet of the Llama-3.1-8B release.
    base = AutoModelForCausalLM.from_pretrained(demo_lm.path, dtype=torch.bfloat16)
    adapter = next_token(PeftModel.from_pretrained(base, str(tmp_path)), demo_lm)
    merged = next_token(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), demo_lm)
    unedited = next_token(demo_lm.model, demo_lm)

    def divergence(other: torch.Tensor) -> float:
        return float((live.exp() * (live - other)).sum(-1).mean())

    assert divergence(adapter) < 0.004 and divergence(merged) < 0.004
    assert divergence(unedited) > 10 * max(divergence(adapter), divergence(merged))


def test_at_full_strength_nothing_of_the_direction_is_written(
    demo_lm: LanguageModel, directions: ic.Directions
) -> None:
    whole = ic.Profile.constant(1.0)
    edit = ic.make_edit(demo_lm, directions, {"mlp.down_proj": whole}, row_normalization="none")
    from iconoclast.edits.edit import edited_weight

    for site in edit.sites:
        weight, v = demo_lm.writers()[site].weight(), edit.directions[site]
        before, after = (v @ weight).norm(), (v @ edited_weight(weight, v, 1.0, "none")).norm()
        assert before > 0.01 and after < 1e-5 * before


def test_a_gguf_file_loads_as_the_converted_demo(demo_lm: LanguageModel) -> None:
    import importlib.util

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    lm = load_model(str(Path(spec.origin).parent / FILE), dtypes=["bfloat16"])
    state = demo_lm.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in lm.model.state_dict().items())
    assert lm.render(next(iter(prompts("target", "fit")))) == demo_lm.render(next(iter(prompts("target", "fit"))))
    assert (demo_folder() / "model.safetensors").is_file()


def test_the_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(import iconoclast as ic\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert example is not None
    exec(example[1], {})
    found = re.search(r"refusals (\d+)/16 -> (\d+)/16 at KL (0\.\d+)", capsys.readouterr().out)
    assert found is not None
    assert int(found[1]) >= 11 and int(found[2]) <= 5 and float(found[3]) < 0.2
