"""The web page in a real browser: Chromium, headless. Screenshots are kept in runs/screenshots."""

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
import torch.nn.functional as F
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from attention.editing import page as command
from attention.editing.history import USUAL
from attention.errors import UserError
from attention.files.published import ROOT
from attention.images import to_pixels
from attention.method.defaults import STRONGEST
from attention.worlds.drawn import photos

pytestmark = pytest.mark.program
SCREENSHOTS = ROOT / "runs/screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]
REACH = 4           # px beyond the mask that the two layers after the blend can touch


@pytest.fixture(scope="module")
def served(desk):
    from attention.editing.widgets import build, serve  # noqa: PLC0415  (gradio takes 4 s, in each process that collects)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_TEMP_DIR", "")                             # which the page sets for good
        page = build(desk)
        serve(page, desk, quiet=True, server_port=free_port())
        yield page
        page.close()


@pytest.fixture(scope="module")
def browser():
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        yield Browser(playwright.chromium.launch(executable_path=chromium, args=FLAGS))


@pytest.fixture
def guest(browser, served):
    """Somebody who has just opened the page."""
    yield (opened := User(browser, served.local_url))
    opened.close()


@pytest.fixture(scope="module")
def regular(browser, served):
    yield (opened := User(browser, served.local_url))
    opened.close()


@pytest.fixture
def user(regular):
    """Somebody who has begun anew on a page that was open: to load it takes seconds."""
    regular.begins_anew()
    return regular


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class Browser:
    """Pages of one size share gradio's scripts, which take a second to load."""

    def __init__(self, chromium):
        self.chromium, self.contexts = chromium, {}

    def new_page(self, *size):
        if size not in self.contexts:
            self.contexts[size] = self.chromium.new_context(viewport=dict(zip(("width", "height"), size, strict=True)))
        return self.contexts[size].new_page()


class User:
    """Somebody with a page of their own open."""

    def __init__(self, browser, url, width=1400, height=1000):
        self.page = browser.new_page(width, height)
        self.page.set_default_timeout(15_000)
        self.page.goto(url)
        self.sees("seed 21")

    def close(self):
        self.page.close()

    def begins_anew(self):
        self.page.get_by_role("tab", name="Edited").click()
        self.page.get_by_role("tab", name="A face").click()
        for field, words in (("what", ""), ("where", "")):
            self.types(field, words)
        for seed in ("22", "21"):                                             # another one first, which can be waited for
            self.types("seed", seed)
            self.page.locator("#seed input").press("Enter")
            self.sees(f"seed {seed}, unedited")

    def sees(self, words):
        """Wait until the place for notes has these words."""
        self.page.wait_for_function("words => document.querySelector('#told')?.innerText.includes(words)", arg=words)

    def types(self, field, words):
        self.page.locator(f"#{field} textarea, #{field} input").first.fill(words)

    def value(self, field):
        return self.page.locator(f"#{field} textarea, #{field} input").first.input_value()

    def clicks(self, name):
        self.page.locator(f"#{name}").click()

    def edits(self, what, where=""):
        self.types("what", what)
        self.types("where", where)
        self.clicks("edit")
        self.sees(what)

    def slides(self, name, value):
        move = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})) }"
        self.page.locator(f"#{name} input[type=range]").evaluate(move, str(value))

    def clicks_region(self, x, y):
        """Click the picture of regions at x and y from 0 to 1."""
        self.page.wait_for_function("() => document.querySelector('#regions img')?.naturalWidth")      # it has arrived
        box = self.page.locator("#regions img").bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])

    def picture(self, name, number=0):
        """(H, W, 3) uint8 that an image shows."""
        address = self.page.locator(f"#{name} img").nth(number).get_attribute("src")
        # A connection that the server kept open may be closed just when it is used again.
        return np.asarray(Image.open(io.BytesIO(self.page.request.get(address, max_retries=3).body())).convert("RGB"))

    def waits_for_another(self, name, picture):
        """Wait until an image shows something else."""
        for _ in range(100):
            if not np.array_equal(self.picture(name), picture):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"{name} stayed the same")

    def uploads(self, field, path):
        with self.page.expect_response(lambda answer: "/upload" in answer.url):
            self.page.locator(f"#{field} input[type=file]").set_input_files(path)
        expect(self.page.locator(f"#{field}")).to_contain_text(path.suffix)

    def steps(self):
        """What the history says, a step a line; the one that is shown is marked."""
        return self.page.locator("#history .caption-label").all_inner_texts()

    def screenshot(self, name, full_page=True):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(300)                                       # until pictures have loaded
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=full_page)


