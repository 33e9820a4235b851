"""Records that hold a conversation about one image: one question for each turn of the user and its reply.

| column | layout |
| --- | --- |
| `texts` | `[{"user", "assistant"}]` beside `images` (The Cauldron, FineVision) |
| `messages` | `[{"role", "content"}]`, the content a text or a list of parts (chat templates of transformers) |
| `conversations` | `[{"from", "value"}]` with `<image>` in the first question (LLaVA) |
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..schema import Record
from .cells import as_python, is_empty

LAYOUTS = ("texts", "messages", "conversations")
_USERS, _ASSISTANTS = ("user", "human"), ("assistant", "gpt")


def is_conversation(record: Record) -> bool:
    """Whether the record has one of these layouts and no question of its own."""
    return "question" not in record and any(layout in record for layout in LAYOUTS)


def conversation_records(record: Record, place: str, with_replies: bool) -> Iterator[Record]:
    """A record with `image`, `question` and `answer` for each turn. Its id is that of the conversation and the turn.

    Args:
        with_replies: whether each question needs one; otherwise `answer` is None.

    Raises:
        ValueError: a turn has another form, a question has no reply, or there are several images.
    """
    layout = next(name for name in LAYOUTS if name in record)
    turns = as_python(record[layout])
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError(f"{place}: `{layout}` is a list of turns, not {turns!r:.80}")
    spoken, images = [], _images(record)
    for turn in turns:
        if layout == "texts":
            spoken += [("user", turn.get("user")), ("assistant", turn.get("assistant"))]
        else:
            speaker, content = ("role", "content") if layout == "messages" else ("from", "value")
            text, found = _content(turn.get(content))
            spoken.append((turn.get(speaker), text))
            images += found
    if len(images) > 1:
        raise ValueError(f"{place}: the conversation has {len(images)} images; a question is about one")
    pairs = [turn for turn in spoken if turn[0] in _USERS + _ASSISTANTS]
    if not with_replies:
        asked = (turn for turn in pairs if turn[0] in _USERS)
        pairs = [each for turn in asked for each in (turn, (_ASSISTANTS[0], None))]
    for index in range(0, len(pairs), 2):
        (asker, question), (answerer, answer) = (pairs[index : index + 2] + [(None, None)])[:2]
        if asker not in _USERS or answerer not in _ASSISTANTS:
            raise ValueError(f"{place}: turn {index} of `{layout}` is no question of the user with a reply")
        yield {
            "image": images[0] if images else None,
            **{name: record[name] for name in ("image_id",) if name in record},
            "question": question.replace("<image>", "").strip() if isinstance(question, str) else question,
            "answer": answer,
            **({} if is_empty(record.get("id")) else {"question_id": f"{record['id']}-{index // 2}"}),
        }


def _images(record: Record) -> list[Any]:
    for name in ("images", "image"):
        if name in record:
            images = record[name]
            return [image for image in (images if isinstance(images, list) else [images]) if not is_empty(image)]
    return []


def _content(content: Any) -> tuple[Any, list[Any]]:
    """(text, images) of a message's content."""
    content = as_python(content)
    if not isinstance(content, list):
        return content, []
    parts = [part for part in content if isinstance(part, Mapping)]
    text = " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    named = [part.get("image") or part.get("url") or part.get("path") or part.get("image_url") for part in parts]
    images = [name["url"] if isinstance(name, Mapping) and "url" in name else name for name in named]
    return text, [image for image in images if not is_empty(image)]
