"""How sure a model is of its answers, and when it should give none. Pure functions of probabilities and scores."""
