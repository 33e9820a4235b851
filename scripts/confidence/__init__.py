"""Figures of docs/confidence.md."""
