"""The gate of zoom (`zoom.gate`): small things in photos, frozen features of windows, and linear readers of them."""
