"""What figures are drawn from: residuals layer by layer, prompts token by token."""

from typing import ClassVar, Literal

from iconoclast.documents import UNLESS_NONE, Document, Part


class ShownPrompt(Part):
    """A fit prompt, the end of a long one cut off."""

    set: Literal["target", "benign"]
    text: str


class Geometry(Document):
    """geometry.json: how the residuals of the fit prompts lie, layer by layer; see `directions.geometry`.

    Attributes:
        separation: distance of the two sets along the difference of their means, in standard deviations, cross-fitted.
        benign_variance_kept_out: share of the benign variance that lies in the benign subspace.
        points: of every shown prompt, its place at every layer; the axes are the difference of the means and the most
            variance at right angles to it.
        pca: the same in the plane of the two principal components of all fit prompts.
        pacmap: the same as PaCMAP lays them out, if that was asked for.
        prompts: the shown prompts.
    """

    what: ClassVar[str] = "geometry"
    indent: ClassVar[int | None] = None

    separation: list[float]
    benign_variance_kept_out: list[float]
    points: list[list[list[float]]]
    pca: list[list[list[float]]] | None = UNLESS_NONE
    pacmap: list[list[list[float]]] | None = UNLESS_NONE
    prompts: list[ShownPrompt]


class FirstToken(Part):
    """A token that can begin the response, and its probability before and after the edit."""

    token: str
    base: float
    edited: float


class TokenPrompt(Part):
    """A prompt token by token.

    Attributes:
        tokens: texts of its last tokens, up to where the response begins.
        base: projection of the base model's residuals on the direction, by edited layer and token, in units of their
            median length at that layer: above 0 on the side of the target prompts.
        edited: the same under the edit.
        first: the tokens that are among the likeliest ten to begin the response, before or after.
    """

    set: Literal["target", "benign"]
    text: str
    tokens: list[str]
    base: list[list[float]]
    edited: list[list[float]]
    first: list[FirstToken]


class TokenView(Document):
    """tokens.json: what a trial's edit does at every token of some report prompts; see `runs.tokens`.

    Attributes:
        layers: the edited layers; the residual stream after each is put on the direction that is edited there.
    """

    what: ClassVar[str] = "token view"
    indent: ClassVar[int | None] = None

    trial: int
    layers: list[int]
    prompts: list[TokenPrompt]
