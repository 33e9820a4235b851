"""Inspection of data before training: counts, duplicates, baselines that need no training, and costs."""
