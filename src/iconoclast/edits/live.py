"""Edits applied live: transforms of the writers' outputs. No weight is touched, and rows of a batch may differ."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from iconoclast.edits.edit import Edit, output_transform
from iconoclast.errors import ModelError
from iconoclast.models.anatomy import Writer
from iconoclast.models.experts import OutputChange, expert_outputs
from iconoclast.models.hooks import hooks_act
from iconoclast.vocabulary import Site

_NEVER = 1_000_000
"""The first layer that an edit of nothing touches."""


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
        """`output` [rows, tokens, d] or [rows · tokens, d], with as many rows as there are transforms (or one)."""
        shape = output.shape
        if torch.is_grad_enabled():  # nothing may be overwritten that a gradient needs
            z = output.reshape(len(self.inward), -1, shape[-1]).float()
            z = z if self.bias is None else z - self.bias
            if len(self.inward) == 1:  # a product with one vector, whose gradient copies nothing
                z = z - (z @ self.inward[0])[..., None] * self.outward[0]
            else:
                z = z - (z * self.inward[:, None]).sum(-1, keepdim=True) * self.outward[:, None]
            z = z if self.scale is None else z * self.scale[:, None, :]
            z = z if self.bias is None else z + self.bias
            return z.to(output.dtype).reshape(shape)
        z = output.reshape(len(self.inward), -1, shape[-1]).to(torch.float32, copy=True)
        if self.bias is not None:
            z -= self.bias
        if z.shape[1] == 1:  # a step of decoding, for which batched products of vectors are slow
            z.addcmul_((z * self.inward[:, None]).sum(-1, keepdim=True), self.outward[:, None], value=-1)
        else:
            z.baddbmm_(z @ self.inward[:, :, None], self.outward[:, None], alpha=-1)
        if self.scale is not None:
            z *= self.scale[:, None, :]
        if self.bias is not None:
            z += self.bias
        return z.to(output.dtype).reshape(shape)

    def of_experts(self, output: Tensor, edits: Tensor, experts: Tensor) -> Tensor:
        """`output` [pairs, d], where pair i carries edit `edits[i]` and is what expert `experts[i]` writes."""
        z = output.float() if self.bias is None else output - self.bias[experts]
        read = (z * self.inward[edits, experts]).sum(-1, keepdim=True)
        z = torch.addcmul(z, read, self.outward[edits, experts], value=-1)
        if self.scale is not None:
            z = z * self.scale[edits, experts]
        if self.bias is not None:
            z = z + self.bias[experts]
        return z.to(output.dtype)


class LiveEdits:
    """Many edits of one model, applied to its outputs while a context lasts.

    It is a `RowListener`: decoding tells it which rows of the batch are left.

    Args:
        writers: the model's writers by site.
        edits: the edits.
        row_edits: which edit each sequence carries, [sequences]; unset, all carry edit 0.

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
            site: _stack(writer, [(edit, site) for edit in edits])
            for site, writer in writers.items()
            if any(site in edit.strengths for edit in edits)
        }
        self._row_edits = None if row_edits is None else torch.tensor(list(row_edits))
        self._first_layers = [min((site.layer for site in edit.strengths), default=_NEVER) for edit in edits]
        self._current: Tensor | None = None
        self._active: dict[Site, _SiteTransforms] = {}

    @contextmanager
    def applied(self, rows: Tensor | None = None) -> Iterator[None]:
        """While this lasts, row i of the batch carries the edit of sequence `rows[i]`."""
        with ExitStack() as stack:
            stack.enter_context(hooks_act())
            if self._row_edits is None or rows is None:
                self._activate(torch.zeros(1, dtype=torch.long))
            else:
                self._activate(self._row_edits[rows.cpu()])
            for site in self._transforms:
                module = self._writers[site].module
                if self._writers[site].fused:
                    stack.enter_context(expert_outputs(module, self._of_experts(site)))
                else:
                    handle = module.register_forward_hook(self._hook(site))
                    stack.callback(handle.remove)
            yield

    def keep(self, positions: Tensor) -> None:
        """Only these positions of the batch go on, in this order."""
        if self._row_edits is not None and self._current is not None:
            self._activate(self._current[positions.cpu()])

    def variant(self, row: int) -> int:
        """The edit that a sequence carries."""
        return 0 if self._row_edits is None else int(self._row_edits[row])

    def first_layer(self, row: int) -> int:
        """The first layer that the edit of a sequence touches."""
        return self._first_layers[self.variant(row)]

    def _activate(self, edits: Tensor) -> None:
        self._current = edits
        self._active = {
            site: transforms if self._writers[site].fused else transforms.of_rows(edits.to(transforms.inward.device))
            for site, transforms in self._transforms.items()
        }

    def _hook(self, site: Site) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return self._active[site](output)

        return hook

    def _of_experts(self, site: Site) -> OutputChange:
        def change(output: Tensor, tokens: Tensor, experts: Tensor, count: int) -> Tensor:
            assert self._current is not None
            edits = self._current.to(output.device)
            return self._active[site].of_experts(output, edits[tokens * len(edits) // count], experts)

        return change


def _stack(writer: Writer, edits: Sequence[tuple[Edit, Site]]) -> _SiteTransforms:
    weight: Tensor | None = None
    device, shape = writer.device, writer.rows
    inward, outward, scale = [], [], []
    for edit, site in edits:
        if site not in edit.strengths:
            zero = torch.zeros(shape, device=device)
            inward.append(zero)
            outward.append(zero)
            scale.append(zero + 1)
            continue
        direction = edit.directions[site].to(device)
        norms = torch.empty(shape, device=device) if edit.row_normalization == "none" else writer.row_norms
        if edit.row_normalization == "full" and weight is None:
            weight = writer.weight()
        transform = output_transform(direction, edit.strengths[site], edit.row_normalization, norms, weight)
        inward.append(transform.inward)
        outward.append(transform.outward)
        scale.append(transform.scale)
    scaled = any(edit.row_normalization == "full" for edit, _ in edits)
    return _SiteTransforms(
        torch.stack(inward), torch.stack(outward), torch.stack(scale) if scaled else None, writer.bias
    )
