"""Files of a run: names, safe reading, and atomic writing."""
