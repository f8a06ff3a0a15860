"""The two operations that deserve a kernel of their own; each has one public function for every device."""

from attention.ops.fused_leaky_relu import fused_leaky_relu, fused_leaky_relu_reference
from attention.ops.upfirdn2d import upfirdn2d, upfirdn2d_reference

__all__ = ["fused_leaky_relu", "fused_leaky_relu_reference", "upfirdn2d", "upfirdn2d_reference"]
