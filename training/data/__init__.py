"""Rows of questions about images, from files to batches."""
