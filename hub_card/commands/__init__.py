"""The `qca` command line, installed as `qca_cli`: one file for each group of commands.

This package imports nothing heavy at the top of a file. A command imports `modeling_qca`, and with it torch, after
`preflight` has accepted its arguments.
"""