def pixels(edited):
    return to_pixels(edited.tensor)[0]


def near(mask, size):
    """(size, size) bool: within REACH px of a mask (1, 1, h, h) above 0."""
    grown = F.max_pool2d(F.interpolate((mask > 0).float(), size=(size, size)), 2 * REACH + 1, stride=1, padding=REACH)
    return grown[0, 0].numpy() > 0


def test_a_typed_change_appears_inside_of_its_mask_and_nowhere_else(user, editor):
    before = user.picture("edited")
    user.edits("purple hair")
    after, expected = user.picture("edited"), editor.open_seed(21).edit("purple hair")
    changed = (before != after).any(axis=2)
    assert np.array_equal(after, pixels(expected)) and np.array_equal(before, pixels(editor.open_seed(21)))
    assert changed.mean() > 0.05 and not changed[~near(expected.mask, len(before))].any()
    user.edits("red lipstick", "lips")
    assert np.array_equal(user.picture("edited"), pixels(expected.edit("red lipstick", "lips")))
    user.screenshot("edited")


def test_a_clicked_region_is_where_the_next_edit_goes(user, editor):
    source = editor.open_seed(21)
    side = len(source.regions)
    chosen = int(source.regions[int(0.3 * side), side // 2])
    before = user.picture("regions")
    user.clicks_region(0.5, 0.3)
    user.page.wait_for_function("() => document.querySelector('#where textarea, #where input').value")
    assert user.value("where") == f"regions {chosen}"
    shown = user.picture("regions")
    scale = shown.shape[0] // side
    marked = (before != shown).any(axis=2)[scale // 2::scale, scale // 2::scale]
    assert np.array_equal(marked, (source.regions == chosen).numpy())
    user.types("what", "black hair")
    user.clicks("edit")
    user.sees("black hair @ regions")
    expected = editor.open_seed(21).edit("black hair", regions=[chosen])
    assert np.array_equal(user.picture("edited"), pixels(expected))
    user.screenshot("region")
    # Words typed over the chosen regions take their place.
    user.edits("pale skin", "skin")
    assert np.array_equal(user.picture("edited"), pixels(expected.edit("pale skin", "skin")))


def test_sliders_move_the_last_change_and_undo_takes_it_back(user, editor):
    user.edits("grey hair", "hair")
    user.edits("beard")
    user.slides("strength", 0.12)
    user.sees("beard, strength 0.12, coverage 0.8")
    expected = editor.open_seed(21).edit("grey hair", "hair").edit("beard", strength=0.12)
    assert np.array_equal(user.picture("edited"), pixels(expected))
    user.slides("coverage", 0.3)
    user.sees("coverage 0.3")
    assert np.array_equal(user.picture("edited"), pixels(expected.retouch(0.12, 0.3)))
    user.clicks("undo")
    user.sees("step 1 of 2: grey hair @ hair, strength 0.1")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("grey hair", "hair")))
    assert float(user.page.locator("#strength input[type=range]").input_value()) == pytest.approx(0.1)
    user.clicks("redo")
    user.sees("step 2 of 2: beard, strength 0.12, coverage 0.3")
    assert np.array_equal(user.picture("edited"), pixels(expected.retouch(0.12, 0.3)))
    user.clicks("redo")
    user.sees("nothing to do again")
    user.clicks("over")
    user.sees("seed 21, unedited")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21))) and len(user.steps()) == 1


def test_a_slider_s_last_move_that_undo_overtook_changes_no_other_step(user, editor, desk, monkeypatch):
    user.edits("grey hair", "hair")
    user.edits("beard")
    slide = desk.slide
    monkeypatch.setattr(desk, "slide", lambda *how: (time.sleep(0.5), slide(*how))[1])
    user.slides("strength", 0.12)
    user.slides("strength", 0.05)                                             # asked for when the first is done
    user.clicks("undo")
    user.sees("step 1 of 2: grey hair @ hair, strength 0.1")
    user.page.wait_for_timeout(1500)
    assert len(user.steps()) == 3
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("grey hair", "hair")))


