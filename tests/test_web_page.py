"""The web page in a real browser: Chromium, headless. Screenshots are kept in runs/screenshots."""

import io
import json
import shutil
import socket

import numpy as np
import pytest
import requests
import torch
import torch.nn.functional as F
from PIL import Image
from playwright.sync_api import expect, sync_playwright

import attention
from attention.editing import page as command
from attention.editing.desk import GALLERY, Desk, compared
from attention.editing.widgets import build, serve
from attention.errors import UserError
from attention.files.published import ROOT
from attention.images import to_pixels
from attention.worlds.drawn import photos
from attention.worlds.drawn.faces import FaceParams
from attention.worlds.drawn.photos import FRAME, draw_photo

SCREENSHOTS = ROOT / "runs/screenshots"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--no-first-run"]
REACH = 4           # px beyond the mask that the two layers after the blend can touch


@pytest.fixture(scope="module")
def editor():
    return attention.load_editor("drawn", device="cpu")


@pytest.fixture(scope="module")
def served(editor):
    page = build(Desk(editor))
    serve(page, prevent_thread_lock=True, quiet=True, server_port=free_port())
    yield page
    page.close()


@pytest.fixture(scope="module")
def browser():
    if (chromium := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium, args=FLAGS)


@pytest.fixture
def user(browser, served):
    yield (opened := User(browser, served.local_url))
    opened.close()


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class User:
    """Somebody with the page open in a browser of their own."""

    def __init__(self, browser, url):
        self.context = browser.new_context(viewport={"width": 1400, "height": 1000})
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.goto(url)
        self.sees("seed 21")

    def close(self):
        self.context.close()

    def sees(self, words):
        """Wait until the line about the last edit has these words."""
        self.page.wait_for_function("words => document.querySelector('#told textarea')?.value.includes(words)", arg=words)

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
        return np.asarray(Image.open(io.BytesIO(self.page.request.get(address).body())).convert("RGB"))

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

    def screenshot(self, name):
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(300)                                       # until pictures have loaded
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


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
    user.slides("strength", 0.2)
    user.sees("beard @ beard, 0.2")
    expected = editor.open_seed(21).edit("grey hair", "hair").edit("beard", strength=0.2)
    assert np.array_equal(user.picture("edited"), pixels(expected))
    user.slides("coverage", 0.3)
    expected = expected.retouch(0.2, 0.3)
    user.page.wait_for_function("() => document.querySelectorAll('#history img').length == 3")
    user.page.wait_for_timeout(500)
    assert np.array_equal(user.picture("edited"), pixels(expected))
    user.clicks("undo")
    user.page.wait_for_function("() => document.querySelectorAll('#history img').length == 2")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("grey hair", "hair")))
    assert float(user.page.locator("#strength input[type=range]").input_value()) == pytest.approx(0.1)
    user.clicks("over")
    user.page.wait_for_function("() => document.querySelectorAll('#history img').length == 1")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21)))


def test_a_broken_upload_is_told_in_one_sentence_and_changes_nothing(user, tmp_path):
    (tmp_path / "broken.png").write_text("no picture")
    before = user.picture("edited")
    user.page.get_by_role("tab", name="Your photo").click()
    user.uploads("photo", tmp_path / "broken.png")
    user.clicks("show")
    toast = user.page.locator(".toast-body")
    expect(toast).to_contain_text("broken.png cannot be read as a picture")
    assert "/tmp" not in toast.inner_text() and "Traceback" not in toast.inner_text()
    user.screenshot("broken")
    assert np.array_equal(user.picture("edited"), before)
    user.edits("purple hair")                                                 # the page goes on working


def test_an_empty_prompt_and_unknown_words_are_told(user):
    user.clicks("edit")
    expect(user.page.locator(".toast-body")).to_contain_text("the text is empty")
    for _ in range(2):                                                         # each time, not only the first
        user.types("what", "purple qwertz <b>hair</b>")
        user.clicks("edit")
        user.sees("'qwertz'")
        user.clicks("over")
        user.sees("seed 21 (")


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
    expect(user.page.locator(".toast-body")).to_contain_text("choose a face again")
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


