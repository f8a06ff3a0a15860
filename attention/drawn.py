"""An older name of attention.worlds.drawn: python -m attention.drawn.build is python -m attention.worlds.drawn.build."""

from attention.worlds import drawn

__path__ = drawn.__path__           # makes this module a package whose modules are those of the other
