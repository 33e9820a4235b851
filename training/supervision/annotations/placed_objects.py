"""The objects of an export, placed on the pictures that the questions of a table are about."""

from collections import Counter
from collections.abc import Mapping, Sequence

from ..asked_questions import AskedQuestion, AskedTable
from ..marked_objects import MarkedObject
from ..regions import SIDEWAYS, Size
from .export import Annotation, Export
from .pictures import Picture, PictureNames, open_picture
from .placement import Frame, find_frame, place


class PlacedObjects:
    """The objects of an export on the pictures of the tables.

    Args:
        tables: the questions.
        export: the annotations.
        orientation: the frame of their coordinates; by default `find_frame` finds it.

    Attributes:
        objects: `image_key` of a picture -> its objects, in pixels of the upright picture.
        notes: what was left out, and how coordinates were read.

    Raises:
        ValueError: the annotations do not fit the questions or pictures.
    """

    def __init__(self, tables: Sequence[AskedTable], export: Export, orientation: Frame | None) -> None:
        self._questions = [question for table in tables for question in table.questions]
        self._by_key = {question.image_key: question for question in self._questions}
        self._pictures: dict[str, Picture] = {}
        self.objects: dict[str, list[MarkedObject]] = {}
        found, self._elsewhere = self._find(export)
        pairs = [(annotation, self._picture(key)) for annotation, key in found]
        frame = orientation or find_frame(pairs)
        for (annotation, key), (_, picture) in zip(found, pairs, strict=True):
            name = self._by_key[key].image_name
            item = MarkedObject(
                name,
                annotation.label,
                place(annotation, picture, frame),
                annotation.annotator,
                annotation.question_id,
                annotation.hop,
            )
            self.objects.setdefault(key, []).append(item)
        self._check_ownerless()
        self.notes = self._notes(export, frame)

    @property
    def sizes(self) -> dict[str, Size]:
        """`image_key` of the pictures with objects -> width and height of the upright picture."""
        return {key: picture.size for key, picture in self._pictures.items()}

    def _find(self, export: Export) -> tuple[list[tuple[Annotation, str]], Counter[str]]:
        """(annotation, key of its picture), and the pictures of the export that no question is about."""
        names = PictureNames({key: question.image_name for key, question in self._by_key.items()})
        named = [item.image for item in export.annotations if item.image is not None and item.image_key is None]
        keys = names.find(dict.fromkeys(named), export.images)
        by_id: dict[str, list[AskedQuestion]] = {}
        for question in self._questions:
            by_id.setdefault(question.question_id, []).append(question)
        found, elsewhere = [], Counter[str]()
        for annotation in export.annotations:
            key = annotation.image_key or keys.get(annotation.image or "")
            if annotation.question_id is not None:
                key = self._checked(annotation, key, by_id)
            if key is None:
                elsewhere[annotation.image] += 1
            else:
                found.append((annotation, key))
        if not found:
            raise ValueError(
                f"no question is about a picture of the annotations: they name {next(iter(elsewhere))}, and the table "
                f"{self._questions[0].image_name}"
            )
        return found, elsewhere

    def _checked(
        self, annotation: Annotation, key: str | None, by_id: Mapping[str, Sequence[AskedQuestion]]
    ) -> str | None:
        """The key of the picture of an annotation that has a question_id. One question must have that id."""
        if not (asked := by_id.get(annotation.question_id or "")):
            raise ValueError(
                f"{annotation.place}: no question has the id {annotation.question_id!r}; an id is the column "
                f"question_id, or table and row such as {self._questions[0].question_id}"
            )
        about = [question for question in asked if annotation.image is None or question.image_key == key]
        if not about and key is not None:
            raise ValueError(
                f"{annotation.place}: the question {annotation.question_id} is about {asked[0].image_name}, and the "
                f"mark is on {annotation.image}; correct one of them"
            )
        for other in about:
            if (other.image_key, other.text) != (about[0].image_key, about[0].text):
                raise ValueError(
                    f"{annotation.place}: two questions have the id {annotation.question_id!r}: {about[0].place} and "
                    f"{other.place}; give each question an id of its own"
                )
        return about[0].image_key if annotation.image is None else key

    def _picture(self, key: str) -> Picture:
        if key not in self._pictures:
            self._pictures[key] = open_picture(self._by_key[key].image)
        return self._pictures[key]

    def _check_ownerless(self) -> None:
        """An object without a label and a question serves the only question about its picture."""
        asked = Counter(question.image_key for question in self._questions)
        ids = {question.image_key: question.question_id for question in self._questions}
        for key, items in self.objects.items():
            for index, item in enumerate(items):
                if item.label or item.question_id is not None:
                    continue
                if asked[key] > 1:
                    raise ValueError(
                        f"{item.image}: has {asked[key]} questions and an object without a label; add the columns "
                        "`label` or `question_id`"
                    )
                items[index] = MarkedObject(item.image, "", item.region, item.annotator, ids[key], item.hop)

    def _notes(self, export: Export, frame: Frame) -> list[str]:
        notes = [f"left out of the annotations: {text}"] if (text := export.left_out_text()) else []
        if self._elsewhere:
            example = next(iter(self._elsewhere))
            notes.append(f"annotated pictures without a question here: {len(self._elsewhere):,}, such as {example}")
        turned = sum(picture.orientation != 1 for picture in self._pictures.values())
        if turned:
            side = sum(picture.orientation in SIDEWAYS for picture in self._pictures.values())
            notes.append(
                f"photos that EXIF turns: {turned:,} (sideways: {side:,}); coordinates were read as those of the "
                f"{frame} photos"
            )
        return notes
