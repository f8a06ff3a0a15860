"""Where2Edit: text-guided local image editing with region-based attention (Xiao et al., Pattern Recognition 139, 2023)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attention.editing.edited import Edited
    from attention.editing.session import Editor, load_editor
    from attention.method.editor import RegionEditor
    from attention.method.regions import RegionClusters
    from attention.worlds.registry import load_world

__all__ = ["Edited", "Editor", "RegionClusters", "RegionEditor", "load_domain", "load_editor", "load_world"]
# Public name -> its module and its name there, loaded on first use: a command then loads only what it needs.
_HOMES = {"Edited": ("editing.edited", "Edited"), "Editor": ("editing.session", "Editor"),
          "RegionClusters": ("method.regions", "RegionClusters"), "RegionEditor": ("method.editor", "RegionEditor"),
          "load_domain": ("worlds.registry", "load_world"),       # its older name
          "load_editor": ("editing.session", "load_editor"), "load_world": ("worlds.registry", "load_world")}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), own)
