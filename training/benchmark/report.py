"""The report and the plot of the benchmark."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files.atomic_write import atomic_write
from ..files.markdown import markdown_table, select_cells

REFERENCE = "vilt"
COMPARED = {
    "one_pair": "one pair",
    "batch_8": "batch of 8 pairs",
    "one_image_16_questions": "16 questions on one image",
    "train_8_questions": "training step, 8 questions on one image",
}
FIXED = {
    "fixed_questions": "12 fixed questions on each of 4 images, text features cached",
    "one_pair_fixed_question": "one pair, text features cached",
}
IMPLEMENTATIONS = {"implementations_one_pair": "one pair", "implementations_batch_8": "batch of 8 pairs"}
MEMORY = {"memory_batch_8": "batch of 8 pairs", "memory_train_8_questions": "training step"}
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
    """The measurements as Markdown, a section for each comparison."""
    settings, cases, peak = results["settings"], results["cases"], results.get("matmul_peak", {})
    packages = ", ".join(f"{name} {number}" for name, number in settings["packages"].items())
    introduction = (
        f"Random weights of the published sizes on {settings['device']}, {settings['threads']} threads; medians of "
        f"{settings['rounds']} rounds in turn, with quartiles; {packages}."
    )
    if settings["quick"]:
        introduction += "\n**A quick run with narrow models: it shows that the program runs, and measures nothing.**"
    parts = [introduction]
    for name, title in (COMPARED | FIXED).items():
        if name in cases:
            parts += [f"### {title[0].upper()}{title[1:]}", _compared(cases[name], peak)]
    if "vision_encoder" in cases:
        whole, encoder = (row["median_s"] for row in cases["vision_encoder"])
        parts.append(
            f"With 12 fixed questions on each of 4 images, the vision encoder takes {encoder / whole:.0%} of the time "
            f"of qca: {_ms(encoder)} of {_ms(whole)} ms."
        )
    for name, title in IMPLEMENTATIONS.items():
        if name in cases:
            parts += [f"### Precision, attention and compilation, {title}", _compared(cases[name], peak)]
    if "agreement" in results:
        share, pairs = results["agreement"]["agreement"], results["agreement"]["pairs"]
        parts.append(f"A trained checkpoint gives the same answer in bfloat16 to {share:.1%} of {pairs} pairs.")
    if "prediction" in results:
        parts += ["### Photos a second of qca predict", _prediction(results["prediction"])]
    if "questions" in cases:
        parts += ["### Questions about one image", _questions(cases["questions"])]
    if "zoom" in cases:
        parts += ["### One window of a picture", _zoom(cases["zoom"])]
    for name, title in MEMORY.items():
        if name in cases:
            sizes = [[row["model"], f"{row['peak_bytes'] / 2**30:.2f}"] for row in cases[name]]
            parts += [f"### Peak memory, {title}", markdown_table(["model", "GiB"], sizes)]
    return "\n\n".join(parts) + "\n"


def render_short_report(results: dict[str, Any], models: Sequence[str] = (), cases: Sequence[str] = ()) -> str:
    """Milliseconds of each model in each comparison, and their ratio to those of ViLT.

    Args:
        models, cases: the rows and columns to show; all if empty.
    """
    settings = results["settings"]
    measured = {title: results["cases"][name] for name, title in COMPARED.items() if name in results["cases"]}
    dtype = next(iter(measured.values()))[0]["dtype"]
    times = [{row["model"]: row["median_s"] for row in reversed(rows)} for rows in measured.values()]
    cells = [
        [model, *(f"{_ms(each[model])} ({each[model] / each[REFERENCE]:.2f})" for each in times)]
        for model in reversed(times[0])
    ]
    table = markdown_table(*select_cells([f"ms (x {REFERENCE})", *measured], cells, models, cases))
    return f"{table}\n\n{settings['device']}, {settings['threads']} threads, {dtype}; medians.\n"


def _compared(rows: Sequence[dict[str, Any]], peak: dict[str, float]) -> str:
    """One line a row, with ratios to ViLT in the same precision and compilation, and to the model's first row."""
    first = {row["model"]: row["median_s"] for row in reversed(rows)}
    reference = {(r["dtype"], r["compiled"]): r["median_s"] for r in reversed(rows) if r["model"] == REFERENCE}
    header = ["model", "dtype", "attention", "ms", "quartiles", "GFLOP", "share of peak"]
    several_ways = len(first) < len(rows)
    header += [f"x {REFERENCE}"] * bool(reference) + ["x its first row"] * several_ways
    table = []
    for row in rows:
        median = row["median_s"]
        attention = row["attention"] + (", compiled" if row["compiled"] else "")
        quartiles = f"{_ms(row['quartile_1_s'])} to {_ms(row['quartile_3_s'])}"
        share = row["flops"] / median / peak[row["dtype"]]
        cells = [row["model"], row["dtype"], attention, _ms(median), quartiles]
        cells += [f"{row['flops'] / 1e9:.1f}", f"{share:.0%}"]
        if reference:
            same_way = reference.get((row["dtype"], row["compiled"]))
            cells.append(f"{median / same_way:.2f}" if same_way else "")
        table.append(cells + ([f"{median / first[row['model']]:.2f}"] if several_ways else []))
    return markdown_table(header, table)


def _questions(rows: Sequence[dict[str, Any]]) -> str:
    models = list(dict.fromkeys(row["model"] for row in rows))
    counts = sorted({row["questions"] for row in rows})
    median = {(row["model"], row["questions"]): row["median_s"] / row["questions"] for row in rows}
    table = [
        [str(count), *(_ms(median[model, count]) for model in models), min(models, key=lambda m: median[m, count])]
        for count in counts
    ]
    return markdown_table(["questions", *(f"{model}, ms a question" for model in models), "cheapest"], table)


def _zoom(rows: Sequence[dict[str, Any]]) -> str:
    header = ["model", "pixels of a side", "questions about one image", "ms", "GFLOP"]
    table = [
        [
            f"{row['model']}, 1 window at {row['zoom']} x" if row["zoom"] > 1 else f"{row['model']}, whole picture",
            *(str(row[key]) for key in ("resolution", "questions")),
            _ms(row["median_s"]),
            f"{row['flops'] / 1e9:.1f}",
        ]
        for row in rows
    ]
    return markdown_table(header, table)


def _prediction(measured: dict[str, Any]) -> str:
    names = {"preprocessing": "decode and resize", "model": "the model alone", "predict": "qca predict"}
    table = markdown_table(
        ["", "photos a second"], [[title, f"{measured[name]:.4g}"] for name, title in names.items()]
    )
    return (
        f"{measured['preset']}, {measured['photos']} JPEG photos of 640 x 480 pixels with {measured['questions']} "
        f"questions each. `qca predict` reaches {measured['ratio']:.0%} of the model's own speed.\n\n{table}"
    )


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
