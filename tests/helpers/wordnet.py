"""A small database in WordNet's own format, so that no test depends on an installed WordNet."""

from pathlib import Path

# The chains of WordNet 3.0 from `entity` to the words whose similarity Malinowski and Fritz published, beside a
# taxonomy small enough to count by hand: furniture and animals.
TAXONOMY = {
    "entity": (),
    "furniture": ("entity",),
    "chair": ("furniture",),
    "table": ("furniture",),
    "night_stand": ("table",),
    "animal": ("entity",),
    "dog": ("animal",),
    "physical_entity": ("entity",),
    "object": ("physical_entity",),
    "whole": ("object",),
    "artifact": ("whole",),
    "covering": ("artifact",),
    "protective_covering": ("covering",),
    "blind": ("protective_covering",),
    "curtain": ("blind",),
    "instrumentality": ("artifact",),
    "container": ("instrumentality",),
    "box": ("container",),
    "carton": ("box",),
    "device": ("instrumentality",),
    "heater": ("device",),
    "stove": ("heater",),
    "fire_extinguisher": ("device",),
}


def write_wordnet(folder: Path) -> None:
    """Write `TAXONOMY` as a database (wndb(5WN)); offsets are byte positions in data.noun."""

    def lines(offsets: dict[str, int]) -> list[str]:
        written = []
        for word, parents in TAXONOMY.items():
            children = [child for child, above in TAXONOMY.items() if word in above]
            pointers = [f"@ {offsets[above]:08d} n 0000" for above in parents]
            pointers += [f"~ {offsets[child]:08d} n 0000" for child in children]
            written.append(
                f"{offsets[word]:08d} 03 n 01 {word} 0 {len(pointers):03d} {' '.join(pointers)} | a {word}  \n"
            )
        return written

    lengths = [len(line) for line in lines(dict.fromkeys(TAXONOMY, 0))]
    offsets = {word: sum(lengths[:index]) for index, word in enumerate(TAXONOMY)}
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text("".join(lines(offsets)))
    (folder / "index.noun").write_text(
        "".join(f"{word} n 1 2 @ ~ 1 0 {offsets[word]:08d}  \n" for word in sorted(TAXONOMY))
    )
    (folder / "index.sense").write_text("".join(f"{word}%1:03:00:: {offsets[word]:08d} 1 0\n" for word in TAXONOMY))
    for part in ("verb", "adj", "adv"):
        (folder / f"data.{part}").write_text("")
        (folder / f"index.{part}").write_text("")
    for part in ("noun", "verb", "adj", "adv"):
        (folder / f"{part}.exc").write_text("")
    (folder / "lexnames").write_text("".join(f"{number:02d}\tnoun.{number}\t1\n" for number in range(45)))
