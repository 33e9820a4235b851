"""The command to answer questions about many images: `qca predict`."""

from pathlib import Path
from typing import Annotated

import typer

from .console import FIRST_PROCESS, say
from .options import Checkpoint, Coverage, DataOptions, Threshold, parse_mapping
from .preflight import check_abstention, check_checkpoint

SOME_UNREADABLE = 3  # exit status


def predict(
    checkpoint: Checkpoint,
    images: Annotated[
        str, typer.Argument(help="A folder, a glob, a table, WebDataset shards or a Hub data set; no answers needed.")
    ],
    output: Annotated[
        Path, typer.Option(help="File to write: .parquet, .csv, .jsonl, or .json for the VQA challenge.")
    ],
    questions: Annotated[
        Path | None,
        typer.Option(help="Questions to ask about every image: one a line, or a table. Else IMAGES brings them."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the data, train by default.")] = None,
    data_options: DataOptions = "{}",
    top_k: Annotated[int, typer.Option(min=1, help="Number of answers to each question.")] = 1,
    regions: Annotated[
        bool, typer.Option("--regions", help="Also write the peak of the relevance map and the box around it.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, max=128, help="Number of images in a batch.")] = 16,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images; 0 decodes in this one.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")] = False,
    threshold: Threshold = None,
    coverage: Coverage = None,
):
    """Answer questions about many images. A stopped run goes on with --resume.

    Images that cannot be read are listed in OUTPUT.unreadable.csv, and the exit status is then 3. `accelerate launch`
    splits the work over processes and machines.
    """
    check_checkpoint(checkpoint)
    check_abstention(threshold, coverage)
    from modeling_qca.training.prediction.prediction_run import PredictionRequest, predict_images

    options = parse_mapping(data_options, "--data-options")
    request = PredictionRequest(
        *(checkpoint, images, output, questions, split, options, top_k, regions, batch_size, workers, resume),
        threshold=threshold,
        coverage=coverage,
    )
    summary = predict_images(request)
    if not FIRST_PROCESS:
        return
    if summary is None:
        say(f"The run was finished before: {output}")
    else:
        say(f"{summary.answers:,} answers about {summary.images - summary.unreadable:,} images: {output}")
        if summary.abstained:
            say(f"{summary.abstained:,} of them are no answer (column `abstained`)")
    if request.faults.exists():
        say(f"Some images could not be read: {request.faults}")
        raise typer.Exit(SOME_UNREADABLE)
