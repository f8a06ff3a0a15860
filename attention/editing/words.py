"""What can be said in a world."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attention.worlds.base import WorldEntry
from attention.worlds.parts import SAYINGS

if TYPE_CHECKING:
    from attention.worlds.world import World


def sayable(world: World | WorldEntry) -> dict[str, tuple[str, ...]]:
    """Place -> the phrases that change it, as in {"hair": ("black hair", ...)}.

    A world of which no places are known has all its prompts under "".
    """
    entry = world if isinstance(world, WorldEntry) else world.entry
    said = SAYINGS[entry.words]
    parts = {concept.phrase: concept.part for concept in said.concepts}
    listed: dict[str, tuple[str, ...]] = {}
    for prompt in entry.prompts:
        place = said.places[parts[prompt]][0] if prompt in parts else ""
        listed[place] = (*listed.get(place, ()), prompt)
    return listed


def places(world: World | WorldEntry) -> tuple[str, ...]:
    """Names of places, the *where* texts of this world."""
    entry = world if isinstance(world, WorldEntry) else world.entry
    return tuple(names[0] for names in SAYINGS[entry.words].places.values()) or entry.places or entry.prompts