def test_a_step_of_the_history_is_gone_to_by_a_click_and_the_fields_say_what_it_was(user, editor):
    user.edits("grey hair", "hair")
    user.edits("beard")
    user.page.locator("#history .thumbnail-lg").nth(1).click()
    user.sees("step 1 of 2: grey hair @ hair")
    assert (user.value("what"), user.value("where")) == ("grey hair", "hair")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("grey hair", "hair")))
    user.edits("glasses")                                                     # what was undone gives way
    assert [step.split(" ", 1)[-1] for step in user.steps()] == ["unedited", "hair @ hair", "glasses"]


def test_a_reload_keeps_the_work(user, editor):
    user.edits("grey hair", "hair")
    user.clicks_region(0.5, 0.3)
    user.page.wait_for_function("() => document.querySelector('#where textarea, #where input').value.startsWith('regions')")
    user.types("what", "pale skin")
    user.clicks("edit")
    user.sees("pale skin @ regions")
    before, told = user.picture("edited"), user.value("where")
    user.page.reload()
    user.sees("step 2 of 2: pale skin @ regions")
    assert np.array_equal(user.picture("edited"), before) and user.value("where") == told
    user.page.goto(user.page.url.split("?")[0] + "?seed=5&edit=[1e999,2]&edit=%ff")
    user.sees("cannot be followed from edit 1 on")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(5)))
    user.page.goto(user.page.url.split("?")[0] + "?seed=../../etc&seed=1")
    user.sees("the page begins anew")
    user.edits("beard")


def test_an_edit_that_does_nothing_says_why_and_is_no_step(user):
    user.slides("strength", 0)
    user.page.wait_for_timeout(300)
    user.types("what", "purple hair")
    user.clicks("edit")
    user.sees("nothing changed: the strength is 0")
    assert len(user.steps()) == 1


def test_the_slider_ends_where_faces_look_right_unless_more_is_asked_for(user, editor):
    ends = user.page.locator("#strength input[type=range]")
    user.edits("purple hair")
    assert float(ends.get_attribute("max")) == USUAL
    user.page.locator("#stronger input").check()
    expect(ends).to_have_attribute("max", str(STRONGEST))
    user.slides("strength", STRONGEST)
    user.sees("strength 0.3")
    user.page.locator("#stronger input").uncheck()
    user.sees("strength 0.15")
    user.page.wait_for_timeout(500)                                           # the slider has rested since it was moved
    assert not user.page.locator(".toast-body").count()
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("purple hair", strength=USUAL)))


def test_what_can_be_said_is_shown_and_a_click_fills_it_in(user):
    user.types("where", "eyes")
    user.page.locator("#chips button", has_text="red lipstick").click()
    assert (user.value("what"), user.value("where")) == ("red lipstick", "")
    user.clicks("edit")
    user.sees("red lipstick, strength")


@pytest.mark.parametrize("size", [(390, 844), (1400, 1000)], ids=["phone", "desk"])
def test_the_picture_its_notes_and_what_changes_it_are_on_the_first_screen(browser, served, size):
    user = User(browser, served.local_url, *size)
    user.page.locator("#examples .thumbnail-lg").nth(2).click()               # screens below on a phone
    user.sees("smiling @ mouth")
    user.edits("purple hair", "hair")
    user.page.wait_for_function("() => scrollY == 0")
    for name in ("edited img", "told", "what", "where", "edit", "strength", "coverage", "undo"):
        box = user.page.locator(f"#{name}").first.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= size[1], (name, box)
        assert box["x"] >= 0 and box["x"] + box["width"] <= size[0], (name, box)
    assert user.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    tops = [user.page.locator(f"#{name}").bounding_box()["y"] for name in ("edited", "told", "edit")]
    user.types("what", "qwertz " * 40)                                        # a long note moves nothing
    user.clicks("edit")
    user.page.wait_for_function("() => !document.querySelector('#told').innerText.includes('step 2')")
    assert tops == [user.page.locator(f"#{name}").bounding_box()["y"] for name in ("edited", "told", "edit")]
    user.screenshot(f"first_screen_{size[0]}", full_page=False)
    user.close()


