"""Measure whether a question-guided choice of windows pays for small things, on frozen features.

    PYTHONPATH=scripts python -m zoom.gate FACADES WORK --vision-encoder DINOV2 --output docs/results/zoom_gate.json
    PYTHONPATH=scripts python -m zoom.gate FACADES WORK_AGAIN ... --replicate
    PYTHONPATH=scripts python -m zoom.gate SCENES WORK_SCENES ... --scenes 280

A glance at the whole picture chooses one or two windows of half or a quarter of its sides; a reader sees the glance
and the windows. Beside it stand readers of the whole picture at three sizes, and windows chosen by chance, by the
attention of the CLS token, by the map of another question, and by the target itself.

FACADES holds `images/`, `labels/`, `classes.txt`, and `images.csv` with `image_id`, `sequence` and `full_detail`.
`--replicate` measures one setting once more, with new questions about the photos, new parts of the split and new
windows by chance. `--scenes` draws scenes with small objects to the folder SCENES and measures on them.

A folder WORK keeps the features of one of these; an interrupted program goes on where it stopped. Each writes its own
results to the output file and leaves the others there as they are.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from modeling_qca.training.files.progress import track
from modeling_qca.training.files.run_files import write_json

from .features import CROPS, Encoder, cache_features
from .measures import REPLICATED_ARRAYS, Measures, measure, measure_again, summarize
from .pictures import facade_pictures, folds
from .probe import Part
from .scenes import scene_pictures
from .table import FACADES, REPLICATION, SCENES, render


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="folder of the photos, or where scenes are drawn")
    parser.add_argument("work", type=Path)
    parser.add_argument("--vision-encoder", required=True)
    parser.add_argument("--float32", action="store_true", help="encode in float32 instead of bfloat16")
    parser.add_argument("--seeds", type=int, default=3, help="each tests a part of the pictures of its own")
    parser.add_argument("--output", type=Path, required=True)
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument("--replicate", action="store_true", help="measure one setting once more")
    measured.add_argument("--scenes", type=int, help="number of scenes to draw and to measure on")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    draw, arrays, name = int(arguments.replicate), None, FACADES
    if arguments.scenes:
        name, pictures = SCENES, scene_pictures(arguments.pictures, arguments.scenes)
    else:
        pictures = facade_pictures(arguments.pictures, seed=draw)
    if arguments.replicate:
        name, arrays = REPLICATION, REPLICATED_ARRAYS
    encoder = Encoder(arguments.vision_encoder, torch.float32 if arguments.float32 else torch.bfloat16)
    features = cache_features(encoder, pictures.paths, arguments.work, arrays)
    measures = Measures()
    for number, tested in enumerate(track(list(folds(pictures, arguments.seeds, seed=draw)), "Measuring")):
        seed = draw * arguments.seeds + number
        part = Part(pictures, features, np.flatnonzero(~tested), np.flatnonzero(tested), seed)
        (measure_again if arguments.replicate else measure)(part, measures)
    results = json.loads(arguments.output.read_text()) if arguments.output.exists() else {"data": {}}
    flops = {str(crop.pixels): encoder.flops(crop.pixels) for crop in CROPS.values()}
    summary = summarize(measures, pictures) | {"dtype": str(encoder.dtype)}
    results = {"flops": flops, "data": results["data"] | {name: summary}}
    write_json(arguments.output, results | {"tables": render(results)})


if __name__ == "__main__":
    main()
