"""Headings of texts without markup."""

import pytest

from agentkit.retrieval.headings import find_headings, heading_of_line


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ARTICLE II", (1, "ARTICLE II")),
        ("Article 3. Payment of Fees", (1, "Article 3. Payment of Fees")),
        ("EXHIBIT A", (1, "EXHIBIT A")),
        ("1. Definitions", (1, "1. Definitions")),
        ("1. DEFINITIONS. In this agreement words mean things.", (1, "1. DEFINITIONS")),
        ("4.2 Term of Office", (2, "4.2 Term of Office")),
        ("4.2 Term. The term is two years.", (2, "4.2 Term")),
        ("Section 4.2 Term", (2, "Section 4.2 Term")),
        ("4.3 Terms of this Office. The office is held.", (2, "4.3 Terms of this Office")),
        ('1.7 "Site" means the place of work.', (2, '1.7 "Site"')),
        ("1.8 “Fee” or “Fees” shall mean the sums that are due.", (2, "1.8 “Fee”")),
        ('1.9 "Staff" (or the "Team"), as it may be, has the meaning of 4.', (2, '1.9 "Staff"')),
        ('2.1 "As is" goods are sold as they stand.', None),
        ("GOVERNING LAW", (1, "GOVERNING LAW")),
        ("IV. INDEPENDENT CONTRACTOR", (1, "IV. INDEPENDENT CONTRACTOR")),
        ("30 Days after the notice the term ends.", None),
        ("Section 4.2 applies to the fees that are due.", None),
        ("1. The parties shall keep the information secret at all times.", None),
        ("Article 3 of the Treaty applies.", None),
        ("1. Definitions ............ 3", None),
        ("The parties agree.", None),
        ("2024", None),
        ("", None),
    ],
)
def test_a_line_is_known_as_a_heading_or_not(line, found):
    assert heading_of_line(line) == found


def test_capitals_inside_a_paragraph_are_no_heading():
    text = "The supplier gives no warranty.\nEXCEPT AS SAID HERE\nit is excluded."
    assert find_headings(text) == ()


def test_numbered_headings_stand_below_articles():
    headings = find_headings("ARTICLE I\n\n1. Scope of Work\n\nWords.\n\nARTICLE II\n")
    assert [(heading.level, heading.title) for heading in headings] == [
        (1, "ARTICLE I"),
        (2, "1. Scope of Work"),
        (1, "ARTICLE II"),
    ]


def test_lines_whose_ends_were_lost_are_found_by_their_gaps():
    text = "Words end here.   2.   Term of Office.   The term is two years.   3. Law. New York."
    headings = find_headings(text)
    assert [" ".join(text[h.offset :].split()[:2]) for h in headings] == ["2. Term", "3. Law."]