def test_a_broken_upload_is_told_in_one_sentence_and_changes_nothing(guest, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    before = guest.picture("edited")
    guest.page.get_by_role("tab", name="Your photo").click()
    guest.uploads("photo", tmp_path / "broken.png")
    guest.page.locator("#framed input").check()
    guest.clicks("show")
    guest.sees("broken.png cannot be read as a picture")
    assert "/tmp" not in guest.page.locator("#told").inner_text() and not guest.page.locator(".toast-body, .error").count()
    guest.screenshot("broken")
    assert np.array_equal(guest.picture("edited"), before)
    guest.edits("purple hair")                                                 # the page goes on working


def test_an_empty_prompt_and_unknown_words_are_told(user):
    user.clicks("edit")
    user.sees("the text is empty")
    for _ in range(2):                                                         # each time, not only the first
        user.types("what", "purple qwertz <b>hair</b>")
        user.clicks("edit")
        user.sees("'qwertz'")
        assert user.value("what") == "purple hair"                             # what was done, as the note says too
        user.clicks("over")
        user.sees("seed 21, unedited")


def test_two_users_at_once_do_not_see_each_others_edits(user, browser, served, editor):
    other = User(browser, served.local_url)
    user.edits("purple hair")
    other.edits("beard")
    user.edits("red lipstick", "lips")
    assert np.array_equal(other.picture("edited"), pixels(editor.open_seed(21).edit("beard")))
    expected = editor.open_seed(21).edit("purple hair").edit("red lipstick", "lips")
    assert np.array_equal(user.picture("edited"), pixels(expected))
    other.close()


def test_a_page_whose_picture_was_let_go_says_so_and_can_begin_again(user, served):
    user.edits("purple hair")
    served.state_holder.session_data.clear()                                   # what an hour of silence does
    user.types("what", "beard")
    user.clicks("edit")
    user.sees("its picture is gone; reload it")
    user.types("seed", "5")
    user.page.locator("#seed input").press("Enter")
    user.sees("seed 5")
    user.edits("beard")


def test_the_download_is_the_picture_and_can_be_made_again(user, editor, tmp_path):
    user.edits("blue eyes", "eyes")
    with user.page.expect_download() as download:
        user.clicks("save")
    download.value.save_as(tmp_path / "edited.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "edited.png")), user.picture("edited"))
    assert torch.equal(editor.replay(tmp_path / "edited.png").tensor, editor.open_seed(21).edit("blue eyes", "eyes").tensor)


def test_a_photo_with_landmarks_is_edited_in_place(guest, editor, tmp_path):
    photos.main(["--seed", "5", "--out", str(tmp_path / "photo.png")])
    photo = Image.open(tmp_path / "photo.png")
    guest.page.get_by_role("tab", name="Your photo").click()
    guest.uploads("photo", tmp_path / "photo.png")
    guest.page.get_by_text("If it is not framed").click()
    guest.uploads("landmarks", tmp_path / "photo.json")
    guest.clicks("show")
    guest.sees("the photo, inverted to")
    guest.edits("purple hair")
    guest.page.get_by_role("tab", name="Compare").click()
    before, after = guest.picture("compare", 0), guest.picture("compare", 1)
    expected = editor.open_photo(tmp_path / "photo.png", tmp_path / "photo.json").edit("purple hair")
    both = {part.tobytes() for part in (before, after)}
    assert both == {np.asarray(photo).tobytes(), np.asarray(expected.image).tobytes()}
    guest.screenshot("photo")


def test_a_tall_photo_leaves_room_for_its_notes_on_the_first_screen(guest, tmp_path):
    photos.main(["--seed", "5", "--out", str(tmp_path / "photo.png")])
    photo = np.asarray(Image.open(tmp_path / "photo.png"))
    Image.fromarray(np.pad(photo, ((0, 3 * len(photo)), (0, 0), (0, 0)), mode="edge")).save(tmp_path / "tall.png")
    guest.page.get_by_role("tab", name="Your photo").click()
    guest.uploads("photo", tmp_path / "tall.png")
    guest.page.get_by_text("If it is not framed").click()
    guest.uploads("landmarks", tmp_path / "photo.json")
    guest.clicks("show")
    guest.sees("the photo, inverted to")
    guest.page.wait_for_function("() => document.querySelector('#edited img').naturalHeight > 1000")
    told = guest.page.locator("#told").bounding_box()
    assert guest.page.locator("#edited").bounding_box()["height"] < told["y"] < 1000 - told["height"]


def test_a_region_takes_the_style_of_an_uploaded_face(guest, editor, tmp_path):
    Image.fromarray(pixels(editor.open_seed(3))).save(tmp_path / "other.png")
    guest.page.get_by_role("tab", name="Like a picture").click()
    guest.uploads("reference", tmp_path / "other.png")
    guest.types("where", "hair")
    guest.page.locator("#exact input").check()
    guest.clicks("like")
    guest.sees("like the other picture @ hair")
    assert guest.value("what") == "" and guest.value("where") == "hair"         # as the note says
    face = editor.open_photo(tmp_path / "other.png", aligned=True)
    assert np.array_equal(guest.picture("edited"), pixels(editor.open_seed(21).take_styles(face, "hair")))
    guest.screenshot("style")


def test_an_edit_made_while_a_slow_one_runs_is_kept(guest, editor, desk, monkeypatch, tmp_path):
    Image.fromarray(pixels(editor.open_seed(3))).save(tmp_path / "other.png")
    face, asked, done = editor.open_photo(tmp_path / "other.png", aligned=True), threading.Event(), threading.Event()

    def slowly(*_, **__):
        asked.set()
        assert done.wait(15)
        return face

    monkeypatch.setattr(desk.editor, "open_photo", slowly)
    guest.page.get_by_role("tab", name="Like a picture").click()
    guest.uploads("reference", tmp_path / "other.png")
    guest.types("where", "hair")
    guest.page.locator("#exact input").check()
    guest.clicks("like")
    assert asked.wait(15)
    guest.edits("beard")
    done.set()
    guest.sees("step 2 of 2: like the other picture @ hair")
    assert "strength" not in guest.page.locator("#told").inner_text()          # very styles have none
    expected = editor.open_seed(21).edit("beard").take_styles(face, "hair")
    assert np.array_equal(guest.picture("edited"), pixels(expected)) and len(guest.steps()) == 3


def test_an_example_opens_with_its_edit(user, editor):
    for number in (1, 2):
        seed, what, where = editor.world.examples[number]
        user.page.locator("#examples .thumbnail-lg").nth(number).click()
        user.sees(f"seed {seed}: {what} @ {where}, strength 0.1" if where else f"seed {seed}: {what}, strength 0.1")
        assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(seed).edit(what, where or None)))
        assert (user.value("seed"), user.value("what"), user.value("where")) == (str(seed), what, where)


