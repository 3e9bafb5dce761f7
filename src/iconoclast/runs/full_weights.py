"""A run in 4 or 8 bits, exported for the full weights: its directions are estimated again on those."""

import gc

from torch import nn
from torch.nn.functional import cosine_similarity

from iconoclast.directions.estimators import Directions
from iconoclast.errors import UserError
from iconoclast.models.anatomy import decoder_layers
from iconoclast.progress import Progress
from iconoclast.runs.documents import DirectionOrigin
from iconoclast.runs.saved import SavedRun
from iconoclast.runs.workbench import Workbench
from iconoclast.search.space import FittedParameters

LAYERS_PRESENT = 2
"""Layers that are in memory beside the embeddings while the full weights are read from the disk."""


def use_full_directions(saved: SavedRun, bench: Workbench, progress: Progress) -> DirectionOrigin | None:
    """Give the bench directions of its full weights if the run's are of quantised ones; say which ones are used.

    The weights of a bench whose model is a skeleton are read from the disk layer by layer, in the memory of the
    embeddings and a few layers. None for a run in full precision.
    """
    found_in = saved.settings.quantization
    if found_in == "none":
        return None
    if bench.lm.quantization != "none":
        return DirectionOrigin(
            found_in=found_in, kept="the export is of the quantised weights, as are its figures; use it with them"
        )
    if isinstance(saved.trial.parameters, FittedParameters):
        return DirectionOrigin(found_in=found_in, kept="fitted directions are fixed, and were not fitted again")
    try:
        estimated = _of_full_weights(bench, progress)
        spec = saved.trial.parameters.direction
        cosines = cosine_similarity(saved.directions.resolve(spec), estimated.resolve(spec), dim=-1)
    except (UserError, OSError) as error:
        return DirectionOrigin(found_in=found_in, kept=f"they could not be estimated again ({error})")
    bench.directions = estimated
    return DirectionOrigin(found_in=found_in, cosines=[round(float(each), 4) for each in cosines])


def _of_full_weights(bench: Workbench, progress: Progress) -> Directions:
    if bench.lm.device.type != "meta":
        with bench.laid_out():
            return bench.estimate_directions(*bench.residuals(progress))
    model = bench.lm.model
    present = _bytes(model.get_input_embeddings()) + LAYERS_PRESENT * max(map(_bytes, decoder_layers(model)))
    limits = {"max_memory": [f"cpu={present // 1024 + 1}KiB"]}
    streamed = Workbench.load(bench.settings.model_copy(update=limits), quantization="none", progress=progress)
    try:
        streamed.use(bench.prompts, bench.lm.response_prefix)
        return streamed.estimate_directions(*streamed.residuals(progress))
    finally:
        del streamed
        gc.collect()


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
