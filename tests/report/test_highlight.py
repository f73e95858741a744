from __future__ import annotations

import html
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from agentkit.report.highlight import KINDS, Mention, places, render

# What HTML cannot hold: NUL, and halves of surrogate pairs.
TEXTS = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0")
    | st.sampled_from(list("<>&\"'\r\n#;ab ")),
    max_size=80,
)


@st.composite
def marked(draw):
    text = draw(TEXTS)
    offset = st.integers(0, len(text))
    stretch = st.tuples(offset, offset).map(lambda pair: (min(pair), max(pair)))
    quotes = draw(st.lists(stretch, max_size=8))
    kinds = st.sampled_from(KINDS)
    mentions = [Mention(start, end, draw(kinds), draw(TEXTS)) for start, end in quotes]
    headings = draw(st.lists(stretch, max_size=3))
    return text, mentions, headings, draw(st.lists(offset, max_size=3))


def stripped(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


class Pieces(HTMLParser):
    """Collects the text and, for each place, the text marked with it."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.text = ""
        self.by_place: dict[str, str] = {}
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        assert tag in {"mark", "a", "b", "i"}
        if tag == "mark":
            assert not self.open
            self.open = re.findall(r"\bp\d+\b", dict(attrs)["class"])

    def handle_endtag(self, tag):
        if tag == "mark":
            self.open = []

    def handle_data(self, data):
        self.text += data
        for place in self.open:
            self.by_place[place] = self.by_place.get(place, "") + data


@given(marked())
def test_without_its_tags_the_pane_is_the_document(case):
    text, mentions, headings, offsets = case
    pane = render(
        text, places(mentions).values(), headings=headings, pages=offsets, anchors=offsets
    )

    assert stripped(pane) == text


@given(marked())
def test_the_pieces_of_a_place_are_together_its_quote(case):
    text, mentions, headings, offsets = case
    quoted = places(mentions)
    parser = Pieces()
    parser.feed(str(render(text, quoted.values(), headings=headings, pages=offsets)))
    parser.close()

    assert parser.by_place == {place.id: text[start:end] for (start, end), place in quoted.items()}


@given(marked())
def test_every_quote_has_one_anchor_where_it_begins(case):
    text, mentions, _, _ = case
    quoted = places(mentions)
    pane = str(render(text, quoted.values()))

    for (start, _end), place in quoted.items():
        before, anchor, _ = pane.partition(f'<a class="at" id="{place.id}"></a>')
        assert anchor
        assert stripped(before) == text[:start]
        assert pane.count(f'id="{place.id}"') == 1


def test_the_same_words_quoted_twice_are_one_place_with_both_reasons():
    quoted = places([Mention(2, 5, "fact", "date"), Mention(2, 5, "contradicted", "rule 1")])

    (place,) = quoted.values()
    assert place.kinds == ("contradicted", "fact")
    assert place.labels == ("date", "rule 1")


def test_overlapping_quotes_are_cut_at_their_boundaries():
    quoted = places([Mention(0, 6, "clause", "A"), Mention(4, 9, "contradicted", "B")])

    pane = str(render("abcdefghij", quoted.values()))

    assert re.findall(r'<mark class="([^"]*)"[^>]*>([^<]*)</mark>', pane) == [
        ("k-clause p0", "abcd"),
        ("k-contradicted deep p0 p1", "ef"),
        ("k-contradicted p1", "ghi"),
    ]


def test_a_place_that_a_hundred_things_quote_names_a_few_of_them():
    quoted = places([Mention(0, 3, "clause", f"kind {n}") for n in range(100)])

    assert "kind 5 · 94 more" in render("abc", quoted.values())
