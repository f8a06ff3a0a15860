"""Where2Edit: text-guided local image editing with region-based attention (Xiao et al., Pattern Recognition 139, 2023)."""

from importlib import import_module

# Public name -> its module, loaded on first use: a command then loads only what it needs.
_HOMES = {"Edited": "editing", "Editor": "editing", "RegionClusters": "regions", "RegionEditor": "editor",
          "load_domain": "domains", "load_editor": "editing"}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
