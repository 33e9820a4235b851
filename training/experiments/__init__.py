"""Tables of results, the reference model, and the demo."""
