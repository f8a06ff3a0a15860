"""What can be said in a world, and how what people type is read: brought to phrases that the world knows, or refused.

A CLIP that reads any word by its letters is given every text as it is. One that was taught some words would pass over the
others, and an edit of what is left is not the one that was meant. Nothing here loads torch.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from attention.clip_models import TAUGHT, words_of
from attention.editing.clauses import CUTS, FILLERS, JOINS, NEGATIONS, PASSED, clauses_of, denies, key_of, tokens_of, wanted
from attention.errors import UserError
from attention.worlds.base import WorldEntry
from attention.worlds.concepts import Sayings
from attention.worlds.parts import SAYINGS

if TYPE_CHECKING:
    from attention.worlds.world import World

LONGEST_TEXT = 500      # characters, more than any CLIP reads
SHOWN = 40              # characters of a text that a message shows
NAMED = 5               # words or phrases that a message names
ALIKE = 0.75            # of difflib's ratio: "purpel" is 0.83 like purple, "moustache" 0.71 like mouth
LIST = "(all that can be said: docs/words.md, or where2edit edit --help)"
ENDINGS = ("s", "es", "ed", "d", "er", "r", "est", "st", "ish")


class Phrase(NamedTuple):
    """A phrase as the world knows it, the part that it changes, and what of that part."""

    text: str
    part: str
    attribute: str


class Found(NamedTuple):
    """What a text says: phrases in its order, words that belong to none, and names of parts that a clause of their own says
    nothing known of, as "lips" of "red hair and lips"."""

    phrases: list[Phrase]
    left: list[str]
    alone: tuple[str, ...] = ()


class Read(NamedTuple):
    """A text as CLIP is given it, and what the user should be told."""

    text: str
    notes: tuple[str, ...] = ()


def check_text(text: str) -> None:
    """Refuse what no CLIP can be given.

    Raises:
        UserError: the text is empty or too long, or holds control characters or half a character.
    """
    if not text.strip():
        raise UserError("the text is empty, expected words such as \"grey hair\"")
    if len(text) > LONGEST_TEXT:
        raise UserError(f"the text has {len(text):,} characters ({_quoted(text)}), expected a few words, at most "
                        f"{LONGEST_TEXT} characters")
    bad = [sign for sign in text if unicodedata.category(sign) in ("Cc", "Cs") and not sign.isspace()]
    if bad:
        raise UserError(f"the text {_quoted(text)} holds {bad[0]!r}, which is no character of a sentence; leave it out")


def sayable(world: World | WorldEntry) -> dict[str, tuple[str, ...]]:
    """Place -> the phrases that change it, as in {"hair": ("black hair", ...)}.

    Prompts of which no place is known are under "".
    """
    return words_in(world).sayable


def places(world: World | WorldEntry) -> tuple[str, ...]:
    """Names of places, the *where* texts of this world."""
    return words_in(world).places


def listed(world: World | WorldEntry) -> str:
    """What can be said, a line for each place, as --help shows it."""
    width = max(map(len, places(world)), default=0) + 2
    return "\n".join(f"    {place:{width}}{', '.join(phrases)}" for place, phrases in sayable(world).items())


def check_before_loading(texts: Sequence[str], where: Sequence[str], entry: WorldEntry | None) -> None:
    """Refuse what can be refused before a CLIP is loaded.

    Args:
        texts, where: that say what and where.
        entry: of the world, None if it is not known yet.
    Raises:
        UserError: see `check_text`, `Words.read` and `Words.read_place`.
    """
    for text in (*texts, *where):
        check_text(text)
    if entry is not None and entry.clip.kind in TAUGHT and SAYINGS[entry.words].concepts:
        words = words_in(entry, taught=frozenset())
        for text in texts:
            words.read(text)
        for text in where:
            words.read_place(text)


def words_in(world: World | WorldEntry, taught: frozenset[str] | None = None, everything: bool = False) -> Words:
    """The words of a world, of which only the description is needed; see Words."""
    entry = world if isinstance(world, WorldEntry) else world.entry
    return Words(SAYINGS.get(entry.words, Sayings()), entry.prompts, entry.places, entry.synonyms, taught, everything)


class Words:
    """What can be said in a world.

    Args:
        said: of its pictures.
        prompts: that its editor was trained on.
        where: places that it was trained on, beside those in `said`.
        synonyms: known word or phrase -> other words for it, beside those in `said`.
        taught: the words that its CLIP was taught, None if it reads any.
        everything: every phrase in `said` was trained on, as from captions.
    """

    def __init__(self, said: Sayings, prompts: Sequence[str], where: Sequence[str] = (),
                 synonyms: Mapping[str, Sequence[str]] | None = None, taught: frozenset[str] | None = None,
                 everything: bool = False):
        self.said, self.taught = said, taught
        self._phrases: dict[tuple[str, ...], Phrase] = {}
        for concept in said.concepts:
            for text in (*concept.synonyms, concept.phrase):
                self._phrases[key_of(text)] = Phrase(concept.phrase, concept.part, concept.attribute)
        for prompt in prompts:
            self._phrases.setdefault(key_of(prompt), Phrase(prompt, "", prompt))
        trained = [*(concept.phrase for concept in said.concepts if everything), *prompts]
        self._trained = {self._phrases[key_of(prompt)].text: prompt for prompt in trained}
        self.places = tuple(names[0] for names in said.places.values()) or tuple(where) or tuple(prompts)
        self._named = {key: phrase for key, phrase in self._phrases.items() if phrase.text in self._trained}
        for part, names in said.places.items():
            self._named |= {key_of(name): Phrase(name, part, part) for name in reversed(names)}
        self._nouns = {key[0]: phrase.part for key, phrase in self._named.items() if len(key) == 1 and phrase.part}
        self._rules = _rules(said.other_words) + _rules(synonyms or {})
        other_nouns = {other[0]: known[0] for other, known in self._rules if len(other) == len(known) == 1}
        self._meant = self._nouns | {other: self._nouns[noun] for other, noun in other_nouns.items() if noun in self._nouns}
        self._known = {word for key in (*self._phrases, *self._named) for word in key}
        self._known |= set() if said.concepts or taught is None else taught
        self._known |= {other[0] for other, _ in self._rules if len(other) == 1}

    @property
    def sayable(self) -> dict[str, tuple[str, ...]]:
        """Place -> phrases, see the function of this name."""
        result: dict[str, tuple[str, ...]] = {}
        for phrase in dict.fromkeys(self._phrases.values()):
            if phrase.text in self._trained:
                place = self.said.places[phrase.part][0] if phrase.part else ""
                result[place] = (*result.get(place, ()), self._trained[phrase.text])
        return result

    def read(self, text: str) -> Read:
        """A text that says what.

        Raises:
            UserError: no word of it is known; or a colour, a size or a whole phrase of it is not; or it says that something
                should not be.
        """
        if self.taught is None:
            return Read(text)
        if not self.said.concepts:
            return self._read_loosely(text, self.sayable[""])
        said = clauses_of(text)
        found = self._find(said, self._phrases)
        if (found.phrases and not self._unread(found.left) and not found.alone and self._all_trained(found)
                and not _rivals(found) and self._taught(text)):
            return Read(text, (*_degree(found), *_several(found)))
        clauses = [self._translated(clause) for clause in said]
        found = self._find(clauses, self._phrases)
        if not found.phrases:                                   # "purple, wonderful hair"
            kept = [[word for word in clause if word in NEGATIONS or self._counts(word)] for clause in clauses]
            passed = [word for clause in clauses for word in clause if word not in NEGATIONS and not self._counts(word)]
            found = self._find(kept, self._phrases)
            found.left.extend(passed)
        if any(map(denies, clauses)):
            raise _refusal(text, "says that something should not be, which cannot be done",
                           _did_you_mean(self._instead(said, clauses, found)) or "nothing that is known is its opposite")
        untrained = [phrase.text for phrase in found.phrases if phrase.text not in self._trained]
        lost = [word for word in (*self._unread(found.left), *found.alone) if self._counts(word)]
        if untrained:
            why = f"names {_named(untrained)}, which this editor was not trained on"
        elif not found.phrases:
            why = "is none of the phrases that this editor knows"
        elif lost:
            typed = [word for word in lost if word in words_of(text)]
            why = "is known only in part" + (f", and would be something else without {_shown(typed)}" if typed else "")
        elif rivals := _rivals(found):
            raise _refusal(text, f"names {_named(rivals)}, of which only one can be", _did_you_mean(rivals))
        else:
            notes = (*_degree(found), *_several(found))
            return Read(*_rewritten([phrase.text for phrase in found.phrases], self._unread(found.left), notes))
        raise _refusal(text, why, self._hint(said, clauses, found))

    def read_place(self, text: str) -> Read:
        """A text that says where: names of places, or phrases, which mean their part.

        Raises:
            UserError: it names no place that is known, or says where not.
        """
        if self.taught is None:
            return Read(text)
        if not self.said.concepts:
            return self._read_loosely(text, self.places)
        said = clauses_of(text)
        found = self._find(said, self._named)
        if found.phrases and not found.left and self._taught(text):
            return Read(text)
        clauses = [self._translated(clause) for clause in said]
        found = self._find(clauses, self._named)
        if not found.phrases or NEGATIONS.intersection(found.left) or "but" in words_of(text):
            raise UserError(f"{_quoted(text)} is no place that is known; known places are {', '.join(self.places)}")
        return Read(*_rewritten([phrase.text for phrase in found.phrases], found.left))

    def _read_loosely(self, text: str, examples: Sequence[str]) -> Read:
        """A text of a world of which no phrases are known: at least one word must be, and what is not is named."""
        assert self.taught is not None
        said = [token for token in tokens_of(text) if token not in CUTS]
        words = self._translated(said)
        unread = [word for word in words if word not in self.taught | FILLERS | JOINS]
        if NEGATIONS.intersection(unread):
            raise UserError(f"{_quoted(text)} says that something should not be, which cannot be done; say what should be")
        if not self.taught.intersection(words) - FILLERS - JOINS:
            spelled = [self._nearly(word) for word in words]
            hint = [" ".join(spelled)] if spelled != words else examples
            raise UserError(f"{_quoted(text)} holds no word that CLIP knows; did you mean {_named(hint, 'or')}?")
        if words == said:
            return Read(text, _passed_over(unread))
        return Read(*_rewritten([" ".join(word for word in words if word in self.taught)], unread))

    def _find(self, clauses: list[list[str]], table: Mapping[tuple[str, ...], Phrase]) -> Found:
        """The phrases of `table` in a text whose words are cut into clauses; "big, brown eyes" is one clause."""
        parts = [self._find_in(clause, table) for clause in clauses]
        apart = Found(list(dict.fromkeys(phrase for part in parts for phrase in part.phrases)),
                      [word for part in parts for word in part.left])
        named = {phrase.part for phrase in apart.phrases}
        alone = tuple(word for part in parts if not part.phrases for word in part.left
                      if self._nouns.get(word, "") not in ("", *named)) if apart.phrases else ()
        together = self._find_in([word for clause in clauses for word in clause], table)
        if self._unread(apart.left) and not alone and not self._unread(together.left):
            return together
        return apart._replace(alone=alone)

    def _find_in(self, clause: list[str], table: Mapping[tuple[str, ...], Phrase]) -> Found:
        """Phrases whose words stand side by side in any order, the longest first; "long blonde hair" is two."""
        found: dict[int, Phrase] = {}
        taken: set[int] = set()
        for size in range(min(len(clause), max(map(len, table), default=0)), 0, -1):
            for start in range(len(clause) - size + 1):
                window = range(start, start + size)
                key = tuple(sorted(clause[i] for i in window))
                if key in table and not taken.intersection(window):
                    found[start] = table[key]
                    taken.update(window)
        nouns = [clause[i] for i in sorted(taken) if clause[i] in self._nouns]
        for i in [*reversed(range(len(clause))), *range(len(clause))]:
            shared = [table[key] for noun in nouns if (key := tuple(sorted((clause[i], noun)))) in table]
            if shared and i not in taken and taken.intersection((i - 1, i + 1)):
                found[i] = shared[0]
                taken.add(i)
        left = [word for i, word in enumerate(clause) if i not in taken]
        return Found(list(dict.fromkeys(found[i] for i in sorted(found))), left)

    def _translated(self, clause: list[str]) -> list[str]:
        """A clause in known words, as far as there are some for it."""
        words = [known for word in self._ruled(clause) for known in self._known_forms(word)]
        return self._ruled(words)

    def _ruled(self, words: list[str]) -> list[str]:
        """Other words, in any order, replaced by known ones; by a whole phrase only where nothing else is named beside."""
        for other, known in self._rules:
            phrase = self._phrases.get(tuple(sorted(known))) if len(known) > 1 else None
            for start in range(len(words) - len(other), -1, -1):
                before, after = words[:start], words[start + len(other):]
                if sorted(words[start:start + len(other)]) != sorted(other):
                    continue
                beside = {word for word in before + after if word not in PASSED}
                if phrase is None or (not set(known) <= set(words) and beside <= self._known        # "ginger beard" is no
                                      and {self._meant.get(word) for word in beside} <= {None, phrase.part}):   # red hair
                    words = [*before, *known, *after]
        return words

    def _known_forms(self, word: str) -> list[str]:
        """An unknown word as a known one: its plural or singular, "longer" as long, "beardless" as no beard."""
        if word in self._known or word in NEGATIONS:
            return [word]
        for prefix in ("un", "non", "no"):
            if word.startswith(prefix) and word[len(prefix):] in self._known:
                return ["no", word[len(prefix):]]
        if word.endswith("less") and word[:-4] in self._known:
            return ["no", word[:-4]]
        forms = [word + "s", *(word.removesuffix(ending) for ending in ENDINGS if word.endswith(ending))]
        return [next((form for form in forms if form in self._known), word)]

    def _taught(self, text: str) -> bool:
        return self.taught is not None and all(word in self.taught for word in words_of(text))

    def _all_trained(self, found: Found) -> bool:
        return all(phrase.text in self._trained for phrase in found.phrases)

    def _unread(self, left: Sequence[str]) -> list[str]:
        """Words that say something beside the phrases; a part's name beside one does not."""
        return [word for word in left if word not in self._nouns and word not in PASSED]

    def _counts(self, word: str) -> bool:
        """Whether a text without this word is not what was meant: it is a known word or colour, or nearly one."""
        return word in self._known or word in self.said.other_colours or self._nearly(word) != word

    def _nearly(self, word: str) -> str:
        """The known word that was likely meant, or the word itself."""
        return next(iter(difflib.get_close_matches(word, sorted(self._known), 1, ALIKE)), word)

    def _instead(self, said: list[list[str]], clauses: list[list[str]], found: Found) -> list[str]:
        """What could be said instead of a text that says what should not be: what it says should be; what it chooses
        between; or the opposites of what it names."""
        kept = self._find([*filter(None, map(wanted, clauses))], self._phrases)
        for phrases in ([phrase.text for phrase in kept.phrases], _rivals(found)):
            if known := [text for text in phrases if text in self._trained]:
                return known
        opposites = [other.text for phrase in found.phrases for other in self._phrases.values()
                     if other.attribute == phrase.attribute and other not in found.phrases and other.text in self._trained]
        return list(dict.fromkeys(opposites)) if found.phrases else self._nearest(said)

    def _nearest(self, clauses: list[list[str]]) -> list[str]:
        """Phrases that the world names for what its CLIP has nothing for."""
        words = {word for clause in clauses for word in clause}
        near = self.said.nearest.items()
        return [phrase for unknown, phrase in near if set(unknown.split()) <= words and phrase in self._trained]

    def _hint(self, said: list[list[str]], clauses: list[list[str]], found: Found) -> str:
        """What could be said instead, of a text as it was typed and as it was translated."""
        if near := self._nearest(said):
            return _did_you_mean(near)
        spelled = self._find([self._translated([self._nearly(word) for word in clause]) for clause in said], self._phrases)
        for guess in ([] if self._unread(spelled.left) else [spelled]) + [found]:
            if known := [phrase.text for phrase in guess.phrases if phrase.text in self._trained]:
                return _did_you_mean([" and ".join(known)])
        words = [word for clause in clauses for word in clause]
        parts = dict.fromkeys([phrase.part for phrase in found.phrases] + [self._nouns.get(word, "") for word in words])
        of_parts = [f"of {place} it knows {', '.join(self.sayable[place])}" for part in parts
                    if part and (place := self.said.places[part][0]) in self.sayable]
        meant = {self._nearly(word) for word in words}
        near = [phrase.text for key, phrase in self._phrases.items() if meant & set(key) and phrase.text in self._trained]
        return "; ".join(of_parts[:2]) or _did_you_mean(list(dict.fromkeys(near)))


