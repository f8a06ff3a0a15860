"""Memory that is kept between uses instead of being given back to the system and asked for again."""

import ctypes
import os
import sys

# Of glibc's mallopt (malloc.h): its number of a parameter, and the value for it.
KEPT = {
    -4: 0,              # M_MMAP_MAX: large blocks come from the heap as well, and freed ones stay there
    -1: -1,             # M_TRIM_THRESHOLD: nor does the heap's free end go back
    -8: 1,              # M_ARENA_MAX: threads share the one heap, so that each finds what another has freed
}


def keep_memory() -> None:
    """Let this process keep the memory that it frees; where it is not glibc's to decide, or the environment's variables
    have decided, nothing happens.

    glibc gives a block of a feature map's size back after every use, and the page faults of the next one take as long as
    the convolutions. The process stays as large as it ever was.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)       # musl has none
    if mallopt is not None:
        for parameter, value in KEPT.items():
            mallopt(parameter, value)
