"""Text as it grows: whole characters only, and nothing of a stop string."""

from hypothesis import given, settings
from hypothesis import strategies as st

from agentkit.engine.backbone import SharedTokenizer
from agentkit.engine.detokenizer import Detokenizer
from agentkit.testing import tiny_tokenizer

TOKENIZER = SharedTokenizer(tiny_tokenizer())


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=80)
def test_pieces_join_to_the_text_and_hold_no_half_characters(text: str) -> None:
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token) for token in TOKENIZER.plain(text)]
    pieces.append(detokenizer.finish())
    if "\ufffd" not in text:
        assert "".join(pieces) == text
        assert not any("\ufffd" in piece for piece in pieces)
    assert detokenizer.text == "".join(pieces)


def test_a_character_cut_off_by_the_limit_is_dropped() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    for token in TOKENIZER.plain("ok \U0001f600")[:-1]:
        detokenizer.add(token)
    detokenizer.finish()
    assert detokenizer.text == "ok "


@given(
    before=st.text(alphabet="abEND \n", max_size=12),
    stop=st.sampled_from(["END", "\n\n", "b", "a END"]),
    after=st.text(alphabet="abEND \n", max_size=6),
)
@settings(max_examples=150)
def test_nothing_of_a_stop_string_or_after_it_is_ever_released(
    before: str, stop: str, after: str
) -> None:
    whole = before + stop + after
    detokenizer = Detokenizer(TOKENIZER, [stop])
    for token in TOKENIZER.plain(whole):
        detokenizer.add(token)
        assert whole.startswith(detokenizer.text)
        if detokenizer.stopped:
            break
    detokenizer.finish()
    assert detokenizer.stopped
    assert detokenizer.text == whole[: whole.index(stop)]


def test_what_only_began_like_a_stop_string_is_released_at_the_end() -> None:
    detokenizer = Detokenizer(TOKENIZER, ["END"])
    for token in TOKENIZER.plain("the EN"):
        detokenizer.add(token)
    detokenizer.finish()
    assert detokenizer.text == "the EN"
    assert not detokenizer.stopped