def test_emptying_where_gives_chosen_regions_back(user, editor):
    user.clicks_region(0.5, 0.3)
    user.page.wait_for_function("() => document.querySelector('#where textarea, #where input').value")
    marked = user.picture("regions")
    user.types("where", "")
    user.waits_for_another("regions", marked)
    user.edits("purple hair")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("purple hair")))


def test_a_photo_whose_face_cannot_be_found_is_told_in_one_place_and_changes_nothing(guest, desk, tmp_path):
    needs = desk.photo_needs()
    if not needs:
        pytest.skip("the detector and its weights are here")
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    before = guest.picture("edited")
    guest.page.get_by_role("tab", name="Your photo").click()
    expect(guest.page.locator("#needs")).to_contain_text(needs[:60])            # before anything is uploaded
    guest.uploads("photo", tmp_path / "photo.png")
    guest.clicks("show")
    guest.sees("the face in the photo was not searched")
    assert not guest.page.locator(".toast-body, .error").count() and np.array_equal(guest.picture("edited"), before)
    guest.screenshot("needs")


def test_wrong_data_of_an_event_is_refused_in_a_sentence(served, user):
    number = {served.blocks[widget].elem_id: key for key, function in served.fns.items() if function.fn is not None
              for widget, event in function.targets if widget in served.blocks and event in ("click", "submit", "select")}
    edit = {"fn_index": number["edit"], "session_hash": "abc", "data": [None, "beard", "", 0.1, 0.8]}
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    photo = {**edit, "fn_index": number["show"], "data": [None, file, True, None, 0, 0]}
    wrong = [
        [], {}, {**edit, "fn_index": 10**6}, {**edit, "fn_index": "0"}, {**edit, "data": None}, {**edit, "data": []},
        {**edit, "session_hash": {}}, {**edit, "session_hash": "../x"},
        *({**edit, "data": [None, text, "", 0.1, 0.8]} 
          for text in (7, ["beard"], {}, "a" * 301, "b\ud800", "a\0b", "\x1b[2J")),
        *({**edit, "data": [None, "beard", "", strength, 0.8]} for strength in ("0.1", None, -1, 2, [], True, 10**400)),
        {**edit, "data": [{"edited": 1}, "beard", "", 0.1, 0.8]},
        *({**edit, "fn_index": number["seed"], "data": [None, seed]} for seed in ("7", [7], {}, 10**400)),
        *({**edit, "fn_index": number["history"], "data": [None], "event_data": clicked}
          for clicked in (None, {}, *({"index": index, "value": 0} for index in ("1", [0, -1], 10**9, [[1]])))),
        photo, {**photo, "data": [None, "/etc/passwd", True, None, 0, 0]},
        {**photo, "data": [None, {**file, "path": "http://127.0.0.1/x.png"}, True, None, 0, 0]}]
    at = f"{served.local_url}gradio_api/queue/join"
    for event in wrong:
        answer = requests.post(at, data=json.dumps(event), timeout=30)
        assert answer.status_code == 400 and answer.json()["detail"].count(" ") > 2, (event, answer.text)
        assert "Error" not in answer.text, answer.text
    assert requests.post(at, data=b"{", timeout=30).status_code == 400
    assert requests.post(at, data=json.dumps({**edit, "data": ["a" * 4_700_000]}), timeout=30).status_code == 413
    assert requests.post(f"{served.local_url}gradio_api/run/predict", json=edit, timeout=30).status_code == 404
    assert requests.post(at, json=edit, timeout=30).status_code == 200
    user.edits("beard")                                                       # nobody else has noticed anything


