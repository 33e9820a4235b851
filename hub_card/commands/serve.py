"""The command to answer over HTTP: `qca serve`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .console import say
from .options import Coverage, Threshold
from .preflight import check_abstention, check_checkpoint


def serve(
    model: Annotated[str, typer.Argument(help="A checkpoint, or a folder that `qca export` wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    device: Annotated[str, typer.Option(help="Device of a checkpoint, such as cuda.")] = "cpu",
    max_megabytes: Annotated[float, typer.Option(min=0.001, help="Largest request.")] = 16,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for a request to arrive, and for its answer.")] = 30,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait; more are refused.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests that are answered together.")] = 16,
    threshold: Threshold = None,
    coverage: Coverage = None,
):
    """Answer questions about images over HTTP, as `InferenceClient.visual_question_answering` asks them.

    Requests that arrive while the model works are answered together. An ONNX export is served without torch.
    """
    if not (Path(model) / "model.onnx").exists():
        check_checkpoint(model)
    check_abstention(threshold, coverage)
    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ImportError(f'qca serve needs {", ".join(missing)}: pip install "modeling-qca[serve]"')
    import uvicorn

    from .serving.server import Limits, load_model, lowest_probability, make_app, read_abstain_answer

    limits = Limits(max_megabytes, timeout, max_waiting, batch_size)
    lowest = lowest_probability(model, threshold, coverage)
    app = make_app(load_model(model, device), limits, lowest, read_abstain_answer(model))
    config = uvicorn.Config(app, host, port, log_level="warning", timeout_keep_alive=5)
    socket = config.bind_socket()
    socket.listen(config.backlog)  # clients that connect now wait until the server has started
    say(f"Serving {model} on http://{host}:{socket.getsockname()[1]} (health: /health). Stop it with Ctrl-C.")
    uvicorn.Server(config).run(sockets=[socket])
