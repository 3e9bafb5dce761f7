"""4-bit weights: edited live without being touched."""

import pytest
import torch

from iconoclast.edits.edit import Edit, edited_weight
from iconoclast.edits.live import LiveEdits
from iconoclast.models.language_model import LanguageModel
from iconoclast.models.loading import load_model
from iconoclast.vocabulary import RowNormalization
from tests.support.tiny import save_tiny, tiny_config

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = save_tiny(tmp_path_factory.mktemp("4bit"), tiny_config(hidden_size=64, intermediate_size=128))
    return load_model(str(folder), dtypes=["float32"], quantization="bnb_4bit")


def test_the_sites_are_really_4_bit(quantized: LanguageModel) -> None:
    kinds = {type(writer.module).__name__ for writer in quantized.writers().values()}
    assert kinds == {"Linear4bit"}
    assert next(iter(quantized.writers().values())).module.weight.dtype == torch.uint8


@pytest.mark.parametrize("normalization", ["none", "pre", "full"])
def test_a_live_edit_of_4_bit_weights_edits_their_values(
    quantized: LanguageModel, normalization: RowNormalization
) -> None:
    site, writer = next(iter(quantized.writers().items()))
    direction = torch.nn.functional.normalize(torch.randn(64), dim=0)
    before = writer.module.weight.clone()  # type: ignore[operator]
    edit = Edit({site: direction}, {site: 0.8}, normalization)
    x = torch.randn(3, 5, writer.weight().shape[1])
    with torch.no_grad(), LiveEdits(quantized.writers(), [edit]).applied():
        live = writer.module(x)
    expected = x @ edited_weight(writer.weight(), direction, 0.8, normalization).T
    torch.testing.assert_close(live.float(), expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(writer.module.weight, before)  # type: ignore[arg-type]