def test_a_photo_with_landmarks_is_edited_in_place(user, editor, tmp_path):
    photos.main(["--seed", "5", "--out", str(tmp_path / "photo.png")])
    photo = Image.open(tmp_path / "photo.png")
    user.page.get_by_role("tab", name="Your photo").click()
    user.uploads("photo", tmp_path / "photo.png")
    user.page.get_by_text("If it is not framed").click()
    user.uploads("landmarks", tmp_path / "photo.json")
    user.clicks("show")
    user.sees("the photo, inverted to")
    user.edits("purple hair")
    before, after = user.picture("compare", 0), user.picture("compare", 1)
    expected = editor.open_photo(tmp_path / "photo.png", tmp_path / "photo.json").edit("purple hair")
    both = {part.tobytes() for part in (before, after)}
    assert both == {np.asarray(photo).tobytes(), np.asarray(expected.image).tobytes()}
    user.screenshot("photo")


def test_a_region_takes_the_style_of_an_uploaded_face(user, editor, tmp_path):
    Image.fromarray(pixels(editor.open_seed(3))).save(tmp_path / "other.png")
    user.page.get_by_text("Like another picture").click()
    user.uploads("reference", tmp_path / "other.png")
    user.types("where", "hair")
    user.page.locator("#exact input").check()
    user.clicks("like")
    user.sees("like the other picture @ hair")
    assert np.array_equal(user.picture("original"), pixels(editor.open_seed(21)))
    face = editor.open_photo(tmp_path / "other.png", aligned=True)
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).take_styles(face, "hair")))
    user.screenshot("style")


def test_an_example_opens_with_its_edit(user, editor):
    user.page.locator("#examples button.thumbnail-item, #examples .thumbnail-lg").nth(1).click()
    seed, what, where = GALLERY[1]
    user.sees(what)
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(seed).edit(what, where)))
    assert (user.value("seed"), user.value("what"), user.value("where")) == (str(seed), what, where or "")


def test_emptying_where_gives_chosen_regions_back(user, editor):
    user.clicks_region(0.5, 0.3)
    user.page.wait_for_function("() => document.querySelector('#where textarea, #where input').value")
    marked = user.picture("regions")
    user.types("where", "")
    user.waits_for_another("regions", marked)
    user.edits("purple hair")
    assert np.array_equal(user.picture("edited"), pixels(editor.open_seed(21).edit("purple hair")))


def test_a_large_photo_is_shown_at_the_size_of_a_screen(editor, tmp_path):
    photo = draw_photo(FaceParams.sample(1, seed=8), FRAME.scaled(5), (2600, 2400))
    photo.image.save(tmp_path / "photo.png")
    (tmp_path / "photo.json").write_text(json.dumps(photo.landmarks.tolist()))
    desk = Desk(editor)
    page = desk.show_photo(str(tmp_path / "photo.png"), False, str(tmp_path / "photo.json"), 0, 0)
    page = desk.change(page, "purple hair", "", 0.1, 0.8)
    before, after = compared(page)
    assert before.size == after.size == (1024, 945) and page.edited.image.size == (2600, 2400)
    large = [np.asarray(image.reduce(2), float) for image in (photo.image, page.edited.image)]
    small = [np.asarray(image.resize((1300, 1200)), float) for image in (before, after)]
    assert np.abs((small[1] - small[0]) - (large[1] - large[0])).mean() < 0.5            # of 255: the same change


def test_more_than_the_limit_is_not_taken_in(served):
    files = {"files": ("large.png", bytes(21 * 2**20))}
    answer = requests.post(f"{served.local_url}gradio_api/upload", files=files, timeout=30)
    assert answer.status_code == 413


def test_a_seed_that_is_none_is_told(user):
    for typed, told in (("1.5", "the seed is 1.5"), ("", "the seed is empty"), ("-1", "the seed is -1")):
        user.types("seed", typed)
        user.page.locator("#seed input").press("Enter")
        expect(user.page.locator(".toast-body").last).to_contain_text(told)


def test_a_taken_port_is_named():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        place.listen()
        port = place.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} .*Try another --port"):
            command.main(["--port", str(port), "--device", "cpu"])
