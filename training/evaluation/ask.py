"""`qca ask`: answers of a checkpoint to questions about one image."""

from pathlib import Path
from typing import Any

from .checkpoint import load_pipeline


def answer_questions(
    checkpoint: str, image: str, questions: list[str], top_k: int, overlay: Path | None
) -> list[tuple[str, list[dict[str, Any]], Path | None]]:
    """
    Args:
        checkpoint: folder or Hub id.
        image: file or URL; encoded once.
        overlay: picture with the relevance map; for several questions, `out.png` becomes `out-1.png`, `out-2.png`, ...

    Returns:
        For each question: the question, its answers (`{"answer", "score"}`, best first) and the file of its overlay.

    Raises:
        ValueError: a checkpoint or image that cannot be read, or an empty or too long question.
    """
    pipeline = load_pipeline(checkpoint)
    if overlay is None:
        answers = pipeline(image, questions, top_k=top_k)
        return [(question, found, None) for question, found in zip(questions, answers, strict=True)]
    answered = []
    explanations: Any = pipeline.look(image, questions, top_k=top_k)
    for number, explanation in enumerate(explanations, start=1):
        path = overlay if len(explanations) == 1 else overlay.with_stem(f"{overlay.stem}-{number}")
        explanation.overlay().save(path)
        answered.append((explanation.question, explanation.answers, path))
    return answered