def test_a_slow_photo_keeps_nobody_from_editing(user, browser, served, tmp_path):
    Image.new("RGB", (1000, 1000), (200, 150, 120)).save(tmp_path / "large.png")
    other = User(browser, served.local_url)
    other.page.get_by_role("tab", name="Your photo").click()
    other.uploads("photo", tmp_path / "large.png")
    other.page.locator("#framed input").check()
    other.slides("refine", 40)
    other.clicks("show")
    user.edits("beard")
    assert "inverted to" not in other.page.locator("#told").inner_text()
    other.sees("the photo, inverted to")
    other.close()


def test_a_server_that_cannot_write_says_so_and_goes_on(user, desk):
    moved = desk.folder.pictures.rename(desk.folder.path / "moved")
    user.types("what", "beard")
    user.clicks("edit")
    user.sees("the server cannot keep or find a picture (No such file or directory)")
    moved.rename(desk.folder.pictures)
    user.edits("beard")


@pytest.mark.slow
def test_sigterm_ends_a_server_behind_a_proxy_and_takes_all_uploads_along(tmp_path):
    (tmp_path / "gradio").touch()                                             # gradio's own place is not ours to use
    port = free_port()
    nowhere = f"http://127.0.0.1:{free_port()}"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HTTP_PROXY": nowhere, "http_proxy": nowhere}
    server = subprocess.Popen([sys.executable, "-m", "attention", "demo", "--port", str(port), "--device", "cpu"], cwd=ROOT,
                              env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert f"http://127.0.0.1:{port}/ is ready" in server.stdout.readline()
        sent = requests.post(f"http://127.0.0.1:{port}/gradio_api/upload", files={"files": ("a.png", b"mine")}, timeout=30)
        assert Path(sent.json()[0]).read_bytes() == b"mine"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM
    assert [file.name for file in tmp_path.iterdir()] == ["gradio"]


def test_more_than_the_limit_is_not_taken_in(served):
    files = {"files": ("large.png", bytes(21 * 2**20))}
    answer = requests.post(f"{served.local_url}gradio_api/upload", files=files, timeout=30)
    assert answer.status_code == 413


def test_a_seed_that_is_none_is_told_with_the_one_largest_seed(user):
    for typed, told in (("1.5", "the seed is 1.5"), ("", "the seed is empty"), ("-1", "the seed is -1"),
                        ("1e300", "the seed is 1"), (str(2**53), f"the seed is {2**53}")):
        user.types("seed", typed)
        user.page.locator("#seed input").press("Enter")
        user.sees(told)
        user.sees("expected a whole number from 0 to 9,007,199,254,740,991")


def test_a_place_that_cannot_be_served_is_named():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        port = place.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is taken .*Try another --port"):
            command.main(["--port", str(port), "--device", "cpu"])
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1 is no address of this machine"):
        command.main(["--host", "192.0.2.1", "--device", "cpu"])
