"""edgephi: quantize Phi-3 for an edge device, push it there, and measure it there."""

__version__ = "0.1.0"
