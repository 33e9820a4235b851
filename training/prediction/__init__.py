"""Answers to unlabeled questions about any number of images: sources, predictor, finished parts, answer files."""
