"""Published files arrive whole and verified or not at all. A server on this machine sends them; no test leaves it."""

import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest.mock import create_autospec

import gdown
import pytest
import torch
from conftest import published_tensors
from gdown.exceptions import DownloadError

from attention.download import checks, main
from attention.errors import UserError
from attention.files import downloading as module
from attention.files.disk import locked
from attention.files.downloading import CHUNK, FETCH, listing, verify
from attention.files.published import PUBLISHED, SETS, missing
from attention.generator import StyleGAN2

REPOSITORY = Path(__file__).resolve().parents[1]
CONTENT = bytes(range(256)) * (20 * CHUNK // 256) + b"end"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
GENERATOR = "stylegan2-ffhq-config-f.pt"


def download(name, folder):
    return module.download(name, folder, checks())


class Handler(BaseHTTPRequestHandler):
    """Sends what `server.files` has at the address; notes each request's Range header in `server.ranges`."""

    def do_GET(self):
        server, wanted = self.server, self.headers["Range"]
        server.ranges.append(wanted)
        content = server.files.get(self.path)
        start = int(wanted[len("bytes="):-1]) if wanted and server.resumes else 0
        if content is None or (start and start >= len(content)):
            return self.send_error(404 if content is None else 416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:server.cut_at])
        server.cut_at = None                                        # only the first connection is cut

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch):
    real = socket.getaddrinfo

    def refuse_others(host, *arguments, **options):
        assert host in ("127.0.0.1", b"127.0.0.1"), f"a test asked for {host}"
        return real(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", refuse_others)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.ranges, server.resumes, server.cut_at = {"/file.pt": CONTENT}, [], True, None
    server.address = f"http://127.0.0.1:{server.server_port}/file.pt"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def publish(server, monkeypatch):
    """publish(sha256=...) puts file.pt into the manifest, from the local server unless `sources` says otherwise."""
    def publish(name="file.pt", **facts):
        entry = {"for": "tests", "licence": "MIT", "sources": [["url", server.address]], "check": "mapper", **facts}
        monkeypatch.setitem(PUBLISHED, name, entry)
    return publish


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


# --- what arrives

@pytest.mark.parametrize("facts", [{"sha256": SHA256}, {"sha256_prefix": SHA256[:8]}])
def test_a_file_arrives_whole_and_nothing_else_is_left(facts, publish, tmp_path):
    publish(**facts)
    assert "verified by its SHA-256" in download("file.pt", tmp_path)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT and names_in(tmp_path) == ["file.pt"]


def test_after_a_cut_connection_only_the_rest_is_asked_for(server, publish, tmp_path):
    publish(sha256=SHA256)
    server.cut_at = 12 * CHUNK + 100
    with pytest.raises(UserError, match=r"file\.pt .*was cut.*the same command goes on"):
        download("file.pt", tmp_path)
    [partial] = tmp_path.iterdir()
    kept = partial.read_bytes()
    assert partial.name != "file.pt" and len(kept) >= 12 * CHUNK and CONTENT.startswith(kept)
    download("file.pt", tmp_path)
    assert server.ranges == [None, f"bytes={len(kept)}-"]
    assert (tmp_path / "file.pt").read_bytes() == CONTENT and names_in(tmp_path) == ["file.pt"]


def test_a_server_that_ignores_the_range_is_read_from_the_beginning(server, publish, tmp_path):
    publish(sha256=SHA256)
    server.resumes = False
    (tmp_path / ".file.pt.url.partial").write_bytes(CONTENT[:1000])
    download("file.pt", tmp_path)
    assert server.ranges == ["bytes=1000-"] and (tmp_path / "file.pt").read_bytes() == CONTENT


def test_a_partial_file_that_lacks_nothing_is_verified_and_renamed(publish, tmp_path):
    publish(sha256=SHA256)
    (tmp_path / ".file.pt.url.partial").write_bytes(CONTENT)
    download("file.pt", tmp_path)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT and names_in(tmp_path) == ["file.pt"]


def test_the_next_source_is_asked_when_one_is_gone(server, publish, tmp_path):
    publish(sha256=SHA256, sources=[["url", server.address + ".gone"], ["url", server.address]])
    download("file.pt", tmp_path)
    assert (tmp_path / "file.pt").read_bytes() == CONTENT


# --- what does not

@pytest.mark.parametrize("facts", [{"sha256": "0" * 64}, {"sha256_prefix": "00000000"}])
def test_a_wrong_hash_leaves_nothing_behind(facts, publish, tmp_path):
    publish(**facts)
    with pytest.raises(UserError, match=rf"file\.pt .*{SHA256}.*00000000.* by hand"):
        download("file.pt", tmp_path)
    assert names_in(tmp_path) == []


def test_a_file_that_is_gone_is_told_with_address_answer_and_what_to_do(server, publish, tmp_path):
    publish(sha256=SHA256)
    server.files.clear()
    with pytest.raises(UserError) as error:
        download("file.pt", tmp_path)
    for words in ("file.pt", server.address, "404 Not Found", f"put it at {tmp_path / 'file.pt'}",
                  f"python -m attention.download file.pt --folder {tmp_path}"):
        assert words in str(error.value)
    assert "goes on" not in str(error.value) and names_in(tmp_path) == []


def test_without_a_network_one_sentence_says_so(server, publish, tmp_path):
    with socket.socket() as unused:                             # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/file.pt"
        publish(sha256=SHA256, sources=[["url", address]])
        with pytest.raises(UserError, match=rf"file\.pt could not be downloaded from {address} \(no connection.* by hand"):
            download("file.pt", tmp_path)
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(publish, tmp_path):
    publish(sha256=SHA256)
    (tmp_path / "taken").touch()
    with pytest.raises(UserError, match=r"file\.pt could not be .*taken"):
        download("file.pt", tmp_path / "taken")


# --- what is there already

def test_a_right_file_is_left_alone_and_nothing_is_asked_for(server, publish, tmp_path):
    publish(sha256=SHA256)
    (tmp_path / "file.pt").write_bytes(CONTENT)
    assert "already there, verified" in download("file.pt", tmp_path)
    assert server.ranges == []


def test_a_wrong_file_is_named_and_not_overwritten(server, publish, tmp_path):
    publish(sha256=SHA256)
    (tmp_path / "file.pt").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"file\.pt is not the published file.*delete it and run: python -m attention"):
        download("file.pt", tmp_path)
    assert (tmp_path / "file.pt").read_bytes() == b"mine" and server.ranges == []


