"""Edits applied live to the writers' outputs: no weight is touched, and the rows of a batch may differ."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from iconoclast.edits.edit import Edit, OutputTransform, output_transform
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer
from iconoclast.models.experts import expert_outputs
from iconoclast.models.hooks import hooks_act
from iconoclast.models.reading import RowListener
from iconoclast.vocabulary import Site

_NEVER = 1_000_000
"""The first changed layer of an empty edit."""


@dataclass(frozen=True)
class _SiteTransforms:
    """The transforms of every edit at one site, stacked: each [edits, d], or [edits, experts, d] of fused experts."""

    inward: Tensor
    outward: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def of_rows(self, edits: Tensor) -> "_SiteTransforms":
        scale = None if self.scale is None else self.scale[edits]
        return _SiteTransforms(self.inward[edits], self.outward[edits], scale, self.bias)

    def __call__(self, output: Tensor) -> Tensor:
        """Transform `output` [rows, tokens, d] or [rows · tokens, d], with one transform for each row or for all."""
        z = output.reshape(len(self.inward), -1, output.shape[-1])
        z = z.to(torch.float32, copy=not torch.is_grad_enabled())
        z = self._reduced(z if self.bias is None else z - self.bias)
        z = z if self.scale is None else z * self.scale[:, None]
        z = z if self.bias is None else z + self.bias
        return z.to(output.dtype).reshape(output.shape)

    def _reduced(self, z: Tensor) -> Tensor:
        """Return z − (z·inward) outward, [edits, tokens, d], written over z unless a gradient may need it."""
        inward, outward = self.inward[:, None], self.outward[:, None]
        if torch.is_grad_enabled():
            if len(self.inward) == 1:  # a product with one vector, whose gradient copies nothing
                return z - (z @ self.inward[0])[..., None] * outward
            return z - (z * inward).sum(-1, keepdim=True) * outward
        if z.shape[1] == 1:  # a step of decoding, for which batched products of vectors are slow
            return z.addcmul_((z * inward).sum(-1, keepdim=True), outward, value=-1)
        return z.baddbmm_(z @ self.inward[:, :, None], outward, alpha=-1)

    def of_experts(self, output: Tensor, edits: Tensor, experts: Tensor) -> Tensor:
        """Transform `output` [pairs, d], where pair i is what expert `experts[i]` writes under edit `edits[i]`."""
        z = output.float() if self.bias is None else output - self.bias[experts]
        read = (z * self.inward[edits, experts]).sum(-1, keepdim=True)
        z = torch.addcmul(z, read, self.outward[edits, experts], value=-1)
        z = z if self.scale is None else z * self.scale[edits, experts]
        z = z if self.bias is None else z + self.bias[experts]
        return z.to(output.dtype)


class LiveEdits(RowListener):
    """Many edits of one model, applied to its outputs while a context lasts.

    `row_edits` maps sequences to edits; unset, all carry edit 0.

    Raises:
        ModelError: an edit names a site that the model does not have.
    """

    def __init__(
        self, writers: Mapping[Site, Writer], edits: Sequence[Edit], row_edits: Sequence[int] | None = None
    ) -> None:
        unknown = [site for edit in edits for site in edit.strengths if site not in writers]
        if unknown:
            raise ModelError(f"The edit is for another model: this one has no {unknown[0].module} at {unknown[0]}.")
        self._writers = writers
        self._transforms = {
            site: _stack(site, writer, edits)
            for site, writer in writers.items()
            if any(site in edit.strengths for edit in edits)
        }
        self._row_edits = None if row_edits is None else torch.tensor(list(row_edits))
        self._first_layers = [min((site.layer for site in edit.strengths), default=_NEVER) for edit in edits]
        self._current: Tensor | None = None
        self._active: dict[Site, _SiteTransforms] = {}

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """Apply the edit of sequence `rows[i]` to row i of the batch while the context lasts."""
        with ExitStack() as stack:
            stack.enter_context(hooks_act())
            if self._row_edits is None or rows is None:
                self._activate(torch.zeros(1, dtype=torch.long))
            else:
                self._activate(self._row_edits[rows.cpu()])
            for site in self._transforms:
                module = self._writers[site].module
                if self._writers[site].fused:
                    stack.enter_context(expert_outputs(module, partial(self._of_experts, site)))
                else:
                    stack.enter_context(module.register_forward_hook(partial(self._hook, site)))
            yield

    def keep(self, positions: Tensor) -> None:
        if self._row_edits is not None and self._current is not None:
            self._activate(self._current[positions.cpu()])

    def variant(self, row: int) -> int:
        return 0 if self._row_edits is None else int(self._row_edits[row])

    def first_layer(self, row: int) -> int:
        return self._first_layers[self.variant(row)]

    def _activate(self, edits: Tensor) -> None:
        self._current = edits
        self._active = {
            site: transforms if self._writers[site].fused else transforms.of_rows(edits.to(transforms.inward.device))
            for site, transforms in self._transforms.items()
        }

    def _hook(self, site: Site, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return self._active[site](output)

    def _of_experts(self, site: Site, output: Tensor, tokens: Tensor, experts: Tensor, count: int) -> Tensor:
        assert self._current is not None
        edits = self._current.to(output.device)
        return self._active[site].of_experts(output, edits[tokens * len(edits) // count], experts)


def _stack(site: Site, writer: Writer, edits: Sequence[Edit]) -> _SiteTransforms:
    device = writer.device
    zeros = torch.zeros(writer.rows, device=device)
    scaled = any(edit.row_normalization == "full" for edit in edits)
    weight = writer.weight() if any(e.row_normalization == "full" and site in e.strengths for e in edits) else None
    transforms = []
    for edit in edits:
        if site not in edit.strengths:
            transforms.append(OutputTransform(zeros, zeros, zeros + 1))
            continue
        norms = zeros if edit.row_normalization == "none" else writer.row_norms
        direction, strength = edit.directions[site].to(device), edit.strengths[site]
        reading = edit.reading(site).to(device)
        transforms.append(output_transform(direction, strength, edit.row_normalization, norms, weight, reading))
    inward, outward, scale = map(torch.stack, zip(*((t.inward, t.outward, t.scale) for t in transforms), strict=True))
    return _SiteTransforms(inward, outward, scale if scaled else None, writer.bias)
