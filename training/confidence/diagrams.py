"""Diagrams of confidence as SVG, for a page that needs no other file."""

from collections.abc import Iterable, Mapping, Sequence

SIDE, MARGIN = 240, 32  # pixels of the square of a diagram, and of the space for its labels
WHOLE = SIDE + 2 * MARGIN


def reliability_diagram(bins: Sequence[Mapping[str, float]]) -> str:
    """
    Accuracy against probability (DeGroot and Fienberg 1983). The area of a dot is the number of its questions.

    Args:
        bins: of `calibration_error.calibration_table`.
    """
    most = max(of["questions"] for of in bins)
    dots = [
        _circle(of["confidence"], of["accuracy"], 10 * (of["questions"] / most) ** 0.5, f"{of['questions']} questions")
        for of in bins
    ]
    diagonal = _line([(0.0, 0.0), (1.0, 1.0)], 'stroke-dasharray="4"')
    return _frame("Reliability", "probability", "accuracy", [diagonal, *dots])


def coverage_diagram(curve: Sequence[Mapping[str, float]]) -> str:
    """
    Accuracy against coverage.

    Args:
        curve: of `selective.selective_table`.
    """
    return _frame("Coverage", "share answered", "accuracy", [_line((of["coverage"], of["accuracy"]) for of in curve)])


def _frame(title: str, across: str, up: str, parts: Iterable[str]) -> str:
    middle, end = WHOLE / 2, WHOLE - 6
    texts = [(middle, 20, title), (middle, end, across), (MARGIN, end, "0"), (WHOLE - MARGIN, end, "1")]
    labels = "".join(f'<text x="{x:g}" y="{y:g}" text-anchor="middle">{text}</text>' for x, y, text in texts)
    turned = f'<text transform="translate(20 {middle:g}) rotate(-90)" text-anchor="middle">{up}</text>'
    box = f'<rect x="{MARGIN}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="currentColor"/>'
    inside = "".join(parts)
    return (
        f'<svg viewBox="0 0 {WHOLE} {WHOLE}" role="img" aria-label="{title}" font-size="12" fill="currentColor">'
        f"{box}{labels}{turned}{inside}</svg>"
    )


def _circle(x: float, y: float, radius: float, title: str) -> str:
    left, top = _place(x, y)
    return f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{max(radius, 2):.1f}"><title>{title}</title></circle>'


def _line(points: Iterable[tuple[float, float]], style: str = "") -> str:
    places = " ".join("{:.1f},{:.1f}".format(*_place(x, y)) for x, y in points)
    return f'<polyline points="{places}" fill="none" stroke="currentColor" {style}/>'


def _place(x: float, y: float) -> tuple[float, float]:
    return MARGIN + x * SIDE, MARGIN + (1 - y) * SIDE
