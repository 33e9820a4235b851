"""Boxes that a zero-shot detector finds for the phrases of the questions."""

from collections.abc import Sequence

from modeling_qca.image_qca import open_image

from ..annotations.export import Annotation, Export, fixed
from ..asked_questions import AskedTable
from .detector import Detector, detect_objects

DETECTIONS_FILE = "detections.jsonl"


def read_detections(tables: Sequence[AskedTable], source: str | None, threshold: float) -> Export:
    """The detections in the pictures of the tables. They are stored beside the first table, and kept for a later call.

    Args:
        tables: the questions, whose phrases are looked for.
        source: folder or Hub id of a model of zero-shot object detection.
        threshold: lowest score of a detection.

    Raises:
        ValueError: see `Detector`; or no model is given, or a picture cannot be read.
    """
    if source is None:
        raise ValueError("--from detector needs --detector, the folder or Hub id of a zero-shot detection model")
    questions = [question for table in tables for question in table.questions]
    images = {question.image_name: question.image for question in questions}
    file = tables[0].path.with_name(DETECTIONS_FILE)
    found = detect_objects(
        [(question.image_name, question.text) for question in questions],
        lambda name: open_image(image if isinstance(image := images[name], str) else dict(image)),
        Detector(source, threshold),
        file,
    )
    if not found:
        raise ValueError(
            f"{source}: no detection in {len(images):,} pictures scores above {threshold}; try a lower one"
        )
    return Export(
        [
            Annotation(f"{file} {item.image}", item.image, item.label, fixed(item.region), upright=True)
            for item in found
        ]
    )
