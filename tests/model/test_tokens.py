"""Pieces of a text that is longer than a prompt: each fits, they are cut at signs, and no letter is lost."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grounding.tokens import GroundingTokenizer
from tests.model.networks import tiny_tokens

LETTERS = GroundingTokenizer.train(["a b c d e f g h i j and, ;"] * 2, 400)
"""Knows every word of the texts below as one token."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b, c; d e", ["a b, c; d e"]),
        ("", []),
        (" ; ", []),
        ("a b, c d; e f, g h and i", ["a b, c d;", "e f, g h and i"]),
        ("a b c, d e and f g h i", ["a b c,", "d e and f g h i"]),
        ("a b c d and e f g h i", ["a b c d", "and e f g h i"]),
        ("a b c d e f g h i j", ["a b c d e f g h", "i j"]),
    ],
)
def test_a_long_text_is_cut_at_the_strongest_sign(text: str, expected: list[str]) -> None:
    spans = LETTERS.pieces(text, 8)
    assert [text[start:end] for start, end in spans] == expected


@settings(deadline=None)
@example("effusion \ud800 left")
@given(
    st.text(alphabet=st.sampled_from(list("ab\u00e9\u80ba\U0001f600\u0130 ,;.\n1<")) | st.characters(), max_size=120)
)
def test_pieces_fit_and_lose_no_letter(text: str) -> None:
    tokens = tiny_tokens()
    spans = tokens.pieces(text, 8)
    assert all(a < b <= c < d for (a, b), (c, d) in pairwise(spans))
    assert all(tokens.count(text[start:end]) <= 8 for start, end in spans)
    kept = "".join(text[start:end] for start, end in spans)
    assert [x for x in kept if x.isalnum()] == [x for x in text if x.isalnum()]
