"""Objects found by a zero-shot detector for the phrases of questions."""
