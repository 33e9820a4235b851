"""Check that a document is short and plain: at most 1,000 words, 150 lines, and 25 words in a sentence.

`python scripts/check_language.py README.md`
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

WORDS, LINES, SENTENCE = 1000, 150, 25
# code, comments and tags are no sentences
REMOVED = re.compile(r"```.*?```|<!--.*?-->|<[^>]+>", re.DOTALL)
IMAGE, LINK, CODE = re.compile(r"!\[[^]]*\]\([^)]*\)"), re.compile(r"\[([^]]*)\]\([^)]*\)"), re.compile(r"`[^`]*`")
BLOCK = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*|#>]|\d+\. ))")  # paragraphs, items, rows of tables, headings


def problems(text: str) -> Iterator[str]:
    """What is too long in the Markdown `text`."""
    words, lines = len(text.split()), len(text.splitlines())
    if words > WORDS:
        yield f"{words} words; at most {WORDS}"
    if lines > LINES:
        yield f"{lines} lines; at most {LINES}"
    for sentence in sentences(text):
        length = sum(any(letter.isalnum() for letter in word) for word in sentence.split())
        if length > SENTENCE:
            yield f"a sentence of {length} words; at most {SENTENCE}: {sentence}"


def sentences(text: str) -> Iterator[str]:
    """The sentences of `text` without its code blocks and tables; code within a line counts as one word."""
    plain = CODE.sub("code", LINK.sub(r"\1", IMAGE.sub("", REMOVED.sub("\n\n", text))))
    for block in BLOCK.split(plain):
        if not block.lstrip().startswith("|"):
            yield from (sentence for sentence in re.split(r"(?<=[.!?])\s+", " ".join(block.split())) if sentence)


def main(paths: list[str]) -> int:
    """Print the problems of each document; 1 if there are any."""
    found = [f"{path}: {problem}" for path in paths for problem in problems(Path(path).read_text(encoding="utf-8"))]
    print("\n".join(found) if found else f"{len(paths)} documents are short and plain")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
