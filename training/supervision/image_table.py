"""A table with one row for each image, such as the sequence of a video that it is from."""

from pathlib import Path

from ..data.images import SUFFIXES
from ..data.readers.cells import cell_text
from ..data.readers.columns import USUAL_COLUMNS
from ..data.readers.table_files import read_records


class ImageTable:
    """The columns of a table of images, by image.

    Args:
        path: CSV, TSV, Excel, JSON, JSON lines or Parquet. The column `image_id`, `image`, `image_path` or `file_name`
            holds the names of the images, with or without suffix.

    Raises:
        ValueError: the table has no such column, or two rows for one image.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []
        self._rows: dict[str, dict[str, str]] = {}
        for place, record in read_records(path, "train"):
            key = next((name for name in USUAL_COLUMNS["image_id"] if name in record), None)
            if key is None:
                wanted = ", ".join(USUAL_COLUMNS["image_id"])
                raise ValueError(f"{path}: no column of image names ({wanted}), only {', '.join(record)}")
            image_id = _stem(cell_text(record[key], place, "image"))
            if image_id in self._rows:
                raise ValueError(f"{place}: a second row for image {image_id!r}; keep one")
            self.columns = [name for name in record if name != key]
            self._rows[image_id] = {name: cell_text(record[name], place, name) for name in self.columns}

    def row(self, image_id: str) -> dict[str, str]:
        """Column -> text of one image.

        Raises:
            ValueError: the table has no row for it.
        """
        if image_id not in self._rows:
            raise ValueError(f"{self.path}: no row for image {image_id!r}")
        return self._rows[image_id]


def _stem(name: str) -> str:
    path = Path(name)
    return path.stem if path.suffix.lower() in SUFFIXES else path.name