def test_bytes_never_go_through_a_link_that_has_the_name_of_what_has_arrived(publish, tmp_path):
    publish(sha256=SHA256)
    (tmp_path / "kept").write_bytes(b"kept")
    (folder := tmp_path / "weights").mkdir()
    (folder / ".file.pt.url.partial").symlink_to(tmp_path / "kept")
    download("file.pt", folder)
    assert (tmp_path / "kept").read_bytes() == b"kept" and names_in(folder) == ["file.pt"]
    assert (folder / "file.pt").read_bytes() == CONTENT


def test_the_second_of_two_downloads_says_so(publish, tmp_path):
    publish(sha256=SHA256)
    with locked(tmp_path / "file.pt"), pytest.raises(UserError, match=r"file\.pt is being made by another process"):
        download("file.pt", tmp_path)
    download("file.pt", tmp_path)
    assert names_in(tmp_path) == ["file.pt"]


# --- hashes that are not confirmed or not known

def checkpoint_of(resolution: int, path: Path) -> bytes:
    """A generator's file with the published names and shapes, but one stored number a tensor."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in StyleGAN2(resolution).state_dict().items()}
    torch.save({"g_ema": {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()},
                "latent_avg": torch.zeros(512)}, path)
    return path.read_bytes()


@pytest.mark.parametrize(("resolution", "right"), [(1024, True), (256, False)])
def test_where_the_hash_is_unconfirmed_names_and_shapes_decide(resolution, right, server, publish, tmp_path, capsys):
    server.files["/file.pt"] = checkpoint_of(resolution, tmp_path / "made")
    publish(GENERATOR, **{**PUBLISHED[GENERATOR], "sources": [["url", server.address]]})
    folder = tmp_path / "weights"
    if right:
        assert "1024 px generator by names and shapes" in download(GENERATOR, folder)
    else:
        with pytest.raises(UserError, match=r"256 px .* but 1024 px"):
            download(GENERATOR, folder)
    assert names_in(folder) == [GENERATOR] * right
    assert "warning" in (said := capsys.readouterr().err) and PUBLISHED[GENERATOR]["sha256"] in said


def test_an_unconfirmed_hash_that_matches_needs_no_other_check(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT)
    assert verify(tmp_path / "file", {**PUBLISHED[GENERATOR], "sha256": SHA256}, checks()) == "verified by its SHA-256"


def published_layout(name: str) -> dict:
    """What the published file of this format holds, with one stored number a tensor."""
    state = {key: torch.zeros((), dtype=getattr(torch, fact["dtype"])).expand(fact["shape"])
             for key, fact in published_tensors(name).items()}
    return {"state_dict": state, "latent_avg": torch.zeros(18, 512), "opts": {}} if "e4e" in name else state


LAYOUTS = {"ir_se50": "arcface", "e4e_ffhq_encode": "e4e", "mapper_1024_cm2_a13_k20": "mapper"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_content_check_of_a_file_accepts_its_published_layout_alone(layout, tmp_path):
    torch.save(published_layout(layout), tmp_path / "file")
    note = verify(tmp_path / "file", {"check": LAYOUTS[layout]}, checks())
    size, digest = (tmp_path / "file").stat().st_size, hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    assert "names and shapes" in note and f"{size:,} bytes, SHA-256 {digest}" in note       # to be noted: no hash is known
    for other in set(checks()) - {LAYOUTS[layout]}:
        with pytest.raises(UserError):
            verify(tmp_path / "file", {"check": other}, checks())


def test_a_page_in_place_of_a_file_without_hash_is_refused(server, publish, tmp_path):
    server.files["/file.pt"] = b"<html>please sign in</html>"
    publish()
    with pytest.raises(UserError, match="not a whole torch file"):
        download("file.pt", tmp_path)
    assert names_in(tmp_path) == []


# --- Google Drive, and pages for a browser

def fake_drive(monkeypatch, effect):
    monkeypatch.setattr(module.gdown, "download", fake := create_autospec(gdown.download, side_effect=effect))
    return fake


def test_drive_files_are_fetched_resumably_by_their_id(publish, tmp_path, monkeypatch):
    publish(sha256=SHA256, sources=[["google_drive", "the-id"]])
    fake = fake_drive(monkeypatch, lambda output, **_: Path(output).write_bytes(CONTENT))
    download("file.pt", tmp_path)
    assert fake.call_args.kwargs["id"] == "the-id" and fake.call_args.kwargs["resume"] is True
    assert (tmp_path / "file.pt").read_bytes() == CONTENT and names_in(tmp_path) == ["file.pt"]


def test_what_drive_refuses_is_one_sentence_with_the_page(publish, tmp_path, monkeypatch):
    publish(sha256=SHA256, sources=[["google_drive", "the-id"]])

    def refuse(**_):
        raise DownloadError("Cannot retrieve the public link\nof the file")

    fake_drive(monkeypatch, refuse)
    with pytest.raises(UserError, match=r"public link of the file.* open https://drive\.google\.com/file/d/the-id in"):
        download("file.pt", tmp_path)


def test_after_a_cut_drive_goes_on_where_gdown_stopped(server, publish, tmp_path, monkeypatch):
    publish(sha256=SHA256, sources=[["google_drive", "the-id"]])
    real, server.cut_at = gdown.download, 12 * CHUNK
    fake_drive(monkeypatch, lambda id, **options: real(url=server.address, **options))
    with pytest.raises(UserError, match=r"was cut.* the same command goes on"):
        download("file.pt", tmp_path)
    [part] = tmp_path.iterdir()
    kept = part.stat().st_size
    download("file.pt", tmp_path)
    assert kept > 0 and server.ranges[-1] == f"bytes={kept}-"
    assert (tmp_path / "file.pt").read_bytes() == CONTENT and names_in(tmp_path) == ["file.pt"]


def test_the_authors_mapper_comes_with_every_step_by_hand(tmp_path):
    with pytest.raises(UserError) as error:
        download("final_mapper.pt", tmp_path)
    path = tmp_path / "final_mapper.pt"
    steps = ("open https://cloud.tsinghua.edu.cn/d/8a65168fa4464014b62f/ in a browser", f"put it at {path}",
             "python -m attention.download final_mapper.pt", f"python -m attention.convert {path}")
    assert sorted(places := [str(error.value).find(step) for step in steps]) == places and places[0] > 0


# --- the command

def test_one_failure_does_not_stop_the_other_files(server, publish, tmp_path):
    publish("gone.pt", sha256=SHA256, sources=[["url", server.address + ".gone"]])
    publish(sha256=SHA256)
    with pytest.raises(UserError, match=r"gone\.pt .*404"):
        main(["gone.pt", "file.pt", "--folder", str(tmp_path)])
    assert names_in(tmp_path) == ["file.pt"]


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UserError) as error:
        main(["vgg.pth", "--folder", str(tmp_path)])
    assert all(name in str(error.value) for name in ["'vgg.pth'", "ffhq", *PUBLISHED])


def test_without_names_every_file_is_listed_with_its_state(tmp_path, capsys):
    (tmp_path / "ViT-B-32.pt").touch()
    main(["--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert said == listing(tmp_path) + "\n"
    for name, entry in PUBLISHED.items():
        state = "present" if name == "ViT-B-32.pt" else "missing"
        assert re.search(rf"^{state}  {re.escape(name)} .*{re.escape(entry['licence'])}\)\n +{re.escape(entry['for'])}$",
                         said, re.MULTILINE)


def test_sets_stand_for_the_files_that_the_script_asks_for():
    script = (REPOSITORY / "train_scripts.sh").read_text()
    assert {name for name in PUBLISHED if name in script} == {*SETS["ffhq"], *SETS["faces"], *SETS["mesh"]}


def test_a_run_that_lacks_a_published_file_is_told_what_for_and_the_command(tmp_path):
    path = REPOSITORY / "pretrained_models/vgg16-397923af.pth"
    assert str(missing(path)) == (f"{path} is missing (perceptual loss (torchvision VGG-16)); get it with: "
                                  "python -m attention.download vgg16-397923af.pth")
    assert str(missing(tmp_path / "vgg16-397923af.pth")).endswith(f".pth --folder {tmp_path}")
    assert "attention.download" not in str(missing(tmp_path / "mine.pt"))


# --- the manifest

def test_every_published_file_has_a_source_and_something_to_verify_it_by():
    for name, entry in PUBLISHED.items():
        assert entry["sources"] and all(kind in (*FETCH, "page") for kind, _ in entry["sources"]), name
        confirmed = ("sha256" in entry or "sha256_prefix" in entry) and "hash_seen_in" not in entry
        assert confirmed or entry["check"] in checks(), name


def table_row(name: str, entry: dict) -> str:
    """The README's row of a file."""
    words = {"url": "[download]({})", "google_drive": "[Google Drive](https://drive.google.com/file/d/{})",
             "page": "[authors' share]({})", "wheel": "package `{}`"}
    sources = ", ".join(words[kind].format(address) for kind, address in entry["sources"])
    digest = f"`{entry['sha256']}`" if "sha256" in entry else "not known"
    digest = f"begins `{entry['sha256_prefix']}`" if "sha256_prefix" in entry else digest
    unconfirmed = " (unconfirmed)" if "hash_seen_in" in entry else ""
    size = f"{entry['bytes']:,} bytes" if "bytes" in entry else "not known"
    return f"| `{name}` | {entry['for']} | {sources} | {digest}{unconfirmed} | {size} | {entry['licence']} |"


def test_the_table_of_the_readme_is_the_manifest():
    readme = (REPOSITORY / "pretrained_models/README.md").read_text().splitlines()
    assert [line for line in readme if line.startswith("| `")] == [table_row(*item) for item in PUBLISHED.items()]
