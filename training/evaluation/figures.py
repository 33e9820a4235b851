"""Figures of explanations, faithfulness and results, drawn with matplotlib.

They need the `figures` extra: `pip install "modeling-qca[figures]"`.
"""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from modeling_qca.explanation_qca import VisualExplanation
from modeling_qca.overlay_qca import strip

from ..files.atomic_write import atomic_write

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('Figures are drawn with matplotlib: pip install "modeling-qca[figures]"') from error


logger = logging.getLogger(__name__)
FRAME_MILLISECONDS = 1200
BAR, BEST = "#9db4c0", "#21918c"


def explanation_figure(explanation: VisualExplanation) -> Figure:
    """The image, the map of each hop, the most important words, and the answers as bars."""
    panels = [explanation.overlay(index, caption=False) for index in range(len(explanation.relevance))]
    columns = len(panels) + 2
    height = 3.0 * explanation.image.height / explanation.image.width
    figure = Figure(figsize=(3.2 * columns, min(max(height, 2.2), 6.0) + 0.9), layout="constrained")
    words = f"\nwithout the word: {explanation.important_words(3)}"
    figure.suptitle(f"{explanation.question}{words}", parse_math=False)
    axes = figure.subplots(1, columns)
    axes[0].imshow(explanation.image)
    axes[0].set_title("image", fontsize=10)
    for index, (axis, panel) in enumerate(zip(axes[1:-1], panels, strict=True)):
        axis.imshow(panel)
        axis.set_title(_map_name(explanation, index), fontsize=10, parse_math=False)
    for axis in axes[:-1]:
        axis.set_axis_off()
        axis.set_anchor("N")
    _answer_bars(axes[-1], explanation)
    return figure


def questions_figure(explanations: Sequence[VisualExplanation]) -> Figure:
    """The last map of each question about one image, side by side, with the question and its answer."""
    image = explanations[0].image
    size = (3.6 * len(explanations), 3.6 * image.height / image.width + 1)
    figure = Figure(figsize=size, layout="constrained")
    for axis, explanation in zip(figure.subplots(1, len(explanations), squeeze=False)[0], explanations, strict=True):
        axis.imshow(explanation.overlay(caption=False))
        axis.set_title(explanation.caption, fontsize=10, wrap=True, parse_math=False)
        axis.set_axis_off()
    return figure


def hop_strip(explanation: VisualExplanation) -> Image.Image:
    """The image and its overlays with each map, side by side."""
    return strip([explanation.image, *(explanation.overlay(index) for index in range(len(explanation.relevance)))])


def hop_frames(explanation: VisualExplanation) -> list[Image.Image]:
    """The frames of an animation, all of one size: the image, then its overlay with each map."""
    frames = [explanation.overlay(index) for index in range(len(explanation.relevance))]
    first = Image.new("RGB", frames[0].size, "white")
    first.paste(explanation.image, (0, 0))
    return [first, *frames]