def _refusal(text: str, why: str, hint: str) -> UserError:
    return UserError(f"{_quoted(text)} {why}{'; ' if hint else ''}{hint} {LIST}")


def _rules(table: Mapping[str, Sequence[str]]) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(other words, known words), the longest first, and whole phrases before words."""
    rules = [(tuple(words_of(other)), tuple(words_of(known))) for known, others in table.items() for other in others]
    return sorted(rules, key=lambda rule: (-len(rule[0]), -len(rule[1])))


def _rivals(found: Found) -> list[str]:
    """Phrases of which a picture can have only one, if there are such."""
    attributes = [phrase.attribute for phrase in found.phrases]
    return [phrase.text for phrase in found.phrases if attributes.count(phrase.attribute) > 1]


def _degree(found: Found) -> tuple[str, ...]:
    """That "slightly", which is a word of a phrase as well, says nothing here."""
    return ("how much is said by the strength, and 'slightly' changes nothing",) if "slightly" in found.left else ()


def _several(found: Found) -> tuple[str, ...]:
    if len({phrase.attribute for phrase in found.phrases}) < 2:
        return ()
    return (f"{_named([phrase.text for phrase in found.phrases])} in one text come out weaker than in one edit after the "
            "other",)


def _rewritten(phrases: Sequence[str], unread: Sequence[str], notes: tuple[str, ...] = ()) -> tuple[str, tuple[str, ...]]:
    text = " and ".join(dict.fromkeys(phrases))
    return text, (f"read as: {text}", *_passed_over(unread), *notes)


def _passed_over(unread: Sequence[str]) -> tuple[str, ...]:
    return (f"not known, and passed over: {_shown(unread)}",) if unread else ()


def _shown(words: Sequence[str]) -> str:
    words = list(dict.fromkeys(words))
    more = f" and {len(words) - NAMED} words more" if len(words) > NAMED else ""
    return ", ".join(repr(word[:SHOWN]) for word in words[:NAMED]) + more


def _did_you_mean(texts: Sequence[str]) -> str:
    return f"did you mean {_named(texts, 'or')}?" if texts else ""


def _named(texts: Sequence[str], join: str = "and") -> str:
    """A few texts as a list in a sentence."""
    *first, last = texts[:NAMED]
    return f"{', '.join(first)} {join} {last}" if first else last


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "...")
