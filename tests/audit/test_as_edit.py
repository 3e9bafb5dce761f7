"""Plain differences of weights, and adapters, are read as Edits where they are edits."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.directions.subspace import project_out
from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.edits.lora import save_adapter
from iconoclast.edits.merge import save_merged
from iconoclast.edits.record import load_edit
from iconoclast.models.anatomy import find_writers
from iconoclast.models.checkpoint import Checkpoint
from iconoclast.runs.subjects import EditSubject, find_subject
from iconoclast.vocabulary import COMPONENTS, RowNormalization
from tests.support.entry_point import iconoclast
from tests.support.families import FAMILIES
from tests.support.tiny import tiny_tokenizer


def audited(base: Path, edited: Path, to: Path) -> str:
    done = iconoclast("audit", edited, "--base", base, "--weights-only", "--edit", to)
    return done.complaint if done.code else ""


def saved_base(folder: Path, family: str) -> Path:
    FAMILIES[family].model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "family, normalization, kind, cosine",
    [
        ("llama", "full", "merged", 1.0),
        ("gpt2", "pre", "merged", 1.0),
        ("mixtral", "none", "merged", 1.0),
        ("gpt_oss", "pre", "adapter", 1.0),
        ("llama", "pre", "merged", 0.8),
        ("gpt2", "pre", "merged", 0.8),
        ("mixtral", "pre", "adapter", 0.8),
    ],
)
def test_an_edit_comes_back_from_what_it_was_written_as(
    tmp_path: Path, family: str, normalization: RowNormalization, kind: str, cosine: float
) -> None:
    base, to = saved_base(tmp_path / "base", family), tmp_path / "edited"
    to.mkdir()
    model = FAMILIES[family].model()
    writers, random = find_writers(model, COMPONENTS), torch.Generator().manual_seed(1)
    directions = {site: normalize(torch.randn(32, generator=random), dim=0) for site in writers}
    readings = {
        site: cosine * v
        + (1 - cosine**2) ** 0.5
        * normalize(project_out(torch.randn(1, 32, generator=random), v[None, :, None]), dim=1)[0]
        for site, v in directions.items()
        if cosine < 1
    }
    strengths = {site: 0.4 + 0.1 * number for number, site in enumerate(writers)}
    edit = Edit(directions, strengths, normalization, readings)
    if kind == "merged":
        save_merged(edit, writers, model, to, Checkpoint.find(str(base)))
    else:
        save_adapter(edit, writers, str(base), to)
    assert audited(base, to, tmp_path / "found.safetensors") == ""
    found = load_edit(tmp_path / "found.safetensors")
    assert found.row_normalization == normalization and found.strengths == pytest.approx(edit.strengths, rel=0.01)
    assert all(abs(float(found.directions[site] @ v)) > 0.999 for site, v in edit.directions.items())
    assert found.readings.keys() == readings.keys()
    assert all(
        float(found.readings[site] @ r) * float(found.directions[site] @ directions[site]) > 0.998
        for site, r in readings.items()
    )
    assert isinstance(find_subject(str(tmp_path / "found.safetensors")), EditSubject)


def test_what_is_no_edit_gets_one_line(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base", "llama")
    v = normalize(torch.ones(32), dim=0)

    def written(name: str, change: "dict[str, Tensor]") -> Path:
        model = FAMILIES["llama"].model()
        model.load_state_dict(model.state_dict() | change)
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    own = FAMILIES["llama"].model().state_dict()
    query, down = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"
    refused = {
        "noise": {down: own[down] + 0.01 * torch.randn(own[down].shape)},
        "elsewhere": {query: edited_weight(own[query], v, 0.7, "none")},
        "same": {},
    }
    said = {name: audited(base, written(name, change), tmp_path / "e.safetensors") for name, change in refused.items()}
    assert "not a rank-one edit" in said["noise"] and "does not write to the residual stream" in said["elsewhere"]
    assert "there is no edit" in said["same"] and not (tmp_path / "e.safetensors").exists()
    done = iconoclast("audit", base, "--base", base, "--weights-only", "--edit", tmp_path / "edit.bin")
    assert done.code == 2 and "ends in .safetensors" in done.complaint
