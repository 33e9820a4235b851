"""Commands to try a model: `qca demo`, `qca ask`, `qca app`."""

from pathlib import Path
from typing import Annotated

import typer

from .console import console, print_results, say, say_table
from .options import Checkpoint, Coverage, Image, Threshold
from .preflight import check_abstention, check_checkpoint, check_image, check_questions
from .train import stopped_on_request


def demo(
    output_dir: Annotated[Path, typer.Option(help="Folder for the data, the checkpoint and the pictures.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the scenes and of the training.")] = 0,
):
    """Generate scenes, train qca-tiny on them from scratch, and show where it looks. Takes about two minutes."""
    from modeling_qca.training.experiments.demo import run_demo

    with stopped_on_request():
        results = run_demo(output_dir, seed)
    print_results(results)
    say(f"Checkpoint, pictures and report.md: {output_dir}")


def ask(
    checkpoint: Checkpoint,
    image: Image,
    questions: Annotated[list[str], typer.Argument(help="One or several questions, each in quotes.")],
    top_k: Annotated[int, typer.Option(help="Number of answers to show.")] = 3,
    overlay: Annotated[
        Path | None, typer.Option(help="Picture to write of where the model looked; numbered if there are several.")
    ] = None,
    threshold: Threshold = None,
    coverage: Coverage = None,
):
    """Answer questions about an image."""
    check_checkpoint(checkpoint)
    check_abstention(threshold, coverage)
    check_image(image)
    check_questions(questions)
    from modeling_qca.training.prediction.ask import answer_questions

    for asked in answer_questions(checkpoint, image, questions, top_k, overlay, threshold, coverage):
        console.print(asked.question, style="italic")
        if asked.abstained:
            say(f"no answer: {asked.reason}")
        say_table([[best["answer"], f"{best['score']:.3f}"] for best in asked.answers], ["answer", "probability"])
        if asked.unfamiliar is not None:
            say(f"unlike the questions it was trained on: {asked.unfamiliar}")
        if asked.overlay is not None:
            say(f"{asked.map_name}: {asked.overlay}")
        if asked.words is not None:
            say(f"without the word: {asked.words}")


def launch(
    checkpoint: Checkpoint,
    port: Annotated[int, typer.Option(help="Port of the page on this machine.")] = 7860,
    annotations: Annotated[
        Path | None, typer.Option(help="Folder that gets the questions answered wrong, for `qca annotate`.")
    ] = None,
):
    """Open the demo page: an image, questions, answers, and where the model looked. Needs the `app` extra."""
    check_checkpoint(checkpoint)
    from modeling_qca.hub_card.space.app import launch_app

    launch_app(checkpoint, None if annotations is None else str(annotations), server_port=port)
