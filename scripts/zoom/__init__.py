"""Parts of `scripts/zoom_gate.py`: pictures with small things, frozen features of windows, and heads on them."""
