"""Presets (directories for `from_pretrained`) and training recipes (YAML). Data only."""
