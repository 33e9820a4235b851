"""Target relevance: label maps, generated questions, views and drawn scenes."""
