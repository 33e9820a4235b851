"""Annotation exports: one reader for each format."""
