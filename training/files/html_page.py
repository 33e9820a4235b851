"""Reports as self-contained HTML pages: one frame, and all text escaped."""

from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

from .run_files import format_value

FRAME = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
figure { margin: 0; }
img { max-width: 100%; display: block; }
figcaption { font-size: .9rem; max-width: 36rem; }
.quiet { opacity: .7; }
STYLE</style>
</head>
<body>
<h1>{{ title }}</h1>
BODY</body>
</html>
"""


def render_page(
    body: str, style: str, values: Mapping[str, Any], filters: Mapping[str, Callable] | None = None
) -> str:
    """The text of a page.

    Args:
        body: the Jinja template below the title.
        style: the CSS of its elements.
        values: of the template, among them `title`. A value that the template lacks is an error.
        filters: of the template, besides `number`.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"number": format_value, **(filters or {})}
    return environment.from_string(FRAME.replace("STYLE", style).replace("BODY", body)).render(values)
