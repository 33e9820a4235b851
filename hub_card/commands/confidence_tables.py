"""What `qca calibrate` and `qca compare` print."""

from typing import Any

from .console import interval, say, say_table

SHOWN = 10  # changed questions


def print_calibration(content: dict[str, Any]) -> None:
    """Print the content of `calibration.json`."""
    say(f"temperature: {content['temperature']:.3f}, from {content['data']['rows']:,} questions")
    rows = []
    for name in ("before", "after"):
        measured = content[name]
        rows.append([name, interval(measured["calibration"]["ece"], measured["calibration"]["ece_interval"])])
        rows[-1] += [f"{level['accuracy']:.3f}" for level in measured["selective"]["at"]]
    columns = [f"accuracy at {level['coverage']:.0%} coverage" for level in content["after"]["selective"]["at"]]
    say_table(rows, ["", "calibration error", *columns], "Measured on other images than the temperature is fitted on")
    if content["question_threshold"] is not None:
        say(f"questions farther than {content['question_threshold']:.3f} from those trained on are flagged")


def print_comparison(comparison: dict[str, Any]) -> None:
    """Print the differences, and the first questions that changed."""
    names = comparison["names"]
    for measure, table in comparison["measures"].items():
        rows = [
            [kind, f"{of['questions']:,}", f"{of['first']:.3f}", f"{of['second']:.3f}", signed(of)]
            for kind, of in table.items()
        ]
        say_table(rows, ["", "questions", *names, "difference"], measure.capitalize())
    changed = comparison["changed"]
    say(f"{changed['better']:,} questions are answered better by {names[1]}, {changed['worse']:,} worse")
    rows = []
    for row in changed["examples"][:SHOWN]:
        question = " ".join(row["question"].split())[:60]
        rows.append([question, row["first_answer"], row["second_answer"], f"{row['change']:+.2f}"])
    if rows:
        say_table(rows, ["changed the most", *names, "score"])


def signed(of: dict[str, Any]) -> str:
    low, high = of["interval"]
    return f"{of['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"
