"""Runs, trials and edits in a notebook."""

from pathlib import Path

import torch

from iconoclast.directions.estimators import DirectionSpec
from iconoclast.edits.edit import Edit
from iconoclast.notebook import bars, table
from iconoclast.scores import Count, Scores
from iconoclast.search.pareto import Front, Trial
from iconoclast.search.space import EditParameters, FittedParameters
from iconoclast.vocabulary import Site


def test_markup_in_a_cell_is_text() -> None:
    drawn = table("<b>", [("<i>", "<script>alert(1)</script>")], ("<u>",))
    assert "&lt;script&gt;" in drawn and not any(tag in drawn for tag in ("<b>", "<i>", "<u>", "<script>"))


def test_bars_go_from_nothing_to_the_largest() -> None:
    assert bars([0, 1, -2]) == "▁▅█" and bars([]) == "" and bars([0.0]) == "▁"


def test_an_edit_shows_the_strengths_of_its_components() -> None:
    sites = {Site(layer, "attn.o_proj", f"layers.{layer}"): 0.5 * layer for layer in (1, 2)}
    drawn = Edit(dict.fromkeys(sites, torch.ones(4) / 2), sites)._repr_html_()
    assert "Edit of 2 sites, row normalisation pre" in drawn
    assert all(text in drawn for text in ("attn.o_proj", "1 to 2", "0.50 to 1.00", "▅█"))


def test_trials_show_their_scores_with_intervals() -> None:
    fitted = FittedParameters(EditParameters(DirectionSpec(), {}), 3, 0.6, Path("fit.safetensors"))
    trial = Trial(7, fitted, Scores(Count(5, 20), Count(0, 20), 0, 0.5, 0.0123, broken=Count(1, 20)))
    for drawn in (trial._repr_html_(), Front([trial])._repr_html_()):
        assert all(text in drawn for text in ("7", "5/20 (11% to 47%)", "1/20", "0.0123", "strengths times 0.6"))
