"""WebDataset shards: tar files in which the parts of a sample share a name and follow one another."""

import json
import tarfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..images import SUFFIXES
from ..schema import Row
from .columns import REQUIRED, RecordConverter


@dataclass(frozen=True)
class WebDataset:
    """A folder with `<split>.tar` or `<split>-*.tar`, or one such file.

    A sample `000` is an image `000.jpg` (or another image suffix) and `000.json` with its question and answer, or
    with a list of them. Other parts, such as `000.question.txt`, are columns named by their suffix without `.txt`.

    Args:
        data: the folder or file.
        split: `train`, `validation` or what the files are called. A single file has only `train`.
        columns, answer_separator, required, further_columns: as for `Table`.
    """

    data: Path
    split: str
    columns: Mapping[str, str] = field(default_factory=dict)
    answer_separator: str | None = None
    further_columns: tuple[str, ...] = ()
    required: Collection[str] = field(default=REQUIRED, repr=False)

    def shards(self) -> list[str]:
        """The tar files."""
        if self.data.is_file():
            if self.split != "train":
                raise ValueError(f"{self.data} is one file: cut it with validation_ratio, or give a folder of splits")
            return [str(self.data)]
        files = sorted({*self.data.glob(f"{self.split}.tar"), *self.data.glob(f"{self.split}-*.tar")})
        if not files:
            raise ValueError(f"{self.data}: no {self.split}.tar or {self.split}-*.tar")
        return [str(path) for path in files]

    def sources(self) -> list[Path]:
        """The tar files."""
        return [Path(shard) for shard in self.shards()]

    def rows(self, shard: str) -> Iterator[tuple[str, Row]]:
        """(place, row) of one file."""
        converter = RecordConverter(
            shard,
            self.columns,
            None,
            self.answer_separator,
            required=self.required,
            further=self.further_columns,
        )
        for name, parts in _samples(Path(shard)):
            place = f"{shard} sample {name}"
            described = parts.pop("json", {})
            for index, record in enumerate(described if isinstance(described, list) else [described]):
                if not isinstance(record, Mapping):
                    raise ValueError(f"{place}: its JSON is an object or a list of objects, not {record!r:.80}")
                number = f" question {index}" if isinstance(described, list) else ""
                whole = {"image_id": name, "image": None, **record, **parts}
                yield from converter.rows(whole, f"{name}-{index}" if number else name, place + number)


class _Member(tarfile.TarInfo):
    """Fails at a damaged header, where `tarfile` would end as if the archive ended there."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {archive.offset}") from error


def _samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, part -> content) of each sample of a file."""
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            name = ""
            parts: dict[str, Any] = {}
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                sample = f"{folder}/{stem}" if folder else stem
                if sample != name and parts:
                    yield name, parts
                    parts = {}
                name = sample
                key, value = _part(suffix, archive.extractfile(member).read(), f"{path} {member.name}")
                parts[key] = value
            if parts:
                yield name, parts
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path}: cannot be read as a tar file: {error}") from error


def _part(suffix: str, content: bytes, place: str) -> tuple[str, Any]:
    if f".{suffix.lower()}" in SUFFIXES:
        return "image", content
    try:
        if suffix == "json":
            return suffix, json.loads(content)
        return suffix.removesuffix(".txt"), content.decode().rstrip("\r\n")  # files of text end with a new line
    except ValueError as error:
        raise ValueError(f"{place}: is neither an image, JSON nor text in UTF-8: {error}") from error
