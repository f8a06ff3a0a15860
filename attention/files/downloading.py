"""Getting the published files: whole and verified, or not at all; see attention/download.py."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import gdown
import requests
from gdown.exceptions import DownloadError
from pooch import HTTPDownloader, file_hash

from attention.errors import UserError
from attention.files.disk import locked
from attention.files.published import PUBLISHED, SETS, download_command
from attention.files.wheels import fetch_wheel

Checks = Mapping[str, tuple[Callable[[Path], object], str]]
TIMEOUT = 30            # seconds without an answer
CHUNK = 2**16           # bytes between two steps of the progress bar


def listing(folder: Path) -> str:
    """Two lines a file: whether it is in `folder`, name, size and licence; what it is for."""
    lines = []
    for name, entry in PUBLISHED.items():
        state = "present" if (folder / name).is_file() else "missing"
        lines += [f"{state}  {name}  ({_size(entry)}; licence: {entry['licence']})", f"         {entry['for']}"]
    sets = [f"{word} stands for {', '.join(names)}" for word, names in SETS.items()]
    return "\n".join([*lines, "download, or verify what is present: python -m attention.download NAME ...", *sets])


def download(name: str, folder: Path, checks: Checks) -> str:
    """Get one published file into `folder`; one that is there already is verified and left as it is.

    Args:
        checks: by the entry's "check": what decides where no hash is known, and what that has shown.
    Returns:
        Where it is and how it was verified, in words.
    Raises:
        UserError: no source gives the file, or it is another file; the message says what to do by hand.
    """
    entry, path, errors = PUBLISHED[name], Path(folder) / name, []
    if path.is_file():
        return _present(path, entry, checks)
    with locked(path):
        if path.is_file():              # another process has got it meanwhile
            return _present(path, entry, checks)
        for kind, address in entry["sources"]:
            try:
                return f"{path} is {_from_source(kind, address, path, checks)}{_next_step(path)}"
            except UserError as error:
                errors.append(str(error))
    raise UserError("\nerror: ".join(errors))


def _present(path: Path, entry: dict, checks: Checks) -> str:
    try:
        return f"{path} is already there, {verify(path, entry, checks)}{_next_step(path)}"
    except UserError as error:
        raise UserError(f"{path} is not the published file: {error}; delete it and run: "
                        f"{download_command(path)}") from error


def verify(path: Path, entry: dict, checks: Checks) -> str:
    """Compare a file with its entry of the manifest; returns what was found, in words.

    A hash that was never compared with the original host ("hash_seen_in") only warns, and the content decides. Where
    no hash is known, the content decides too; size and hash are told so that they can be noted.

    Raises:
        UserError: another hash, or content that is not the published one's.
    """
    digest, expected = file_hash(path), entry.get("sha256") or entry.get("sha256_prefix")
    if expected and digest.startswith(expected):
        return "verified by its SHA-256"
    if expected and "hash_seen_in" not in entry:
        beginning = "" if "sha256" in entry else "one that begins with "
        raise UserError(f"its SHA-256 is {digest}, but {beginning}{expected} was expected")
    found = f"{path.stat().st_size:,} bytes, SHA-256 {digest}"
    if expected:
        print(f"warning: found {found}, expected {_size(entry)}, SHA-256 {expected}; that was seen in "
              f"{entry['hash_seen_in']}, so names and shapes decide", file=sys.stderr)
    check, shown = checks[entry["check"]]
    check(path)
    return f"verified as {shown}; its hash is not confirmed, so note what it is: {found}"


def _from_source(kind: str, address: str, path: Path, checks: Checks) -> str:
    """Download to a temporary name, verify, rename. Raises UserError."""
    page = f"https://drive.google.com/file/d/{address}" if kind == "google_drive" else address
    by_hand = (f"open {page} in a browser, download {path.name}, put it at {path}, and verify it with: "
               f"{download_command(path)}{_next_step(path)}")
    if kind == "page":
        raise UserError(f"{path.name} lies behind a page that only a browser can use; {by_hand}")
    print(f"{path.name} from {page}")
    partial = path.with_name(f".{path.name}.{kind}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for link in filter(Path.is_symlink, _beginnings(partial)):     # bytes would go to where it points
            link.unlink()
        FETCH[kind](address, partial)
    except (OSError, DownloadError) as error:                               # requests' errors are OSErrors
        resume = "what arrived is kept, and the same command goes on from there; or " if _kept(partial) else ""
        raise UserError(f"{path.name} could not be downloaded from {page} ({_reason(error)}); {resume}by hand: "
                        f"{by_hand}") from error
    try:
        note = verify(partial, PUBLISHED[path.name], checks)
    except UserError as error:
        partial.unlink()
        raise UserError(f"what {page} sent is not {path.name} and was removed: {error}; try again, or by hand: "
                        f"{by_hand}") from error
    os.replace(partial, path)
    return note


def _fetch_url(url: str, partial: Path) -> None:
    """Download to `partial`; if it holds a beginning, ask for the rest only."""
    with open(partial, "ab") as file:
        start = file.tell()

        def start_over(response: requests.Response, **_: object) -> None:
            if start and response.status_code == requests.codes.ok:         # the whole file; the rest would be a 206
                print("this server cannot resume: from the beginning", file=sys.stderr)
                file.truncate(0)

        headers = {"Accept-Encoding": "identity"}                           # compressed bytes could not be counted
        if start:
            print(f"going on after {start:,} bytes", file=sys.stderr)
            headers["Range"] = f"bytes={start}-"
        fetch = HTTPDownloader(progressbar=True, chunk_size=CHUNK, timeout=TIMEOUT, headers=headers,
                               hooks={"response": start_over})
        try:
            fetch(url, file, None)
        except requests.HTTPError as error:
            # The last call ended between the last byte and the verification: nothing is left to ask for.
            if error.response is None or error.response.status_code != requests.codes.requested_range_not_satisfiable:
                raise


def _fetch_drive(file_id: str, partial: Path) -> None:
    """gdown answers Google's question about large files, and resumes from a temporary file that it keeps beside."""
    gdown.download(id=file_id, output=str(partial), resume=True, timeout=TIMEOUT)


FETCH: dict[str, Callable[[str, Path], None]] = {"url": _fetch_url, "google_drive": _fetch_drive, "wheel": fetch_wheel}


def _beginnings(partial: Path) -> list[Path]:
    """The files that a download to `partial` goes on from: gdown adds to its name."""
    return [file for file in partial.parent.iterdir() if file.name.startswith(partial.name)]


def _kept(partial: Path) -> bool:
    """Whether bytes wait to be continued; temporary files without any are removed."""
    files = _beginnings(partial)
    for file in files:
        if file.stat().st_size == 0:
            file.unlink()
    return any(file.exists() for file in files)


def _reason(error: Exception) -> str:
    cause = error.__cause__ or error                    # gdown's cut connection is caused by requests' own error
    if isinstance(cause, requests.HTTPError) and cause.response is not None:
        return f"the server answers {cause.response.status_code} {cause.response.reason}"
    if isinstance(cause, requests.RequestException):
        return f"no connection, or it was cut: {type(cause).__name__}"
    return " ".join(str(cause).split())[:300]


def _size(entry: dict) -> str:
    return f"{entry['bytes']:,} bytes" if "bytes" in entry else "size not known"


def _next_step(path: Path) -> str:
    step = PUBLISHED[path.name].get("then")
    return f"; then: {step} {path}" if step else ""
