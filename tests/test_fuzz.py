"""Damaged and hostile files: each is read as it should be or ends in one sentence, soon, and in little memory."""

import json
import random
import resource
import signal
import struct
import time
import warnings
import zlib
from contextlib import contextmanager

import pytest
import torch
from readers import READERS, rosinality, write_all

from attention.errors import UserError

SECONDS, MEGABYTES = 2, 500         # that one file may take
HEAVY = ("editor.safetensors", "checkpoint.pt", "clip.pt")          # megabytes each: tried less often
NESTED = "[" * 50_000
ODD_TEXTS = ("\x1b[31mred\x1b[0m", "\ud800", "a\0b", "9" * 5000, "-1", "1e400", "NaN", "Infinity", "null", "true", "[]",
             "{}", NESTED, '{"a":' * 50_000, "99999999999999999999", "'", '"', "\ufeff", "\u202e", "=", "[x]", "../" * 3000)
ODD_HEADS = ("F16", "BOOL", "I64", "C64", "F8_E4M3", "F4", "U8", "BF16", [0, 2**62], [2**40, 2**40], [-1, 4], [], [1] * 64,
             "\x1b[31m", None, 1e300, {}, '{"a": 1}', "[" * 5000, "nan", "99999999999")
ODD_CHUNKS = (b"", b"\0\xff" * 30, struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0),
              struct.pack(">IIBBBBB", 9900, 9900, 8, 0, 0, 0, 0), *(b"where2edit\0" + text.encode("utf-8", "replace")
                                                                    for text in ODD_TEXTS))
BOMB = b"where2edit\0\0" + zlib.compress(b"[" * 50_000_000, 9)
ODD_TENSORS = {
    "int": lambda x: x.long(), "bool": lambda x: x.bool(), "complex": lambda x: x.to(torch.complex64),
    "half": lambda x: x.half(), "double": lambda x: x.double(), "scalar": lambda x: x.flatten()[0],
    "flat": lambda x: x.flatten(),
    "axes": lambda x: x[(None,) * 7], "empty": lambda x: x[..., :0], "NaN": lambda x: torch.full_like(x, float("nan")),
    "one NaN": lambda x: x.clone().flatten().index_fill(0, torch.tensor([0]), float("nan")).view(x.shape),
    "infinite": lambda x: x + float("inf"), "huge": lambda x: torch.full_like(x, 3e38),
    "repeated": lambda x: torch.zeros(()).expand(*x.shape[:-1], 10**7) if x.ndim else x,
    "sparse": lambda x: x.to_sparse(), "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "list": lambda x: [0.5], "text": lambda x: "\x1b[31m", "number": lambda x: 10**30, "none": lambda x: None,
    "transposed": lambda x: x.transpose(0, -1) if x.ndim > 1 else x, "wide": lambda x: torch.zeros(*x.shape[:-1], 4096)}


# --- what can be done to a file

def flipped(content, draw):
    content = bytearray(content)
    for _ in range(draw.choice((1, 1, 4, 30))):
        place = draw.randrange(min(len(content), draw.choice((32, 1000, len(content)))))
        content[place] ^= 1 << draw.randrange(8)
    return bytes(content)


def cut(content, draw):
    return content[:draw.randrange(len(content))]


def grown(content, draw):
    more = draw.choice((b"\0" * 100_000, content, draw.randbytes(3000), b"[" * 100_000, b"\n" * 100_000))
    place = draw.choice((0, len(content), draw.randrange(len(content))))
    return content[:place] + more + content[place:]


def overwritten(content, draw):
    """Numbers of four or eight bytes, such as a length, become others that matter."""
    value = draw.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1, 2**40, 1000))
    size = draw.choice((2, 4, 8))
    place = draw.randrange(max(1, min(len(content) - size, draw.choice((64, 2000, len(content))))))
    number = (value % 2**(8 * size)).to_bytes(size, draw.choice(("little", "big")))
    return content[:place] + number + content[place + size:]


def worded(content, draw):
    """A text with odd words in it."""
    text = content.decode("utf-8", "surrogateescape")
    start = draw.randrange(len(text))
    end = min(len(text), start + draw.choice((0, 1, 5, 30)))
    odd = text[:start] + draw.choice(ODD_TEXTS) + text[end:]
    return draw.choice((b"", b"\xef\xbb\xbf", b"\xff\xfe")) + odd.encode("utf-8", draw.choice(("surrogatepass", "replace")))


