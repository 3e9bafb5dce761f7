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
    then: "_SiteTransforms | None" = None

    def of_rows(self, edits: Tensor) -> "_SiteTransforms":
        scale = None if self.scale is None else self.scale[edits]
        then = self.then and self.then.of_rows(edits)
        return _SiteTransforms(self.inward[edits], self.outward[edits], scale, self.bias, then)

    def __call__(self, output: Tensor) -> Tensor:
        """Transform `output` [rows, tokens, d] or [rows · tokens, d], with one transform for each row or for all."""
        z = output.reshape(len(self.inward), -1, output.shape[-1])
        z = z.to(torch.float32, copy=not torch.is_grad_enabled())
        z = self._changed(z if self.bias is None else z - self.bias)
        z = z if self.bias is None else z + self.bias
        return z.to(output.dtype).reshape(output.shape)

    def _changed(self, z: Tensor) -> Tensor:
        """Return what the edits make of outputs without bias, [edits, tokens, d]."""
        z = self._reduced(z)
        z = z if self.scale is None else z * self.scale[:, None]
        return z if self.then is None else self.then._changed(z)

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
        z = self._changed_of_experts(z, edits, experts)
        z = z if self.bias is None else z + self.bias[experts]
        return z.to(output.dtype)

    def _changed_of_experts(self, z: Tensor, edits: Tensor, experts: Tensor) -> Tensor:
        read = (z * self.inward[edits, experts]).sum(-1, keepdim=True)
        z = torch.addcmul(z, read, self.outward[edits, experts], value=-1)
        z = z if self.scale is None else z * self.scale[edits, experts]
        return z if self.then is None else self.then._changed_of_experts(z, edits, experts)


class LiveEdits(RowListener):
    """Many edits of one model, applied to its outputs while a context lasts.

    `row_edits` maps sequences to edits; unset, all carry edit 0.

    Raises:
        ModelError: an edit names a site that the model does not have.
    """

    def __init__(
        self, writers: Mapping[Site, Writer], edits: Sequence[Edit], row_edits: Sequence[int] | None = None
    ) -> None:
        unknown = [site for edit in edits for site in edit.sites if site not in writers]
        if unknown:
            raise ModelError(f"The edit is for another model: this one has no {unknown[0].module} at {unknown[0]}.")
        self._writers = writers
        self._transforms = {
            site: _stack(site, writer, edits)
            for site, writer in writers.items()
            if any(edit.of(site) for edit in edits)
        }
        self._row_edits = None if row_edits is None else torch.tensor(list(row_edits))
        self._first_layers = [min((site.layer for site in edit.sites), default=_NEVER) for edit in edits]
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
    parts = [edit.of(site) for edit in edits]
    read = any(
        part.row_normalization == "full" or (n and part.row_normalization != "none")
        for own in parts
        for n, part in enumerate(own)
    )
    weight = writer.weight() if read else None
    transforms = [_transforms(site, writer, own, weight) for own in parts]
    zeros = torch.zeros(writer.rows, device=writer.device)
    nothing, stacked = OutputTransform(zeros, zeros, zeros + 1), None
    for stage in reversed(range(max(map(len, parts)))):
        own = [each[stage] if stage < len(each) else nothing for each in transforms]
        scaled = any(stage < len(some) and some[stage].row_normalization == "full" for some in parts)
        inward, outward, scale = map(torch.stack, zip(*((t.inward, t.outward, t.scale) for t in own), strict=True))
        stacked = _SiteTransforms(inward, outward, scale if scaled else None, writer.bias, stacked)
    assert stacked is not None
    return stacked


def _transforms(site: Site, writer: Writer, parts: Sequence[Edit], weight: Tensor | None) -> list[OutputTransform]:
    """Return the transform of every part of an edit at a site, each of the matrix that the parts before it leave.

    `weight` is the base model's, and is needed by row normalisation full and by later parts that normalise rows.
    """
    device, found = writer.device, []
    for number, part in enumerate(parts):
        if part.row_normalization == "none":
            norms = torch.zeros(writer.rows, device=device)
        else:
            norms = weight.norm(dim=-1) if number and weight is not None else writer.row_norms
        direction, reading = part.directions[site].to(device), part.reading(site).to(device)
        given = part.strengths[site], part.row_normalization
        found.append(output_transform(direction, *given, norms, weight, reading))
        if weight is not None and number + 1 < len(parts):
            weight = part.applied_to(site, weight)
    return found
