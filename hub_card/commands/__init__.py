"""The `qca` command line."""