def headed(content, draw):
    """A safetensors file with another header."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    name = draw.choice([key for key in header if key != "__metadata__"])
    said = draw.choice((header[name], header.setdefault("__metadata__", {}) or {"kind": ""}))
    key = draw.choice(list(said))
    said[key] = draw.choice(ODD_HEADS)
    if draw.random() < 0.3:
        header[draw.choice(ODD_TEXTS)[:100]] = header.pop(name)
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + content[8 + length:]


def reweighed(content, draw):
    """A torch file in which tensors, names and values are others."""
    path = draw.path
    path.write_bytes(content)
    state = torch.load(path.parent / "whole.pt" if path.name == "train.pt" else path, weights_only=True)
    state = rosinality(state["g_ema"]) if path.name == "train.pt" else state
    tables = [table for table in (state, *state.values()) if isinstance(table, dict) and table]
    table = draw.choice(tables)
    for _ in range(draw.choice((1, 1, 3))):
        name = draw.choice(list(table))
        change = ODD_TENSORS[draw.choice(list(ODD_TENSORS))]
        try:
            table[name] = change(table[name] if isinstance(table[name], torch.Tensor) else torch.zeros(3))
        except (RuntimeError, IndexError):
            table[name] = NESTED[:100]
        if draw.random() < 0.3:
            table[draw.choice(ODD_TEXTS)[:100].replace("\ud800", "")] = table.pop(name)
    for block in range(draw.choice((0, 0, 0, 100))):
        table[f"to_rgbs.{block}.conv.weight"] = table[f"convs.{2 * block}.conv.weight"] = torch.zeros(1, 1, 1, 1, 1)
    torch.save(state, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    return path.read_bytes()


def rechunked(content, draw):
    """A PNG of which a chunk is another, its checksum right."""
    chunks, place = [], 8
    while place < len(content):
        length = int.from_bytes(content[place:place + 4], "big")
        chunks.append([content[place + 4:place + 8], content[place + 8:place + 8 + length]])
        place += 12 + length
    chunk = draw.choice(chunks)
    kind = draw.choice((chunk[0], b"zTXt", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"tRNS", b"PLTE", b"iTXt"))
    body = draw.choice((flipped(chunk[1] or b"\0", draw), BOMB, *draw.sample(ODD_CHUNKS, 3)))
    chunks.insert(draw.choice((chunks.index(chunk), 1)), [kind, body])
    if draw.random() < 0.5:
        chunks.remove(chunk)
    return content[:8] + b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
                                  for kind, body in chunks)


BYTES = (flipped, flipped, cut, grown, overwritten)


def ways(name):
    """What is done to a file of this name."""
    if name.endswith(".safetensors"):
        return (*BYTES, headed, headed, headed)
    if name.endswith(".pt"):
        return (*BYTES, reweighed, reweighed, reweighed)
    if name.endswith(".png"):
        return (*BYTES, rechunked, rechunked)
    return (*BYTES, worded, worded, worded) if name.endswith((".toml", ".json", ".txt")) else BYTES


# --- and what must come of it

@contextmanager
def alarm(seconds):
    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fuzz(folder, cases, seed):
    """What went wrong in so many cases: the file, the way, and how it ended."""
    write_all(folder)
    whole = {name: (folder / name).read_bytes() for name in READERS}
    draw, wrong = random.Random(seed), []
    names = sorted(READERS, key=lambda name: name in HEAVY)
    (folder / "whole.pt").write_bytes(whole["generator.pt"])
    for name in names:                                              # each is read as it is
        READERS[name](folder / name)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(cases):
        name = names[case % len(names)]
        if name in HEAVY and case // len(names) % 5:
            name = draw.choice(names)
        path = draw.path = folder / name
        way = draw.choice(ways(name))
        try:
            content = way(whole[name], draw)
        except Exception as error:
            raise AssertionError(f"the test itself: {way.__name__} of {name}") from error
        path.write_bytes(content)
        start, end = time.process_time(), None
        try:
            with alarm(10 * SECONDS):
                READERS[name](path)
        except UserError as error:
            if not str(error).isprintable() or len(str(error)) > 2000:
                end = f"a message of {len(str(error))} signs: {str(error)[:300]!r}"
        except BaseException as error:
            end = f"{type(error).__name__}: {str(error)[:200]!r}"
        now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if (seconds := time.process_time() - start) > SECONDS:
            end = f"{seconds:.1f} s"
        if now - memory > 1000 * MEGABYTES:
            end = f"{(now - memory) // 1000} MB"
        memory = max(memory, now)
        if end:
            wrong.append(f"case {case}: {name}, {way.__name__}: {end}")
            (folder / f"wrong_{case}_{name}").write_bytes(content)
    return wrong


@pytest.mark.parametrize(("cases", "seed"), [(400, 0), pytest.param(6000, 1, marks=pytest.mark.slow)])
def test_a_damaged_file_ends_in_the_right_result_or_in_one_sentence(cases, seed, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert fuzz(tmp_path, cases, seed) == []
