"""Measure whether a question-guided choice of windows pays for small things, on frozen features.

    PYTHONPATH=scripts python -m zoom.gate FACADES WORK --vision-encoder DINOV2 --output docs/results/zoom_gate.json

A glance at the whole picture chooses one or two windows of half or a quarter of its sides; a reader sees the glance
and the windows. Beside it stand readers of the whole picture at three sizes, and windows chosen by chance, by the
attention of the CLS token, by the map of another question, and by the target itself.

FACADES holds `images/`, `labels/`, `classes.txt`, and `images.csv` with `image_id`, `sequence` and `full_detail`.
WORK keeps the features; an interrupted program goes on where it stopped.
"""

import argparse
from pathlib import Path

import numpy as np

from modeling_qca.training.files.progress import track
from modeling_qca.training.files.run_files import write_json

from .features import CROPS, Encoder, cache_features
from .pictures import facade_pictures, folds
from .probe import Part
from .table import Measures, measure, render, summarize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("facades", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--vision-encoder", required=True)
    parser.add_argument("--seeds", type=int, default=3, help="each tests a part of the pictures of its own")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    pictures = facade_pictures(arguments.facades)
    encoder = Encoder(arguments.vision_encoder)
    features = cache_features(encoder, pictures.paths, arguments.work)
    measures = Measures()
    for seed, tested in enumerate(track(list(folds(pictures, arguments.seeds)), "Measuring")):
        measure(Part(pictures, features, np.flatnonzero(~tested), np.flatnonzero(tested), seed), measures)
    flops = {str(crop.pixels): encoder.flops(crop.pixels) for crop in CROPS.values()}
    results = {"flops": flops, "data": {"facades": summarize(measures, pictures)}}
    write_json(arguments.output, results | {"tables": render(results)})


if __name__ == "__main__":
    main()
