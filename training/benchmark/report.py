"""The benchmark's table and plot, from its measurements."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.atomic_write import atomic_write

REFERENCE = "vilt"
COMPARED = {
    "one_pair": "one pair",
    "batch_8": "batch of 8 pairs",
    "one_image_16_questions": "16 questions on one image",
    "train_8_questions": "training step, 8 questions on one image",
}
GROWTH = {
    "questions": ("questions", "questions about one image", "ms a question"),
    "resolution": ("resolution", "pixels of a side", "ms a pair"),
    "hops": ("hops", "hops", "ms for 16 questions, image features cached"),
    "patches": ("resolution", "patches", "ms for 16 questions, image features cached"),
}
PATCH_SIZE = 16


def write_report(results: dict[str, Any], folder: Path) -> None:
    """`benchmark.md`, and `benchmark.png` where growth was measured."""
    with atomic_write(folder / "benchmark.md") as unfinished:
        unfinished.write_text(render_report(results))
    measured = [name for name in GROWTH if name in results["cases"]]
    if measured:
        _plot(results, measured, folder / "benchmark.png")


def render_report(results: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    settings, cases = results["settings"], results["cases"]
    packages = ", ".join(f"{name} {number}" for name, number in settings["packages"].items())
    lines = [
        f"Random weights of the published sizes on {settings['device']}, {settings['threads']} threads; medians of "
        f"{settings['rounds']} rounds in turn, with quartiles; {packages}.",
    ]
    if settings["quick"]:
        lines.append("**A quick run with narrow models: it shows that the program runs, and measures nothing.**")
    for name, title in COMPARED.items():
        if name in cases:
            lines += ["", f"### {title[0].upper()}{title[1:]}", "", *_compared(cases[name], results["matmul_peak"])]
    for name, title in (("implementations_one_pair", "one pair"), ("implementations_batch_8", "batch of 8 pairs")):
        if name in cases:
            rows = _compared(cases[name], results["matmul_peak"])
            lines += ["", f"### Precision, attention and compilation, {title}", "", *rows]
    if "agreement" in results:
        share, pairs = results["agreement"]["agreement"], results["agreement"]["pairs"]
        lines += ["", f"A trained checkpoint gives the same answer in bfloat16 to {share:.1%} of {pairs} pairs."]
    if "questions" in cases:
        lines += ["", "### Questions about one image", "", *_questions(cases["questions"])]
    for name, title in (("memory_batch_8", "batch of 8 pairs"), ("memory_train_8_questions", "training step")):
        if name in cases:
            sizes = [[row["model"], f"{row['peak_bytes'] / 2**30:.2f}"] for row in cases[name]]
            lines += ["", f"### Peak memory, {title}", "", *markdown_table(["model", "GiB"], sizes)]
    return "\n".join(lines) + "\n"


def render_short_report(results: dict[str, Any]) -> str:
    """Milliseconds of each model for each thing the models are compared in, and how many times those of ViLT."""
    settings, cases = results["settings"], results["cases"]
    measured = {title: cases[name] for name, title in COMPARED.items() if name in cases}
    dtype = next(iter(measured.values()))[0]["dtype"]
    times = [{row["model"]: row["median_s"] for row in reversed(rows)} for rows in measured.values()]
    cells = [
        [model, *(f"{_ms(each[model])} ({each[model] / each[REFERENCE]:.2f})" for each in times)]
        for model in reversed(times[0])
    ]
    lines = markdown_table([f"ms (x {REFERENCE})", *measured], cells)
    return "\n".join([*lines, "", f"{settings['device']}, {settings['threads']} threads, {dtype}; medians."]) + "\n"


def _compared(rows: Sequence[dict[str, Any]], peak: dict[str, float]) -> list[str]:
    """One line a row, beside ViLT in the same precision and as much compiled, and the first row of the same model."""
    first = {row["model"]: row["median_s"] for row in reversed(rows)}
    reference = {(r["dtype"], r["compiled"]): r["median_s"] for r in reversed(rows) if r["model"] == REFERENCE}
    header = ["model", "dtype", "attention", "ms", "quartiles", "GFLOP", "share of peak"]
    beside_itself = len(first) < len(rows)
    header += [f"x {REFERENCE}"] * bool(reference) + ["x its first row"] * beside_itself
    table = []
    for row in rows:
        median = row["median_s"]
        attention = row["attention"] + (", compiled" if row["compiled"] else "")
        quartiles = f"{_ms(row['quartile_1_s'])} to {_ms(row['quartile_3_s'])}"
        share = row["flops"] / median / peak[row["dtype"]]
        cells = [row["model"], row["dtype"], attention, _ms(median), quartiles]
        cells += [f"{row['flops'] / 1e9:.1f}", f"{share:.0%}"]
        if reference:
            alike = reference.get((row["dtype"], row["compiled"]))
            cells.append(f"{median / alike:.2f}" if alike else "")
        table.append(cells + ([f"{median / first[row['model']]:.2f}"] if beside_itself else []))
    return markdown_table(header, table)


def _questions(rows: Sequence[dict[str, Any]]) -> list[str]:
    models = list(dict.fromkeys(row["model"] for row in rows))
    counts = sorted({row["questions"] for row in rows})
    median = {(row["model"], row["questions"]): row["median_s"] / row["questions"] for row in rows}
    table = [
        [str(count), *(_ms(median[model, count]) for model in models), min(models, key=lambda m: median[m, count])]
        for count in counts
    ]
    return markdown_table(["questions", *(f"{model}, ms a question" for model in models), "cheapest"], table)


def markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.4g}" if seconds < 10 else f"{1000 * seconds:.0f}"


def _plot(results: dict[str, Any], measured: list[str], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(measured), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True):
        field, horizontal, vertical = GROWTH[name]
        rows = results["cases"][name]
        for model in dict.fromkeys(row["model"] for row in rows):
            of_model = [row for row in rows if row["model"] == model]
            places = [row[field] for row in of_model]
            if name == "patches":
                places = [(size // PATCH_SIZE) ** 2 for size in places]
            each = [row["questions"] if name == "questions" else 1 for row in of_model]
            times, low, high = (
                [1000 * row[key] / count for row, count in zip(of_model, each, strict=True)]
                for key in ("median_s", "quartile_1_s", "quartile_3_s")
            )
            (line,) = axis.plot(places, times, marker="o", label=model)
            axis.fill_between(places, low, high, alpha=0.2, color=line.get_color())
        axis.set(xlabel=horizontal, ylabel=vertical, ylim=(0, None))
        if name == "questions":
            axis.set_xscale("log", base=2)
        axis.legend()
    with atomic_write(file) as unfinished:
        figure.savefig(unfinished, dpi=120)
