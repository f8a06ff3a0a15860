"""How an English text is cut into words and clauses, and which words of it say nothing or deny; nothing of any world."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import takewhile

from attention.clip_models import words_of

# Words that say nothing of a face, once they are known to be no part of a phrase.
FILLERS = frozenset(words_of("""
    a an the some very really quite so just please of in on at to into for from by as that which who this it its she
    he they you i we her his their my your him them me us is are be was were being has have had having get got getting
    wearing wear wears make makes making made give gives giving gave turn turns turned turning change changes changed
    set let add adds adding put paint painted colour color coloured colored dye dyed become becomes want wants would
    should like look looks looking show person man woman boy girl lady guy male female people someone portrait photo
    picture image pair more go goes could can will all both
"""))
PASSED = frozenset(("face", "slightly", "around", "area"))        # said of nothing else, if they are no part of a phrase
CUTS = ",;.:&+/|()"
JOINS = frozenset(("and", "with", "plus", "but", "also", "then", "or"))
NEGATIONS = frozenset(words_of("""
    no not non un never none nothing nor neither without remove removes removed removing delete erase minus lose loses
    less fewer rid off away free stop stops hide hides sans lacking lacks except excluding exclude drop clear cut trim
    trimmed reduce reduced removal loss shrink gone opposite instead undo hardly barely dont doesnt didnt isnt arent
    wasnt werent hasnt havent hadnt cant cannot couldnt wont wouldnt shouldnt mustnt aint anything outside beyond than
    keep keeps keeping kept leave leaves leaving preserve preserving unchanged untouched cover covers covered covering
    conceal conceals concealed
"""))
BEFORE = frozenset(("no", "not", "never", "without", "instead", "than", "except", "excluding"))     # they deny what follows


def key_of(text: str) -> tuple[str, ...]:
    """The words of a phrase that say something, in the order of the alphabet."""
    words = words_of(text)
    return tuple(sorted([word for word in words if word not in FILLERS] or words))


def clauses_of(text: str) -> list[list[str]]:
    """The words and signs of a text, cut at its commas, "and" and the like, without fillers."""
    clauses: list[list[str]] = [[]]
    for token in tokens_of(text):
        if token in JOINS or token in CUTS:
            clauses.append([])
        elif token not in FILLERS:
            clauses[-1].append(token)
    return [clause for clause in clauses if clause]


def tokens_of(text: str) -> list[str]:
    """The words of a text, its signs such as emoji, and CUTS."""
    text = "".join(sign for sign in unicodedata.normalize("NFKC", text) if unicodedata.category(sign) != "Cf")
    text = re.sub(r"['’]", "", re.sub(r"\bw/o\b", "without", text.lower()))
    return [token for token in re.findall(r"[^\W_]+|[^\w\s]", text)
            if token in CUTS or token.isalnum() or (unicodedata.category(token)[0] == "S" and not token.isascii())]


def denies(clause: Sequence[str]) -> bool:
    return not NEGATIONS.isdisjoint(clause)


def wanted(clause: Sequence[str]) -> list[str]:
    """What a clause says should be: all of it, or what stands before the word that denies what follows."""
    words = list(takewhile(lambda word: word not in BEFORE, clause))
    return [] if denies(words) else words
