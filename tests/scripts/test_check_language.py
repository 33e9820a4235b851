"""What `scripts/check_language.py` counts as words and sentences."""

from check_language import main, problems, sentences


def test_code_tables_and_links_are_no_part_of_a_sentence():
    text = "# Title\n\nOne [two](https://a.b/c) `three four`. Five!\n\n```\nsix.\n```\n\n| a | b |\n\n- item\n- last"
    assert list(sentences(text)) == ["# Title", "One two code.", "Five!", "- item", "- last"]


def test_long_sentences_and_documents_are_reported():
    assert list(problems("word " * 25)) == []
    assert [problem.partition(";")[0] for problem in problems("word " * 26)] == ["a sentence of 26 words"]
    assert [problem.partition(";")[0] for problem in problems("Word. " * 1001)] == ["1001 words"]
    assert [problem.partition(";")[0] for problem in problems("Word.\n" * 151)] == ["151 lines"]


def test_the_exit_status_tells_of_problems(tmp_path, capsys):
    (tmp_path / "good.md").write_text("Short.")
    (tmp_path / "bad.md").write_text("word " * 30)
    assert main([str(tmp_path / "good.md")]) == 0
    assert main([str(tmp_path / "good.md"), str(tmp_path / "bad.md")]) == 1
    assert "bad.md: a sentence of 30 words" in capsys.readouterr().out
