"""Check tiny encoders of every architecture and write docs/encoders.md: `python scripts/compatibility.py`.

The results are kept in docs/encoders.json; all encoders take minutes. `--only vision` or `--only text` checks one
kind. With `--check` no encoder is built: the page must show the stored results, and those must hold every encoder of
the lists and no fault.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from compatibility_checks import TEXT_CHECKS, text_model
from compatibility_encoders import text_encoders, vision_encoders
from transformers.utils import is_timm_available

from modeling_qca.layouts_qca import LAYOUTS
from modeling_qca.training.files.markdown import markdown_table
from modeling_qca.training.files.progress import track

DOCS = Path(__file__).parents[1] / "docs"
RESULTS, PAGE = DOCS / "encoders.json", DOCS / "encoders.md"
RIGHT = "right"
Row = dict[str, str]

HEADER = """# Encoders

`scripts/compatibility.py` builds a tiny encoder of each architecture with random weights, checks it, and writes this
page. The names are the `model_type` of a config, and an architecture of timm.

The results are of {versions}. Without timm, its encoders are refused.
A cell is *right*, or says why the encoder is refused. Every refusal is an error when the model is built.
"""
VISION = """## Vision encoders

*Maps*: a changed patch changes its own token most, in two pictures that are not square or in one of the encoder's only
size. *Inside*: the encoder takes `vision_conditioning_layers`, `token_budget` and `vision_feature_layers`.
"""
TEXT = """## Text encoders

*Padding* on either side changes no state of a token. Other questions of the *batch* change none. A changed word
changes its own state most (*words*). A question that is too long is refused with its *length*. *Gradients*: parameters
that no output reads are known to DistributedDataParallel.
"""


def vision_row(name: str, config: Any) -> Row:
    """Cells of a vision encoder."""
    from compatibility_encoders import compose, found_by_occlusion

    model = compose(config)
    found = found_by_occlusion(model)
    wrong = [size for size, is_found in found.items() if not is_found]
    return {"maps": f"wrong for {wrong[0]}" if wrong else RIGHT, "inside": "yes" if name in LAYOUTS else "no"}


def text_row(name: str, config: Any) -> Row:
    """Cells of a text encoder."""
    model = text_model(config)
    return {check: fault(model) or RIGHT for check, fault in TEXT_CHECKS.items()}


def checked(name: str, factory: Callable[[], Any], row: Callable[[str, Any], Row]) -> Row:
    """The cells of an encoder, or why it is refused."""
    try:
        return row(name, factory())
    except (ImportError, ValueError) as error:
        return {"refused": " ".join(re.split(r"[.;:] (?:Encoders|Pass an encoder|it fails)", str(error))[0].split())}
    except Exception as error:  # a fault of the table, whatever it is
        return {"unclear error": f"{type(error).__name__}: {error}"[:200]}


def page(results: dict[str, Any]) -> str:
    """The document with the tables of `results`."""
    parts = [HEADER.format(versions=" and ".join(results["versions"]))]
    for title, kind, columns in ((VISION, "vision", ["maps", "inside"]), (TEXT, "text", list(TEXT_CHECKS))):
        rows = []
        for name, cells in results[kind].items():
            other = [f"{outcome}: {reason}" for outcome, reason in cells.items() if outcome not in columns]
            rows.append([f"`{name}`", *([*other, *[""] * (len(columns) - 1)] if other else map(cells.get, columns))])
        parts.append(f"{title}\n{markdown_table(['encoder', *columns], rows)}\n")
    return "\n".join(parts)


def faults(results: dict[str, Any]) -> list[str]:
    """What must not be in the stored results."""
    found = []
    for kind, encoders in (("vision", vision_encoders()), ("text", text_encoders())):
        missing = {name for name, _ in encoders} - results[kind].keys()
        found += [f"{name} is not in {RESULTS.name}: run this without --check" for name in sorted(missing)]
        for name, cells in results[kind].items():
            allowed = cells.keys() == {"refused"} or set(cells.values()) <= {RIGHT, "yes", "no"}
            found += [] if allowed else [f"{name}: {cells}"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the page with the stored results")
    parser.add_argument("--only", choices=["vision", "text"], help="the kind of encoders to check again")
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if arguments.check or arguments.only else {}
    if not arguments.check:
        packages = ["transformers", *(["timm"] if is_timm_available() else [])]
        results["versions"] = [f"{name} {version(name)}" for name in packages]
        for kind, encoders, row in (("vision", vision_encoders, vision_row), ("text", text_encoders, text_row)):
            if arguments.only in (None, kind):
                listed = track(list(encoders()), f"{kind} encoders")
                results[kind] = {name: checked(name, factory, row) for name, factory in listed}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        PAGE.write_text(page(results))
    elif PAGE.read_text() != page(results):
        sys.exit(f"{PAGE} differs from {RESULTS}: run this without --check")
    if found := faults(results):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
