"""What a model is while gradients pass through it, and that it is as before afterwards."""

from pathlib import Path

import pytest
import torch

from iconoclast.models import gradients
from iconoclast.models.gradients import ready_for_gradients
from iconoclast.models.loading import load_model
from iconoclast.models.packed import packed


@pytest.mark.parametrize(("slow", "within"), [(True, torch.float32), (False, torch.bfloat16)])
def test_products_are_of_the_quicker_type_for_a_while(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, slow: bool, within: torch.dtype
) -> None:
    monkeypatch.setattr(gradients, "bfloat16_is_slow", lambda: slow)
    model = load_model(str(tiny_folder), dtypes=["bfloat16"]).model
    ids = torch.tensor([[1, 2, 3]])
    with packed(model), torch.no_grad():
        before, logits = {name: p.data_ptr() for name, p in model.named_parameters()}, model(ids).logits
        with pytest.raises(InterruptedError), ready_for_gradients(model):
            assert {p.dtype for p in model.parameters()} == {within}
            assert torch.allclose(model(ids).logits.float(), logits.float(), atol=0.05)
            raise InterruptedError
        assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
        assert torch.equal(model(ids).logits, logits)


def test_without_room_for_a_copy_the_type_stays(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "bfloat16_is_slow", lambda: True)
    monkeypatch.setattr(gradients, "LARGEST_SHARE", 0)
    model = load_model(str(tiny_folder), dtypes=["bfloat16"]).model
    with ready_for_gradients(model):
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
