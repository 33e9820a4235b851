"""Measure how many marks a model needs: accuracy and pointing accuracy over the number of boxes.

    python scripts/studies/marks.py configuration/recipes/rooms.yaml LABELS CLASSES runs/marks \\
        --output docs/results/marks.json --figure docs/marks.png [--rows NAME ...] [--seeds 0 1 2] [--key value ...]

LABELS are the label maps of the photos (see `qca make-questions`). A mark is a box, mask or point of one connected
region of a label. Specks are left out, and an object of several regions takes several marks. Marks are made in the
order in which questions come up: those of all objects that a question names, in random order of the questions, or as
the row says. A mark serves every question about its photo that names its label, as `qca add-relevance --from objects`
does it. Only maps of training rows are drawn, so that pointing accuracy is measured on the true ones.

Rows of results that are in the file already stay, and are not trained again.
"""

import argparse
import dataclasses
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from qca_cli.options import split_overrides
from scipy import ndimage

from modeling_qca.training.data.collator import QuestionCollator
from modeling_qca.training.evaluation.checkpoint import load_checkpoint, load_processor
from modeling_qca.training.evaluation.confidence import question_confidence
from modeling_qca.training.evaluation.predictions import predict
from modeling_qca.training.files.atomic_write import atomic_write
from modeling_qca.training.files.markdown import mean_cell
from modeling_qca.training.files.run_files import write_json
from modeling_qca.training.fitting.model_factory import build_model
from modeling_qca.training.fitting.parameter_groups import freeze
from modeling_qca.training.fitting.recipe import CONFIG_FIELDS, Recipe, load_recipe
from modeling_qca.training.fitting.run_checks import runnable_arguments
from modeling_qca.training.fitting.splits import Splits, read_splits
from modeling_qca.training.fitting.training_run import TrainingRun, cache_features
from modeling_qca.training.supervision.detection.word_regions import (
    learn_word_regions,
    principal_components,
    shown_labels,
)
from modeling_qca.training.supervision.label_maps import LabelMaps, read_label_maps
from modeling_qca.training.supervision.marked_objects import MarkedObject
from modeling_qca.training.supervision.object_maps import draw_objects
from modeling_qca.training.supervision.object_matching import LabelMatcher
from modeling_qca.training.supervision.regions import Box, Mask, Region

GRID, HOPS = (16, 16), 2
SPECK = 0.002  # of the picture, and
SMALL = 0.25  # of the largest region of its label: smaller ones are not marked
POINT = 1 / 16  # side of the square around a point, as a share of the picture's sides
SECONDS_A_BOX = 10
BESIDE_MEAN = {
    "answer_evidence": "hops_and_mean",
    "relevance_scorer": "bilinear",
    "answer_query": "initial",
    "num_classifier_layers": 1,
    "evidence_dropout": 0.3,
}
Maps = dict[int, NDArray[np.float32]]  # row -> [T, rows, columns]
Object = tuple[str, str]  # photo and label


class Row(NamedTuple):
    """What is marked, and what is made of it.

    Args:
        boxes: number of marks; None: all.
        region: what a mark is.
        order: of the marks: random questions, photos marked in full, or the questions first that the model of the row
            `no marks` is least certain of.
        spread: whether the other objects get regions that are learned from questions and marks.
        of_other_questions: whether each question gets the maps of another question about its photo (a control).
        taught_by: the row whose model, of the same seed, draws the maps of questions without one.
        recipe: keys that differ.
    """

    boxes: int | None = 0
    region: Literal["box", "mask", "point"] = "box"
    order: Literal["questions", "photos", "least_certain"] = "questions"
    spread: bool = False
    of_other_questions: bool = False
    taught_by: str | None = None
    recipe: Mapping[str, Any] = BESIDE_MEAN


