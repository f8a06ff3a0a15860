"""Where2Edit: text-guided local image editing with region-based attention (Xiao et al., Pattern Recognition 139, 2023)."""

from attention.domains import load_domain
from attention.editor import Edit, RegionEditor
from attention.regions import RegionClusters
from attention.training import load_editor

__all__ = ["Edit", "RegionClusters", "RegionEditor", "load_domain", "load_editor"]
