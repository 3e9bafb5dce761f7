"""Site: one place where a model writes to its residual stream."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Site:
    """One residual writer: a linear map whose output is added to the residual stream.

    Attributes:
        layer: index of the transformer layer, from 0.
        component: attn.o_proj or mlp.down_proj.
        module: dotted name in the model of the linear module, or of the module that keeps many experts in one tensor.
    """

    layer: int
    component: str
    module: str