def faithfulness_figure(results: dict[str, Any]) -> Figure:
    """Deletion and insertion curves of `faithfulness_curves`, most relevant patches first, with their areas."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    verbs = {"deletion": "removed", "insertion": "restored"}
    for axis, (curve, verb) in zip(axes, verbs.items(), strict=True):
        for source, curves in results["curves"].items():
            area = results["auc"][source][curve]["positive"]["probability"]
            axis.plot(
                results["fractions"],
                curves[curve]["positive"]["probability"],
                marker="o",
                markersize=3,
                label=f"{source.replace('_', ' ')} ({area:.3f})",
            )
        axis.set_xlabel(f"share of patches {verb}, most relevant first")
        axis.set_title(f"{curve}, {results['questions']} questions", fontsize=10)
        axis.legend(fontsize=8, title="AUC in brackets", title_fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("probability of the answer")
    return figure


def rows_figure(summary: dict[str, Any]) -> Figure:
    """
    The accuracy of each row beside the majority answer, and its pointing accuracy beside the shuffled-question control
    and the map of the center. Bars are standard deviations.

    Args:
        summary: of `results_summary.summarize`.
    """
    rows = summary["rows"][::-1]
    figure = Figure(figsize=(10, 1.2 + 0.28 * len(rows)), layout="constrained")
    pointing = [row["attention"].get("pointing", {}) for row in rows]
    answered, *others = figure.subplots(1, 1 + any(pointing), sharey=True, squeeze=False)[0]
    answered.set_yticks(range(len(rows)), [row["name"] for row in rows], parse_math=False)
    answered.set_ylim(-0.6, len(rows) - 0.4)
    _spreads(answered, [row["accuracy"]["all"] for row in rows], BEST, "this row")
    answered.axvline(summary["majority"], color=BAR, linestyle=":", label="majority answer")
    for looked in others:
        shuffled = [sources.get("shuffled_question") for sources in pointing]
        _spreads(looked, shuffled, BAR, "its map for another question")
        _spreads(looked, [sources.get("model") for sources in pointing], BEST)
        center = next(sources["center"]["mean"] for sources in pointing if sources)
        looked.axvline(center, color=BAR, linestyle="--", label="map of the center")
    for axis, title in zip((answered, *others), ("accuracy", "pointing"), strict=False):
        axis.set_title(title, fontsize=10)
        axis.set_xlim(left=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return figure


def explain_to_files(
    checkpoint: str, image: str, questions: list[str], output_dir: Path, method: str = "relevance", top_k: int = 5
) -> list[Path]:
    """
    Write the relevance maps of a checkpoint for questions about one image.

    Question n gets `n.png` (image, maps and answers) and `n-overlay.png`; with several maps `n-hops.png` and
    `n-hops.gif`; with a token budget `n-kept.png`. Several questions also get `questions.png`. `explanation.json` has
    the numbers.

    Args:
        checkpoint: folder or Hub id.
        image: file or URL.
        method: of `explain`.

    Returns:
        The files written.

    Raises:
        ValueError: a checkpoint or image that cannot be read, an empty question or an unknown method.
    """
    from .checkpoint import load_pipeline

    pipeline = load_pipeline(checkpoint)
    explanations: Any = pipeline.look(image, questions, method=method, top_k=top_k)
    if explanations[0].method != method:
        logger.warning("%s has no hops: the pictures show the gradient of the answer's score", checkpoint)
    output_dir.mkdir(parents=True, exist_ok=True)
    written = []
    for number, explanation in enumerate(explanations, start=1):
        written += [
            write_figure(explanation_figure(explanation), output_dir / f"{number}.png"),
            write_picture(explanation.overlay(), output_dir / f"{number}-overlay.png"),
        ]
        if len(explanation.relevance) > 1:
            written.append(write_picture(hop_strip(explanation), output_dir / f"{number}-hops.png"))
            written.append(write_animation(hop_frames(explanation), output_dir / f"{number}-hops.gif"))
        if explanation.kept is not None:
            written.append(write_picture(explanation.kept_patches(), output_dir / f"{number}-kept.png"))
    if len(explanations) > 1:
        written.append(write_figure(questions_figure(explanations), output_dir / "questions.png"))
    numbers = {"image": image, "questions": [_numbers(explanation) for explanation in explanations]}
    text = json.dumps(numbers, indent=2, ensure_ascii=False) + "\n"
    return [*written, _write(text.encode(), output_dir / "explanation.json")]


def write_figure(figure: Figure, path: Path) -> Path:
    """Write `figure` whole or not at all, in the format of the suffix of `path`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=150)
    return _write(buffer.getvalue(), path)


def write_picture(picture: Image.Image, path: Path) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, format=path.suffix[1:])
    return _write(buffer.getvalue(), path)


def write_animation(frames: list[Image.Image], path: Path) -> Path:
    """A GIF that repeats."""
    buffer = io.BytesIO()
    frames[0].save(buffer, "gif", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0)
    return _write(buffer.getvalue(), path)


def _write(content: bytes, path: Path) -> Path:
    with atomic_write(path) as unfinished:
        unfinished.write_bytes(content)
    return path


def _spreads(axis: Any, spreads: list[dict[str, Any] | None], color: str, label: str | None = None) -> None:
    places = [place for place, spread in enumerate(spreads) if spread is not None]
    means, deviations = ([spreads[place][of] for place in places] for of in ("mean", "std"))
    axis.errorbar(means, places, xerr=deviations, fmt="o", markersize=4, color=color, label=label)


def _answer_bars(axis: Any, explanation: VisualExplanation) -> None:
    names = [answer["answer"] for answer in explanation.answers][::-1]
    scores = [answer["score"] for answer in explanation.answers][::-1]
    bars = axis.barh(range(len(names)), scores, color=[BAR] * (len(names) - 1) + [BEST])
    axis.set_yticks(range(len(names)), names, fontsize=9, parse_math=False)
    axis.bar_label(bars, [f"{score:.0%}" for score in scores], padding=3, fontsize=8)
    axis.set_xlim(0, 1.15)
    axis.set_xticks([])
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.set_title("answer", fontsize=10)


def _map_name(explanation: VisualExplanation, index: int) -> str:
    """The title of a map: its hop, or the method that gives a single map."""
    return f"hop {index + 1}" if len(explanation.relevance) > 1 else explanation.method


def _numbers(explanation: VisualExplanation) -> dict[str, Any]:
    return {
        "question": explanation.question,
        "method": explanation.method,
        "answers": explanation.answers,
        "words": explanation.words,
        "relevance": explanation.relevance.tolist(),
        "windows": explanation.windows,
        "kept": None if explanation.kept is None else explanation.kept.tolist(),
    }
