"""What people type, and what becomes of it: read as it stands, brought to known words, or refused."""

import json
import re
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from attention.clip_models.tiny import MOST_WARNED, TinyCLIP
from attention.editing import command
from attention.editing.edited import Change
from attention.editing.words import LONGEST_TEXT, Words, check_text, places, sayable, words_in
from attention.errors import UserError
from attention.files.published import ROOT
from attention.worlds.concepts import CONCEPTS, FACES, OTHER_WORDS, Sayings
from attention.worlds.faces import concepts as faces
from attention.worlds.registry import WORLDS, read_toml

HAIR = "of hair it knows black hair, brown hair, blonde hair, red hair, grey hair, purple hair, long hair, short hair"
LIPS = "of lips it knows red lipstick, pink lipstick, smiling"
SAME = None
# Typed -> what CLIP is given; SAME: to the letter, without a word.
READ = {
    **dict.fromkeys(("grey hair", "Grey Hair!", "hair grey", "the grey hair", "a person with very grey hair", "red lips",
                     "eyes blue", "a smiling face", "dark skin", "open mouth", "big nose", "earrings", "grey\nhair"), SAME),
    **dict.fromkeys(("blond", "blond hair", "Blonde", "fair hair", "blond-haired woman"), "blonde hair"),
    **dict.fromkeys(("ginger", "ginger hair", "redhead", "dye my hair red", "her hair should be red"), "red hair"),
    **dict.fromkeys(("gray", "gray hair", "GRAY HAIR.", "make the hair grey", "give her grey hair", "make his hair grayer",
                     "ｇｒｅｙ hair", "gr\u200bey hair"), "grey hair"),
    **dict.fromkeys(("turn his hair purple", "violet hair", "purple"), "purple hair"),
    "brunette": "brown hair", "longer hair": "long hair", "hair shorter": "short hair",
    **dict.fromkeys(("blue eye", "blue-eyed", "make her eyes blue"), "blue eyes"), "make her eyes bigger": "big eyes",
    **dict.fromkeys(("smiles", "happy", "laughing", "make him smile", "she looks happy", "grinning", "a big smile"),
                    "smiling"),
    **dict.fromkeys(("thick brows", "bushy brows", "thicker eyebrows"), "bushy eyebrows"), "thin eyebrow": "thin eyebrows",
    **dict.fromkeys(("spectacles", "add glasses", "she wears eyeglasses", "a pair of specs"), "glasses"),
    **dict.fromkeys(("tan", "tanned", "darker skin", "suntanned skin"), "tanned skin"),
    **dict.fromkeys(("pale", "pale face", "paler skin"), "pale skin"),
    **dict.fromkeys(("rosy", "blush", "rosy cheek", "flushed cheeks"), "rosy cheeks"),
    **dict.fromkeys(("fat nose", "bigger nose"), "big nose"), **dict.fromkeys(("tiny nose", "smaller nose"), "narrow nose"),
    **dict.fromkeys(("opened mouth", "parted lips"), "mouth slightly open"),
    **dict.fromkeys(("red lip", "lip colour red", "her lips are red"), "red lipstick"),
    **dict.fromkeys(("stubble", "unshaven", "bearded man", "more beard", "facial hair", "add a beard"), "beard"),
    "an earring": "earrings", "big ear": "large ears",
}
# Typed -> what CLIP is given, and a note beside "read as".
NOTED = {
    "curly grey hair": ("grey hair", "not known, and passed over: 'curly'"),
    "grey hair and a zebra": ("grey hair", "not known, and passed over: 'zebra'"),
    "purple qwertz <b>hair</b>": ("purple hair", "not known, and passed over: 'qwertz', 'b'"),
    "grey hair 💇": ("grey hair", "not known, and passed over: '💇'"),
    "long ginger hair": ("long hair and red hair", "long hair and red hair in one text come out weaker"),
    "slightly blond hair": ("blonde hair", "'slightly' changes nothing"),
    "beard " + " ".join(f"z{i}" for i in range(99)): ("beard", "'z0', 'z1', 'z2', 'z3', 'z4' and 94 words more"),
}
# Typed -> what the refusal names.
REFUSED = {
    **dict.fromkeys(("!!!", "💇", "серые волосы", "hello world", "old", "elbow", "knot"), "none of the phrases"),
    **dict.fromkeys(("moustache", "a mustache", "ginger beard", "white beard", "grey beard"), "did you mean beard?"),
    **dict.fromkeys(("purpel hair", "purpel", "pruple hair"), "did you mean purple hair?"),
    "grey hiar": "did you mean grey hair?", "glases": "did you mean glasses?",
    "dark brown hair": "without 'dark'; did you mean brown hair?",
    **dict.fromkeys(("hair", "white hair", "orange hair", "curly hair", "dark hair"), HAIR),
    **dict.fromkeys(("blue hair", "pink hair"), "which this editor was not trained on; " + HAIR),
    **dict.fromkeys(("blue lips", "bigger lips", "lip colour"), LIPS),
    "lipstick": "did you mean red lipstick or pink lipstick?",
    "closed mouth": "names mouth closed, which this editor was not trained on; of mouth it knows mouth slightly open",
    "frowning": "not trained on", "a wide face": "not trained on", "nose": "of nose it knows big nose, narrow nose",
    **dict.fromkeys(("red shirt", "a red hat", "red"), "did you mean red hair"), "purple cat": "did you mean purple hair?",
    "red hat and blonde hair": "without 'red'; did you mean blonde hair?",
    "grey hair and purpel eyes": "without 'purpel'",
    **dict.fromkeys(("turn her black hair blonde", "from black to blonde hair", "black or blonde hair", "black/blonde"),
                    "names black hair and blonde hair, of which only one can be; did you mean black hair or blonde hair?"),
    "red hair and lips": "without 'lips'; did you mean red hair?", "hair and lips red": "without 'hair'; did you mean red",
    "silver earrings": "is known only in part; did you mean earrings?",
    **dict.fromkeys(("no beard", "without glasses", "w/o glasses", "remove the glasses", "take the glasses off",
                     "get rid of it", "not smiling", "don't smile", "isn’t smiling", "unsmiling", "non-smiling",
                     "never smile", "beardless", "clean-shaven", "shaved", "no smile", "nobeard", "No hair!",
                     "fewer earrings", "grey hair but no beard", "anything but purple hair"),
                    "says that something should not be, which cannot be done"),
    **dict.fromkeys(("bald", "less hair"), "did you mean short hair?"), "not a big nose": "did you mean narrow nose?",
    "no brown eyes": "did you mean blue eyes?",
    **dict.fromkeys(("blonde hair, not grey", "not grey but blonde hair", "blonde hair instead of grey"),
                    "cannot be done; did you mean blonde hair?"),
    "keep her red hair, add glasses": "cannot be done; did you mean glasses?",
}
REFUSED_OF_REAL_FACES = {
    "black hair and brown eyes": "without 'brown', 'eyes'; did you mean black hair?", "frown": "did you mean serious?",
    "night background": "did you mean dark background?",
    **dict.fromkeys(("cover the grey hair", "conceal her beard", "a shorter beard"), "says that something should not be"),
    "thin eyebrows": "did you mean light eyebrows?", "bushy eyebrows": "did you mean dark eyebrows?",
    "a bright blue background": "names bright background and blue background, of which only one can be",
}
READ_PLACES = {
    **dict.fromkeys(("hair", "the hair", "Hair.", "the face", "around the eyes", "chin", "grey hair", "beard",
                     "hair and beard"), SAME),
    "lip": "lips", "brows": "eyebrows", "ear": "ears", "blond hair": "blonde hair", "left eye": "eyes", "blue lips": "lips",
    "mouth closed": "mouth",
}