COUNTS: dict[str, int | None] = {
    "50 boxes": 50,
    "150 boxes": 150,
    "500 boxes": 500,
    "1,500 boxes": 1500,
    "all boxes": None,
}
ROWS: dict[str, Row] = {
    "no marks": Row(recipe={**BESIDE_MEAN, "attention_supervision": "none"}),
    **{name: Row(boxes) for name, boxes in COUNTS.items()},
    "no marks, regions of words": Row(spread=True),
    **{f"{name}, regions of words": Row(boxes, spread=True) for name, boxes in COUNTS.items()},
    "150 boxes, hops alone": Row(150, recipe={}),
    "500 boxes, hops alone": Row(500, recipe={}),
    "150 boxes, photos in full": Row(150, order="photos"),
    "150 boxes, least certain first": Row(150, order="least_certain"),
    "150 boxes, second round": Row(150, taught_by="150 boxes"),
    "150 masks": Row(150, "mask"),
    "150 points": Row(150, "point"),
    "500 masks": Row(500, "mask"),
    "500 points": Row(500, "point"),
    "500 boxes, maps of other questions": Row(500, of_other_questions=True),
    "no marks, regions of words, maps of other questions": Row(spread=True, of_other_questions=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("recipe", "labels", "classes", "runs"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split-by-seed", action="store_true", help="each seed has a validation split of its own")
    arguments, rest = parser.parse_known_args()
    recipe = load_recipe(arguments.recipe, split_overrides(rest)[1])
    maps = read_label_maps(arguments.labels, arguments.classes)
    study = None
    for seed in arguments.seeds:
        if arguments.split_by_seed:
            study, recipe = None, dataclasses.replace(recipe, data_seed=seed)
        for name in arguments.rows:
            if str(seed) in read_runs(arguments.output).get(name, {}):
                continue
            study = study or Study(recipe, read_splits(recipe), maps)
            measured = study.measure(name, seed, arguments.runs)
            print(name, seed, json.dumps(measured), flush=True)
            runs = read_runs(arguments.output)  # anew: another process may write other seeds
            runs.setdefault(name, {})[str(seed)] = measured
            write_json(arguments.output, {"runs": runs, "tables": [table(runs)]})
    if arguments.figure is not None:
        draw(read_runs(arguments.output), arguments.figure)


def read_runs(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Row -> seed -> what was measured."""
    return json.loads(file.read_text())["runs"] if file.exists() else {}


class Study:
    """The training questions, the objects they name, and the regions of these objects.

    Args:
        recipe: of every row, apart from the row's own keys.
        splits: with true relevance maps on the validation rows.
        maps: label maps of the training photos.
    """

    def __init__(self, recipe: Recipe, splits: Splits, maps: LabelMaps):
        self.recipe, self.splits, self.maps = recipe, splits, maps
        self.labels = sorted(filter(None, maps.names.values()))
        self.matcher = LabelMatcher(self.labels)
        self.sizes: dict[str, tuple[int, int]] = {}  # photo -> width and height
        train = splits.train
        self.photo_of: list[str] = train["image_id"][:]
        self.photos = sorted(set(self.photo_of))
        self.questions: list[str] = train["question"][:]
        self.answers = [max(given, key=lambda one: one["count"])["answer"] for given in train["answers"][:]]
        self.named = [
            [label for mention in self.matcher.mentions(question) for label in sorted(mention.labels)][:HOPS]
            for question in self.questions
        ]

    @cached_property
    def objects(self) -> dict[Object, list[tuple[Box, Mask, Box]]]:
        """The box, mask and point of each region of an object."""
        numbers = {name: number for number, name in self.maps.names.items()}
        found: dict[Object, list[tuple[Box, Mask, Box]]] = {}
        for photo in self.photos:
            pixels = self.maps.read(photo)
            self.sizes[photo] = (pixels.shape[1], pixels.shape[0])
            for label in self.labels:
                if regions := list(marked_regions(pixels == numbers[label])):
                    found[photo, label] = regions
        return found

    def order(self, row: Row, seed: int, without_marks: Path) -> list[int]:
        """The training questions in the order in which their objects are marked.

        Args:
            without_marks: the run of the row `no marks`, for `least_certain`.
        """
        generator, photos = random.Random(seed), list(self.photos)
        asked = list(range(len(self.questions)))
        if row.order == "least_certain":
            file = without_marks / "confidence.json"
            return sorted(asked, key=question_confidence(str(without_marks), self.splits.train, file).__getitem__)
        generator.shuffle(photos if row.order == "photos" else asked)
        if row.order == "photos":
            place = {photo: rank for rank, photo in enumerate(photos)}
            asked.sort(key=lambda index: place[self.photo_of[index]])
        return asked

    def marked(self, row: Row, asked: Sequence[int]) -> list[Object]:
        """The objects that the marks of `row` are enough for, each with all its regions.

        Args:
            asked: see `order`.
        """
        pairs = dict.fromkeys((self.photo_of[index], label) for index in asked for label in self.named[index])
        chosen, count = [], 0
        for pair in pairs:
            if pair in self.objects:
                count += len(self.objects[pair])
                if row.boxes is not None and count > row.boxes:
                    break
                chosen.append(pair)
        return chosen

    def region_maps(self, row: Row, chosen: Sequence[Object]) -> dict[Object, NDArray[np.float32]]:
        """The map [rows, columns] of each marked object, and with `spread` of the others that the questions name."""
        kind = ("box", "mask", "point").index(row.region)
        drawn = {}
        for photo, label in chosen:
            regions: list[Region] = [of[kind] for of in self.objects[photo, label]]
            marks = tuple(MarkedObject(photo, label, region) for region in regions)
            drawn[photo, label] = draw_objects(marks, self.sizes[photo], GRID)
        if not row.spread:
            return drawn
        number = {photo: index for index, photo in enumerate(self.photos)}
        asked = zip((number[photo] for photo in self.photo_of), self.questions, self.answers, strict=True)
        shown = shown_labels(asked, len(self.photos), self.labels, self.matcher)
        known = {(number[photo], self.labels.index(label)): one.ravel() for (photo, label), one in drawn.items()}
        learned = learn_word_regions(self.patches, shown, known)
        for picture, label in np.argwhere(shown):
            pair = (self.photos[picture], self.labels[label])
            drawn.setdefault(pair, learned[picture, label].reshape(GRID) / learned[picture, label].max())
        return drawn

    @cached_property
    def patches(self) -> torch.Tensor:
        """[I, N, C]: the principal components of the patches of the training photos."""
        model, processor = build_model(self.recipe, ["yes", "no"])
        freeze(model, self.recipe.freeze)
        splits: list[Any] = [self.splits.train, self.splits.validation]
        cache = cache_features(model, processor, splits, half=runnable_arguments(self.recipe).bf16)
        return principal_components(cache.read(self.photos)[:, -GRID[0] * GRID[1] :].float())

    def question_maps(self, row: Row, seed: int, regions: Mapping[Object, NDArray[np.float32]]) -> Maps:
        """The maps of the training questions that name an object with a region."""
        maps: Maps = {}
        for index, (photo, labels) in enumerate(zip(self.photo_of, self.named, strict=True)):
            hops = [regions.get((photo, label), np.zeros(GRID, np.float32)) for label in labels]
            if any(hop.any() for hop in hops):
                maps[index] = np.stack([*hops, *hops[-1:] * (HOPS - len(hops))])
        return self._of_other_questions(maps, seed) if row.of_other_questions else maps

    def _of_other_questions(self, maps: Maps, seed: int) -> Maps:
        """Each map goes to another question about its photo, the next one in random order."""
        rows = list(maps)
        random.Random(seed).shuffle(rows)
        rows.sort(key=lambda index: self.photo_of[index])
        groups = {photo: [index for index in rows if self.photo_of[index] == photo] for photo in self.photos}
        moved = ((index, group[place - 1]) for group in groups.values() for place, index in enumerate(group))
        return {index: maps[other] for index, other in moved if index != other}

    def drawn_by_model(self, checkpoint: Path) -> Maps:
        """The maps that a model draws for the training questions."""
        model, processor = load_checkpoint(str(checkpoint)), load_processor(str(checkpoint))
        collator = QuestionCollator(processor, model.config)
        order = sorted(range(len(self.questions)), key=self.photo_of.__getitem__)  # a photo once a batch
        drawn = predict(model, self.splits.train.select(order), collator, description="Drawing maps")["relevance"]
        return {index: maps / maps.max() for index, maps in zip(order, drawn, strict=True)}

    def measure(self, name: str, seed: int, runs: Path) -> dict[str, Any]:
        """Accuracy, pointing accuracy, marks and questions with maps of one run of the row `name`."""
        row, folder = ROWS[name], run_folder(runs, name, seed)
        chosen = self.marked(row, self.order(row, seed, run_folder(runs, "no marks", seed)))
        maps = self.question_maps(row, seed, self.region_maps(row, chosen))
        if row.taught_by is not None:
            maps = self.drawn_by_model(run_folder(runs, row.taught_by, seed)) | maps
        relevance = [maps[index].tolist() if index in maps else None for index in range(len(self.questions))]
        column = self.splits.train.features["relevance"]
        train = self.splits.train.remove_columns("relevance").add_column("relevance", relevance, feature=column)
        config = {key: value for key, value in row.recipe.items() if key in CONFIG_FIELDS}
        own = {key: value for key, value in row.recipe.items() if key not in CONFIG_FIELDS}
        run = {"output_dir": str(folder), "seed": seed, "eval_strategy": "no", "save_strategy": "no"}
        recipe = dataclasses.replace(
            self.recipe,
            config={**self.recipe.config, **config},
            arguments={**self.recipe.arguments, **run},
            baselines=[],
            **own,
        )
        results = TrainingRun(recipe, dataclasses.replace(self.splits, train=train)).train()
        return {
            "accuracy": results["metrics"]["accuracy"],
            **{kind: values["accuracy"] for kind, values in results["per_question_type"].items()},
            "pointing": results["attention"]["pointing"]["model"],
            "pointing_shuffled": results["attention"]["pointing"]["shuffled_question"],
            "marks": sum(len(self.objects[pair]) for pair in chosen),
            "with_maps": len(maps),
        }


def run_folder(runs: Path, row: str, seed: int) -> Path:
    return runs / row.replace(",", "") / f"seed{seed}"


def marked_regions(mask: NDArray[np.bool_]) -> Iterator[tuple[Box, Mask, Box]]:
    """The box, mask and point of the connected regions of a label that a person would mark.

    The point is the one farthest from the border of the region.
    """
    regions, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(regions.ravel())[1:]
    height, width = mask.shape
    for index, (down, across) in enumerate(ndimage.find_objects(regions)):
        if areas[index] < max(SPECK * mask.size, SMALL * areas.max()):
            continue
        region = regions == index + 1
        depth = ndimage.distance_transform_edt(np.pad(region[down, across], 1))[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        y, x = y + down.start, x + across.start
        point = Box(x - width * POINT / 2, y - height * POINT / 2, x + width * POINT / 2, y + height * POINT / 2)
        box = Box(float(across.start), float(down.start), float(across.stop), float(down.stop))
        yield box, Mask.from_array(region), point


def table(runs: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Means and standard deviations over the seeds."""
    columns = ["row", "seeds", "marks", "minutes", "questions with maps", "accuracy", "pointing", "pointing, shuffled"]
    rows = []
    for name in ROWS:
        if name not in runs:
            continue
        keys = ("marks", "with_maps", "accuracy", "pointing", "pointing_shuffled")
        of = {key: [run[key] for run in runs[name].values() if key in run] for key in keys}
        marks = np.mean(of["marks"])
        measured = [mean_cell(of[key]) for key in keys[2:]]
        counts = [f"{marks:,.0f}", f"{marks * SECONDS_A_BOX / 60:,.0f}", f"{np.mean(of['with_maps']):,.0f}"]
        rows.append([name, str(len(runs[name])), *counts, *measured])
    return {"columns": columns, "rows": rows}


def draw(runs: Mapping[str, Mapping[str, Mapping[str, Any]]], file: Path) -> None:
    """Accuracy and pointing accuracy over the number of marks, with and without regions of words."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axis, measure in zip(figure.subplots(1, 2), ("accuracy", "pointing"), strict=True):
        for suffix, color in (("", "#9db4c0"), (", regions of words", "#21918c")):
            names = [name + suffix for name in ("no marks", *COUNTS) if name + suffix in runs]
            if not names:
                continue
            points = [list(runs[name].values()) for name in names]
            marks = [np.mean([run["marks"] for run in of]) for of in points]
            values = [[run[measure] for run in of] for of in points]
            low, high = ([limit(of) for of in values] for limit in (min, max))
            axis.fill_between(marks, low, high, color=color, alpha=0.25, linewidth=0)
            axis.plot(marks, [np.mean(of) for of in values], "o-", color=color, label=f"marks{suffix}")
        axis.set_xscale("symlog", linthresh=50)
        axis.set_xticks([0, 50, 150, 500, 1500], ["0", "50", "150", "500", "1,500"])
        axis.set_xlabel(f"boxes ({60 // SECONDS_A_BOX} a minute)")
        axis.set_ylabel(f"{measure} accuracy" if measure == "pointing" else measure)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with atomic_write(file) as unfinished:
        figure.savefig(unfinished, format="png", dpi=110)


if __name__ == "__main__":
    main()
