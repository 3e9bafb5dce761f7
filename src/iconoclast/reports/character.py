"""The character of an edited model's responses, in lines of text."""

from collections.abc import Iterator

from iconoclast.audit.behavior import Beside, Character, NamedSet, Stance, Trait
from iconoclast.errors import one_line

LONGEST = 160
"""Letters shown of a response."""

CHANCE = 0.05
"""Probability that some difference is shown where there is none, over all of one kind."""


def character_lines(character: Character) -> Iterator[str]:
    """Yield what differs by more than chance, kinds of prompts by how much they moved, and examples."""
    for kind in character.kinds:
        yield f"{kind.name} prompts: {kind.other_label} responses have another label, {kind.other_text} another text."
    yield from map(_named_set, character.sets)
    different = [t for t in character.traits if differs(t, len(character.traits))]
    yield from map(_trait, different)
    yield f"{len(character.traits) - len(different)} of {len(character.traits)} measures of character do not differ by more than chance."
    if character.stances is not None and character.first_named is not None:
        opinions = [*character.stances, character.first_named]
        changed = [s for s in opinions if differs(s, len(opinions))]
        yield from map(_stance, changed)
        yield f"{len(opinions) - len(changed)} of {len(opinions)} preferences in either/or questions do not differ by more than chance."
    for row in character.moved:
        yield from _example(row)


def differs(each: Trait | Stance, among: int) -> bool:
    """Check that a difference is beyond chance, over all `among` measures of one kind together."""
    return each.difference.p_value < CHANCE / among


def _named_set(each: NamedSet) -> str:
    before, after = each.base["refusal"], each.edited["refusal"]
    return (
        f"{each.kind.capitalize()} in {each.source}: {before.with_interval} before, {after.with_interval} after (p = "
        f"{each.refusals.p_value:.2g}, exact McNemar test), broken {each.base['broken']} before, {each.edited['broken']} after."
    )


def _trait(trait: Trait) -> str:
    what = trait.measure.replace("_", " ")
    return f"{trait.set} prompts, {what}: {trait.base:.2f} before, {trait.edited:.2f} after ({_difference(trait)})."


def _stance(stance: Stance) -> str:
    said = f"Preference for {stance.first} over {stance.second}: {stance.base:.2f} before, {stance.edited:.2f} after"
    return f"{said} ({_difference(stance)})."


def _difference(each: Trait | Stance) -> str:
    low, high = each.difference.interval
    return f"{each.difference.value:+.2f}, {low:+.2f} to {high:+.2f}"


def _example(row: Beside) -> Iterator[str]:
    divergence = "" if row.token_kl is None else f", KL {row.token_kl:.3f}"
    yield f"Moved ({row.set}{divergence}): {one_line(row.prompt, LONGEST)}"
    for name, side in (("before", row.base), ("after", row.edited)):
        yield f"  {name} ({side.label.replace('_', ' ')}): {one_line(side.response, LONGEST)}"