def read(action):
    """What comes back, and what is told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        return action(), [str(note.message) for note in told]


def test_what_people_type_is_read_as_it_was_meant(editor):
    for typed, expected in READ.items():
        text, notes = read(lambda typed=typed: editor.read(typed))
        assert (text, notes) == ((typed, []) if expected is SAME else (expected, [f"read as: {expected}"])), typed
        assert text in READ or not editor.world.clip.tokenizer.unknown(text)
    for typed, (expected, note) in NOTED.items():
        text, notes = read(lambda typed=typed: editor.read(typed))
        assert text == expected and f"read as: {expected}" in notes and any(note in said for said in notes), typed
        assert all(len(said) < 200 for said in notes)


def test_what_cannot_be_done_is_refused_and_what_can_be_is_named(editor):
    for typed, named in REFUSED.items():
        with pytest.raises(UserError, match=re.escape(named)) as told:
            editor.read(typed)
        assert "docs/words.md" in str(told.value), typed
    for typed, named in REFUSED_OF_REAL_FACES.items():
        with pytest.raises(UserError, match=re.escape(named)):
            Words(faces.SAYINGS, faces.PROMPTS, taught=frozenset()).read(typed)


def test_a_place_is_read_or_the_places_are_listed(editor):
    for typed, expected in READ_PLACES.items():
        text, notes = read(lambda typed=typed: editor.read(typed, place=True))
        assert text == (typed if expected is SAME else expected) and bool(notes) == (expected is not SAME), typed
    for typed in ("elbow", "zebra", "everywhere", "not the hair", "all but the hair", "outside the hair", "!!!", "глаза"):
        with pytest.raises(UserError, match="is no place that is known; known places are hair, skin, cheeks"):
            editor.read(typed, place=True)


def test_texts_that_no_clip_can_be_given_are_refused_for_every_world():
    anything = Words(FACES, ("grey hair",))
    assert anything.read("no purpel beard 💇") == ("no purpel beard 💇", ()) == anything.read_place("no purpel beard 💇")
    for typed, named in {"": "is empty", " \n": "is empty", "\ud800": r"'\ud800'", "a\x1b[31mred": r"'\x1b'",
                         "a\0": r"'\x00'", "grey hair " * 60: f"at most {LONGEST_TEXT} characters"}.items():
        with pytest.raises(UserError, match=re.escape(named)) as told:
            check_text(typed)
        assert len(str(told.value)) < 200 and str(told.value).isprintable()
        with pytest.raises(UserError, match=re.escape(named)):
            Change(typed, "hair")
        with pytest.raises(UserError, match=re.escape(named)):
            Change("beard", typed)


def test_every_phrase_that_is_listed_is_read_as_it_stands_and_every_other_word_leads_to_a_known_one(editor):
    words = editor.words
    for place, phrases in sayable(editor.world).items():
        assert words.read_place(place) == (place, ()) and all(words.read(phrase) == (phrase, ()) for phrase in phrases)
    everything = words_in(editor.world, editor.world.clip.words, everything=True)
    texts = [text for concept in CONCEPTS for text in (concept.phrase, *concept.synonyms)]
    assert all(everything.read(text) == (text, ()) for text in texts)
    known = editor.world.clip.words | {"no"}
    assert all(set(text.split()) <= known for text in OTHER_WORDS)


def test_an_editor_of_captions_is_told_every_phrase(editor):
    words = words_in(editor.world, editor.world.clip.words, everything=True)
    assert words.read("blue hair") == ("blue hair", ())
    assert words.read("shut mouth") == ("mouth closed", ("read as: mouth closed",))
    with pytest.raises(UserError, match=re.escape("did you mean frowning?")):
        words.read("no smile")


def test_a_world_of_which_no_phrases_are_known_names_words_and_has_synonyms_of_its_own():
    words = Words(Sayings(), ("a red car", "chrome wheels"), synonyms={"red": ["crimson"], "wheels": ["rims"]},
                  taught=frozenset(("a", "the", "red", "car", "chrome", "wheels")))
    assert words.read("the red car") == ("the red car", ())
    assert words.read("the crimson car") == ("the red car", ("read as: the red car",))
    assert words.read("wheel").text == "wheels"
    assert words.read("red car, zebra") == ("red car, zebra", ("not known, and passed over: 'zebra'",))
    for typed, named in {"zebra": "did you mean a red car or chrome wheels?", "whels": "did you mean wheels?",
                         "💇": "no word", "no wheels": "cannot be done"}.items():
        with pytest.raises(UserError, match=re.escape(named)):
            words.read(typed)
    assert words.sayable == {"": ("a red car", "chrome wheels")} and places(replace(WORLDS["drawn"], words="itself"))


def test_a_toml_world_may_bring_other_words(tmp_path):
    said = 'generator = "g.pt"\nprompts = ["a red car"]\n'
    (tmp_path / "cars.toml").write_text(said + 'synonyms = { red = ["crimson", "scarlet"] }\n')
    assert read_toml(tmp_path / "cars.toml").synonyms == {"red": ["crimson", "scarlet"]}
    (tmp_path / "cars.toml").write_text(said + 'synonyms = { red = "crimson" }\n')
    with pytest.raises(UserError, match=r"cars\.toml has .* for synonyms, expected a table of lists of texts"):
        read_toml(tmp_path / "cars.toml")


# --- real edits

def test_other_words_give_the_same_pixels(editor):
    face = editor.open_seed(7)
    for typed, where, known in (("blond", None, "blonde hair"), ("gray hair", "the hair", "grey hair")):
        with pytest.warns(UserWarning, match=f"read as: {known}"):
            edit = face.edit(typed, where)
        assert np.array_equal(np.asarray(edit.image), np.asarray(face.edit(known, where).image))
        assert edit.changes[0].what == known                                # a recipe holds what was done


def test_what_is_refused_leaves_the_picture_alone(editor):
    edited = editor.open_seed(7).edit("beard")
    for arguments in (("no beard",), ("💇",), ("purpel hair",), ("beard", "elbow"), ("beard", "\ud800")):
        with pytest.raises(UserError):
            edited.edit(*arguments)
    for action in (edited.take_styles, edited.resemble):
        with pytest.raises(UserError, match="known places are"):
            action(editor.open_seed(3) if action == edited.take_styles else edited.image, "elbow")
    with pytest.raises(UserError, match="did you mean purple hair"):
        editor.grid(edited, ["purpel"], [0.1])


def test_a_recipe_is_made_again_whatever_its_texts_say(editor, tmp_path):
    """Pictures from before texts were checked."""
    edited = editor.open_seed(7).with_changes([Change("purpel", "no beard")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = editor.replay(edited.save(tmp_path / "a.png"))
    assert torch.equal(again.tensor, edited.tensor) and again.changes == edited.changes


def test_a_clip_remembers_few_of_the_words_that_it_warned_of():
    clip = TinyCLIP(("red", "hair"), dim=8, image_size=16, width=4, text_width=8, text_heads=1, text_layers=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clip.encode_text([" ".join(f"z{i}" for i in range(2 * MOST_WARNED)), "z" * 100_000])
        assert len(clip._warned) == MOST_WARNED and max(map(len, clip._warned)) < 100


# --- the command, and the documents

def test_the_command_refuses_before_it_loads_anything(tmp_path):
    program = ("import sys\nfrom attention.editing import command\nfrom attention.errors import exit_with_message\n"
               "try: exit_with_message(lambda: command.main(sys.argv[1:]))\n"
               "finally: print(sorted({'torch', 'numpy'} & set(sys.modules)))")
    refused = ["--run", "drawn", "--seed", "7", "--what", "beard", "--then", "purpel hair@hair"]
    for flags, code, told in ((refused, 2, "did you mean purple hair?"),
                              (["--help"], 0, "black hair, brown hair")):
        done = subprocess.run([sys.executable, "-c", program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == code and told in done.stdout + done.stderr and done.stdout.endswith("[]\n"), done
    for flags in (["--what", "beard", "--where", "elbow"], ["--what", "beard", "--then", "beard@elbow"]):
        with pytest.raises(UserError, match="known places are hair"):
            command.main(["--run", "drawn", "--seed", "7", "--out", str(tmp_path / "a.png"), *flags])


def test_the_list_of_what_can_be_said_is_that_of_the_code():
    page = (ROOT / "docs/words.md").read_text()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in page.splitlines() if row.startswith("|")]
    said, real = ({place: ", ".join(phrases) for place, phrases in sayable(WORLDS[world]).items()}
                  for world in ("drawn", "faces"))
    other = {known: ", ".join(others) for known, others in OTHER_WORDS.items() if not known.startswith("no ")}
    expected = [["place", "what can be said of it"], ["---", "---"], *map(list, said.items()),
                ["what is known", "other words for it"], ["---", "---"], *map(list, other.items()),
                ["place", "what can be said of it"], ["---", "---"], *map(list, real.items())]
    assert rows == expected, json.dumps(expected, indent=1)
