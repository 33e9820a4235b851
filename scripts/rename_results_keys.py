"""Give results files of release 0.1 today's keys and names: `python scripts/rename_results_keys.py FILE...`."""

import json
import sys
from pathlib import Path
from typing import Any

KEYS = {"centre": "center", "control": "baseline", "moving_average": "ema_decay"}
RECIPE_KEYS = {"relevance": "attention_supervision"}  # outside of a recipe `relevance` is a measured source
ROWS = {"source document's stack": "reference model", "document": "reference"}
VALUES = {
    "answer_query": {"asked": "initial"},
    "attention_supervision": {"final": "last_hop"},
    "baseline": {"document": "reference_model"},
    "model": ROWS,
    "name": ROWS,
}


def renamed(content: Any, in_recipe: bool = False) -> Any:
    """`content` with today's keys and names."""
    if isinstance(content, list):
        return [renamed(value, in_recipe) for value in content]
    if not isinstance(content, dict):
        return content
    keys = KEYS | RECIPE_KEYS if in_recipe else KEYS
    result = {}
    for key, value in content.items():
        new = keys.get(key, key)
        if isinstance(value, str):
            value = VALUES.get(new, {}).get(value, value)
        if new == "label" and value.startswith("document "):
            value = "reference " + value.removeprefix("document ")
        result[new] = renamed(value, in_recipe=new == "recipe")
    return result


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(json.dumps(renamed(json.loads(path.read_text())), indent=2) + "\n")


if __name__ == "__main__":
    main()
