"""Tables as spreadsheets save them: delimiters, encodings, blank rows, headers, and how rows are numbered."""

import json

import datasets
import openpyxl
import pytest
from helpers.data_files import two_images

from modeling_qca.training.data.rows import load_rows

HEADER, FIRST, SECOND = ["image", "question", "answer"], ["a.png", "what is it", "été"], ["b.png", "how many", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return two_images(tmp_path)


def read(folder, **options) -> list[tuple[str, str, str]]:
    rows = load_rows(folder, **options)
    return [(row["image_id"], row["question"], row["answers"][0]["answer"]) for row in rows]


EXPECTED = [tuple(FIRST), tuple(SECOND)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_reads_every_delimiter_and_encoding_of_spreadsheets(folder, delimiter, encoding, caplog):
    text = "\r\n".join(delimiter.join(row) for row in (HEADER, FIRST, SECOND))
    (folder / "train.csv").write_bytes(text.encode(encoding))
    assert read(folder) == EXPECTED
    assert ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_reads_tsv_and_the_delimiter_that_excel_declares(folder):
    (folder / "train.tsv").write_text("\n".join("\t".join(row) for row in (HEADER, FIRST, SECOND)))
    assert read(folder) == EXPECTED
    (folder / "train.tsv").unlink()
    (folder / "train.csv").write_text("sep=;\n" + "\n".join(";".join(row) for row in (HEADER, FIRST, SECOND)))
    assert read(folder) == EXPECTED


def test_an_encoding_can_be_named(folder):
    (folder / "train.csv").write_bytes("image,question,answer\na,вопрос,кот\n".encode("cp1251"))
    assert read(folder, encoding="cp1251") == [("a", "вопрос", "кот")]


def test_refuses_text_in_no_known_encoding(folder):
    (folder / "train.csv").write_bytes(b"image,question,answer\na,\x81\x8d,\x90\n")
    with pytest.raises(ValueError, match=r"neither UTF-8 nor Windows-1252: pass `encoding`"):
        load_rows(folder)


def test_reads_excel_with_blank_rows_and_numbers(folder):
    book = openpyxl.Workbook()
    for row in (HEADER, FIRST, [], ["b.png", "how many", 2], ["b.png", "what share", 0.5]):
        book.active.append(row)
    book.save(folder / "train.xlsx")
    assert read(folder) == [*EXPECTED, ("b.png", "what share", "0.5")]


def test_reads_the_sheet_of_the_split(folder):
    book = openpyxl.Workbook()
    book.active.title = "train"
    validation = book.create_sheet("validation")
    for sheet, row in ((book.active, FIRST), (validation, SECOND)):
        sheet.append(HEADER)
        sheet.append(row)
    book.save(folder / "train.xlsx")
    assert read(folder / "train.xlsx") == EXPECTED[:1]
    book.active.title = "one"
    book.save(folder / "train.xlsx")
    with pytest.raises(ValueError, match="has the sheets one, validation; call one of them train"):
        load_rows(folder / "train.xlsx")


@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_rows_are_numbered_as_the_spreadsheet_shows_them(folder, kind):
    rows = [HEADER, FIRST, ["", "", ""], ["b.png", "what", ""]]
    if kind == "csv":
        (folder / "train.csv").write_text("\n".join(",".join(row) for row in rows))
    else:
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(folder / "train.xlsx")
    with pytest.raises(ValueError, match=f"train.{kind} row 4: the answer is empty"):
        load_rows(folder)


def test_blank_rows_and_trailing_delimiters_are_left_out(folder):
    lines = [",".join(HEADER), ",,", ",".join(FIRST) + ",,", "", ",".join(SECOND)]
    (folder / "train.csv").write_text("\n".join(lines))
    assert read(folder) == EXPECTED


@pytest.mark.parametrize("header", [["Image", "QUESTION", " Answer "], ["IMAGE PATH", "Question", "Answers"]])
def test_header_case_and_spaces_do_not_matter(folder, header):
    (folder / "train.csv").write_text("\n".join(",".join(row) for row in (header, FIRST, SECOND)))
    assert read(folder) == EXPECTED


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("image,question,answer,answer", "column 'answer' occurs twice"),
        ("image,question,Answer,ANSWER", "columns 'Answer' and 'ANSWER' both fit answer"),
    ],
)
def test_refuses_ambiguous_headers(folder, header, message):
    (folder / "train.csv").write_text(f"{header}\na,what,cup,mug\n")
    with pytest.raises(ValueError, match=message):
        load_rows(folder)


@pytest.mark.parametrize("name", ["a.png", "images/a.png", r"images\a.png", "a", "./images/a.png"])
def test_image_names_may_repeat_the_folder(folder, name):
    (folder / "train.csv").write_text(f"image,question,answer\n{name},what,cup\n")
    assert load_rows(folder)[0]["image"].getpixel((0, 0)) == (0, 0, 0)
    assert load_rows(folder, images=folder / "images")[0]["image"].getpixel((0, 0)) == (0, 0, 0)


def test_reads_a_json_list(folder):
    records = [dict(zip(HEADER, row, strict=True)) for row in (FIRST, SECOND)]
    (folder / "train.json").write_text(json.dumps(records))
    assert read(folder) == EXPECTED
    (folder / "train.json").write_text("[1]")
    with pytest.raises(ValueError, match="row 0: an entry of the list must be a JSON object"):
        load_rows(folder)


def test_old_excel_files_name_the_remedy(folder):
    (folder / "train.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    with pytest.raises(ValueError, match=r"train\.xls: save it as \.xlsx"):
        load_rows(folder / "train.xls")


def test_damaged_excel_file_is_named(folder):
    (folder / "train.xlsx").write_bytes(b"PK no workbook")
    with pytest.raises(ValueError, match=r"train\.xlsx: cannot be read as an Excel file"):
        load_rows(folder)
