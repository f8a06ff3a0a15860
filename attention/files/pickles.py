"""Pickles of other people: nothing in them is run or looked up, in time and memory that their own size bounds."""

import io
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

MOST_VALUES = 1_000_000         # in one pickle, each counted as often as it is reached; a training checkpoint has thousands
MOST_CONTAINERS = 200_000       # lists, tuples and tables in one pickle; a training checkpoint has thousands
PICKLE_BYTES = 4_000_000        # of the pickle in a torch archive, whose tensors lie beside it
ZIP = b"PK\x03\x04"
TORCH_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."         # begins a torch file that is no zip archive, after its protocol
KEYS = (str, int, float, bytes, bool, type(None))


class Ignored:
    """Stands for a value that no weight depends on, whatever its class: takes anything and keeps nothing."""

    def __init__(self, *arguments: Any, **named: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class InertUnpickler(pickle._Unpickler):
    """Builds plain containers; `find_class` says what stands for a name, and no object's state is set.

    The fast unpickler makes a table as long as the largest number that a file of some bytes gives to a value; this one,
    written in Python, does not. Keys are plain, because the hash of tuples of the same tuples may take for ever.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def load(self) -> Any:
        return _bounded(super().load())

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was refused")

    def load_build(self) -> None:
        self.stack.pop()

    def load_setitem(self) -> None:
        *_, key, value = self.stack
        del self.stack[-2:]
        _put(self.stack[-1], [key, value])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        _put(self.stack[-1], items)

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append(_put({}, items))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].update(plain_set(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(plain_set(items)))

    dispatch |= {pickle.BUILD[0]: load_build, pickle.SETITEM[0]: load_setitem, pickle.SETITEMS[0]: load_setitems,
                 pickle.DICT[0]: load_dict, pickle.ADDITEMS[0]: load_additems, pickle.FROZENSET[0]: load_frozenset}


class Table(dict):
    """A dictionary whose keys are plain.

    Raises:
        UnpicklingError: one of them is not.
    """

    def __init__(self, items: Any = ()):
        super().__init__()
        _put(self, [part for pair in (items.items() if isinstance(items, dict) else items) for part in pair])


def plain_set(items: Any = ()) -> set:
    """A set of plain values.

    Raises:
        UnpicklingError: one of them is none.
    """
    if not all(isinstance(item, KEYS) for item in items):
        raise pickle.UnpicklingError("it has a set of other things than names and numbers")
    return set(items)


def check_torch_file(file: BinaryIO, size: int) -> None:
    """Refuse a torch file of `size` bytes that torch.load would read without end; nothing in it is run.

    Raises:
        UnpicklingError: it is compressed, longer than itself, or a pickle in it repeats its values.
        Exception: it is no torch file; zipfile and pickle raise their own kinds.
    """
    if file.read(4) == ZIP:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or size < sum(
                    entry.file_size for entry in entries):
                raise pickle.UnpicklingError("it is compressed, which torch.save never does")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    if entry.file_size > PICKLE_BYTES:
                        raise pickle.UnpicklingError(f"its {entry.filename[:80]} has {entry.file_size:,} bytes")
                    _Surveyor(io.BytesIO(archive.read(entry))).load()
    else:
        file.seek(0)
        for _ in range(5):              # a magic number, the protocol, the system, the content, the names of the storages
            _Surveyor(file).load()


def is_torch_file(path: Path) -> bool:
    """Whether the file begins as torch.save begins one."""
    with path.open("rb") as file:
        head = file.read(40)
    return head[:4] == ZIP or TORCH_MAGIC in head


class _Anything:
    """Stands for any object; all that it was given stays in sight."""

    made: ClassVar[list["_Anything"]]       # every one of this class; each pickle has a class of its own

    def __new__(cls, *arguments: Any, **named: Any) -> "_Anything":
        made = super().__new__(cls)
        made.given = [arguments, list(named.values())]
        cls.made.append(made)
        return made

    def __init__(self, *arguments: Any, **named: Any):
        self.given: list[Any]

    def append(self, value: Any) -> None:
        self.given.append(value)

    def update(self, values: Any) -> None:
        self.given.extend(values)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.given.append(value)


class _Surveyor(InertUnpickler):
    """Goes through a pickle as torch.load will, and makes nothing of it."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.kind: Any = type("Anything", (_Anything,), {"made": []})

    def load(self) -> Any:
        content = pickle._Unpickler.load(self)
        return _bounded(content, self.kind.made)

    def find_class(self, module: str, name: str) -> Any:
        return self.kind

    def persistent_load(self, key: Any) -> Any:
        flat = (*key[:-1], *key[-1]) if isinstance(key, tuple) and key and isinstance(key[-1], tuple) else key
        if not isinstance(flat, tuple) or not all(part is self.kind or isinstance(part, KEYS) for part in flat):
            raise pickle.UnpicklingError("it names a storage by other things than names and numbers")
        return self.kind()


def _put(table: Any, items: list) -> Any:
    if len(items) % 2 or not all(isinstance(key, KEYS) for key in items[::2]):
        raise pickle.UnpicklingError("it has a table whose keys are other things than names and numbers")
    for key, value in zip(items[::2], items[1::2], strict=True):
        table[key] = value
    return table


def _bounded(content: Any, others: Sequence[Any] = ()) -> Any:
    """What was read, if it and others can be walked through in MOST_VALUES steps."""
    if _values([content, *others]) > MOST_VALUES:
        raise pickle.UnpicklingError("it repeats its values without end")
    return content


def _values(content: Any) -> float:
    """How many values a walk through nested containers meets: each as often as it is reached, a circle once."""
    counted: dict[int, float] = {}
    waiting = [(content, False)]
    while waiting:
        value, done = waiting.pop()
        inside = _inside(value)
        if done:
            counted[id(value)] = 1 + sum(counted.get(id(part), 1) for part in inside)
        elif inside and id(value) not in counted:
            if len(counted) > MOST_CONTAINERS:
                return float("inf")
            counted[id(value)] = 1
            waiting += [(value, True), *((part, False) for part in inside)]
    return counted.get(id(content), 1)


def _inside(value: Any) -> list:
    if isinstance(value, _Anything):
        return value.given
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple | set | frozenset) else []
