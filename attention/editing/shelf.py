"""The pictures that the page's server keeps in memory."""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

from attention.editing.edited import Edited

MEMORY = 512 * 2**20        # bytes of all users' pictures and features together; what was used longest ago is made again


@dataclass
class Shelf:
    """Pictures by their numbers within a budget of memory; those that were used longest ago go first."""

    budget: int = MEMORY
    kept: "OrderedDict[int, Edited]" = field(default_factory=OrderedDict)
    sizes: dict[int, dict[int, int]] = field(default_factory=dict)          # by picture: bytes by address
    lock: Lock = field(default_factory=Lock)

    def get(self, number: int) -> Edited | None:
        with self.lock:
            if number in self.kept:
                self.kept.move_to_end(number)
            return self.kept.get(number)

    def put(self, number: int, edited: Edited) -> None:
        sizes = {tensor.data_ptr(): tensor.nbytes for tensor in edited.tensors()}
        if edited.photo is not None:
            picture = edited.photo.picture
            sizes[id(picture)] = picture.width * picture.height * 3
        with self.lock:
            self.kept[number], self.sizes[number] = edited, sizes
            self.kept.move_to_end(number)
            while len(self.kept) > 1 and self.size() > self.budget:
                del self.sizes[self.kept.popitem(last=False)[0]]

    def drop(self, number: int) -> None:
        with self.lock:
            self.kept.pop(number, None)
            self.sizes.pop(number, None)

    def size(self) -> int:
        """Bytes of all that is kept; what pictures share counts once."""
        together: dict[int, int] = {}
        for sizes in self.sizes.values():
            together |= sizes
        return sum(together.values())
