"""The report of `qca check`: both splits side by side, accuracies that need no training, problems and notes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

import datasets

from ..data.answers import AnswerRule
from ..data.image_digests import row_digests
from ..evaluation.accuracy import majority_accuracy
from .question_only import question_only_accuracy
from .split_counts import SplitCounts, count_split

SHOWN = 5  # unreadable images that are named
LABELS = {
    "rows": "rows",
    "images": "images",
    "copied_images": "images with the content of another",
    "answers": "different answers",
    "unanswered": "rows without an answer",
    "repeated": "rows that repeat an image and question",
    "conflicting": "image and question with conflicting answers",
    "mapped": "rows with a relevance map",
    "coverage": "share of rows with an answer in the vocabulary",
    "ceiling": "best possible accuracy (ceiling)",
}


@dataclass(frozen=True)
class DataReport:
    """
    Args:
        train, validation: what the splits hold.
        vocabulary: number of answers in the vocabulary.
        shared_images: number of image contents that are in both splits.
        majority: accuracy on validation of the best single training answer.
        question_only: see [`question_only_accuracy`].
        unreadable: place -> fault of each row whose image cannot be read. These rows are counted nowhere else.
        skips_unreadable: whether training leaves out such rows, rather than stopping.
        needs_maps: whether attention is to be supervised.
    """

    train: SplitCounts
    validation: SplitCounts
    vocabulary: int
    shared_images: int
    majority: float
    question_only: float
    unreadable: Mapping[str, str]
    skips_unreadable: bool = False
    needs_maps: bool = False

    def table(self) -> list[list[str]]:
        """A row for each count: its label, train, validation."""
        names = [field.name for field in fields(SplitCounts)]
        table = [
            [LABELS[name], *(_shown(getattr(of, name)) for of in (self.train, self.validation))] for name in names
        ]
        shared = str(self.shared_images)
        table.insert(names.index("copied_images") + 1, ["images that are also in the other split", shared, shared])
        return table

    def problems(self) -> list[str]:
        """What makes training fail or its results wrong."""
        found = []
        if self.unreadable and not self.skips_unreadable:
            found.append(f"{self._unreadable()}. Repair the images, or set `on_bad_image: skip`.")
        if self.shared_images:
            found.append(
                f"images in both train and validation: {self.shared_images}. The validation accuracy will be too "
                "high. Split by image, for example with `group_by: image_id`, and remove copies of images."
            )
        for name, counts in (("train", self.train), ("validation", self.validation)):
            if counts.coverage == 0:
                found.append(f"no {name} row has an answer in the vocabulary. Check the column of answers.")
        if self.needs_maps and not self.train.mapped:
            found.append("no training row has a relevance map. Add maps, or set `attention_supervision: none`.")
        return found

    def notes(self) -> list[str]:
        """What a user may want to mend."""
        found = [f"{self._unreadable()}. They are left out."] if self.unreadable and self.skips_unreadable else []
        for name, counts in (("train", self.train), ("validation", self.validation)):
            if counts.conflicting:
                found.append(f"{name}: {counts.conflicting} images and questions have conflicting answers.")
            if counts.copied_images:
                found.append(f"{name}: {counts.copied_images} images have the content of another image.")
            if counts.unanswered:
                found.append(f"{name}: {counts.unanswered} rows have no answer and are not trained or scored on.")
        return found

    def summary(self) -> list[str]:
        """The last lines: accuracies to compare a model with, and the problems."""
        lines = [
            f"Validation accuracy of the majority answer: {self.majority:.3f}",
            "Validation accuracy of the question alone (most frequent training answer to the same question): "
            f"{self.question_only:.3f}",
            f"Best possible validation accuracy with {self.vocabulary} answers: {self.validation.ceiling:.3f}",
        ]
        problems = self.problems()
        return lines + ([f"Problem: {problem}" for problem in problems] or ["No problems found."])

    def _unreadable(self) -> str:
        named = [f"{place}: {fault}" for place, fault in sorted(self.unreadable.items())[:SHOWN]]
        more = f"; and {len(self.unreadable) - SHOWN} more" if len(self.unreadable) > SHOWN else ""
        return f"rows whose image cannot be read: {len(self.unreadable)} ({'; '.join(named)}{more})"


def inspect_rows(
    train: datasets.Dataset,
    validation: datasets.Dataset,
    vocabulary: Iterable[str],
    rule: AnswerRule = "consensus",
    normalize: bool = True,
    *,
    unreadable: Mapping[str, str] | None = None,
    skips_unreadable: bool = False,
    needs_maps: bool = False,
) -> DataReport:
    """
    Inspect two splits. Reads the file of every image once, and decodes none.

    Args:
        train, validation: rows of the schema.
        vocabulary: the answers of the model.
        rule, normalize: how answers score, see [`answer_scores`].
        unreadable, skips_unreadable, needs_maps: of [`DataReport`].
    """
    answers = list(vocabulary)
    train_digests, validation_digests = row_digests(train), row_digests(validation)
    return DataReport(
        train=count_split(train, train_digests, answers, rule, normalize),
        validation=count_split(validation, validation_digests, answers, rule, normalize),
        vocabulary=len(answers),
        shared_images=len(set(train_digests) & set(validation_digests)),
        majority=majority_accuracy(train, validation, rule, normalize),
        question_only=question_only_accuracy(train, validation, rule, normalize),
        unreadable=unreadable or {},
        skips_unreadable=skips_unreadable,
        needs_maps=needs_maps,
    )


def _shown(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.3f}"
