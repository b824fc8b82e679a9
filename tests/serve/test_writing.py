"""Text goes out as soon as it is certain, and never a part of a stop string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from negawatt.artifact import Artifact
from negawatt.engine.picker import Picked
from negawatt.serve.writing import Pieces, Writing


class Letters:
    """A tokenizer whose tokens are characters; stands in where only the rule of stopping matters."""

    def stream(self) -> Letters:
        return self

    def push(self, token: int) -> str:
        return chr(token)

    def finish(self) -> str:
        return ""


@given(text=st.text("abc", max_size=40), stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str]) -> None:
    writing = Writing(Letters(), stops)  # type: ignore[arg-type]
    out, stopped_at = "", None
    for place, letter in enumerate(text):
        out += writing.push(ord(letter))
        if writing.stopped and stopped_at is None:
            stopped_at = place + 1
    out += writing.finish()
    # The first stop string to be complete ends the text; of several that end there, the longest.
    ends = [
        (place + len(stop), place)
        for stop in stops
        for place in range(len(text))
        if text.startswith(stop, place)
    ]
    expected = text[: min(ends)[1]] if ends else text
    assert out == expected == writing.text
    assert stopped_at == (min(ends)[0] if ends else None)


def test_a_beginning_of_a_stop_string_is_held_back_and_comes_in_the_end() -> None:
    writing = Writing(Letters(), ["###"])  # type: ignore[arg-type]
    assert writing.push(ord("a")) == "a"
    assert writing.push(ord("#")) == "" and writing.push(ord("#")) == ""
    assert writing.push(ord("b")) == "##b"
    assert writing.push(ord("#")) == ""
    assert writing.finish() == "#" and writing.text == "a##b#" and not writing.stopped


def test_characters_of_several_tokens_come_whole(model: Artifact) -> None:
    text = "Grüße, 世界 🙂!"
    tokens = model.tokenizer.encode(text)
    writing = Writing(model.tokenizer)
    pieces = [writing.push(token) for token in tokens]
    assert "".join(pieces) + writing.finish() == text
    assert not any("\ufffd" in piece for piece in pieces)
    cut = Writing(model.tokenizer)
    for token in tokens[:-2]:
        cut.push(token)
    cut.finish()
    assert text.startswith(cut.text.rstrip("\ufffd"))


def test_pieces_show_the_bytes_of_a_token(model: Artifact) -> None:
    pieces = Pieces(model.tokenizer)
    tokens = model.tokenizer.encode("世界")
    infos = [pieces.info(Picked(token, -1.0, ((token, -1.0),))) for token in tokens]
    assert b"".join(info.raw for info in infos).decode() == "世界"
    assert infos[0].top[0][1] == infos[0].raw
