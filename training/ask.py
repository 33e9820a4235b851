"""Questions about one image, answered by a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_qca import QCAForVisualQuestionAnswering, QCAProcessor, QCAVisualQuestionAnsweringPipeline
from modeling_qca.overlay_qca import overlay as draw_overlay
from modeling_qca.processing_qca import open_image

from .building import load_checkpoint


@dataclass(frozen=True)
class Answered:
    """A question, its answers (`{"answer", "score"}`, best first), and the picture of where the model looked."""

    question: str
    answers: list[dict[str, Any]]
    overlay: Path | None


def load_pipeline(checkpoint: str) -> QCAVisualQuestionAnsweringPipeline:
    """The checkpoint's model and processor, by the installed code.

    Raises:
        ValueError: where there is no checkpoint of such a model.
    """
    model: QCAForVisualQuestionAnswering = load_checkpoint(checkpoint)
    return QCAVisualQuestionAnsweringPipeline(model=model, processor=QCAProcessor.from_pretrained(checkpoint))


def answer_questions(
    checkpoint: str, image: str, questions: list[str], top_k: int, overlay: Path | None
) -> list[Answered]:
    """
    Args:
        checkpoint: folder or Hub id.
        image: file or URL; encoded once.
        overlay: picture to write; of several questions, `out.png` becomes `out-1.png`, `out-2.png`, ...

    Raises:
        ValueError: for a checkpoint or image that cannot be read, or an empty or too long question.
    """
    pipeline = load_pipeline(checkpoint)
    picture = open_image(image)
    results = pipeline(picture, questions, top_k=top_k, return_relevance=True)
    answered = []
    for number, (question, result) in enumerate(zip(questions, results, strict=True), start=1):
        path = None
        if overlay is not None:
            path = overlay if len(questions) == 1 else overlay.with_stem(f"{overlay.stem}-{number}")
            best = result["answers"][0]
            draw_overlay(picture, result["relevance"][-1], f"{question} {best['answer']} ({best['score']:.0%})").save(
                path
            )
        answered.append(Answered(question, result["answers"], path))
    return answered
