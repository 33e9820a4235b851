"""Answer questions over HTTP. Installed as `qca_cli.serving`, so that it serves an ONNX export without torch."""
