"""Two chips on one operator: probabilities are those of two log-normals."""

from __future__ import annotations

import math

import pytest

from trivet.loop.compare import compare


def test_a_chip_against_itself_is_even() -> None:
    for lead in compare("zhenwu-810e", "zhenwu-810e"):
        assert lead.probability == pytest.approx(0.5)
        assert lead.ratio == pytest.approx(1.0)


def test_sides_add_up_and_the_faster_leads() -> None:
    one, other = compare("zhenwu-810e", "a800"), compare("a800", "zhenwu-810e")
    for a, b in zip(one, other, strict=True):
        assert a.probability + b.probability == pytest.approx(1.0)
        assert (a.probability > 0.5) == (a.ratio > 1.0)
    assert all(lead.probability > 0.95 for lead in compare("b200", "a100-80gb"))


def test_probability_is_the_normal_one() -> None:
    lead = compare("zhenwu-810e", "h20")[0]
    z = math.log(lead.second_s / lead.first_s) / math.hypot(lead.first_sigma, lead.second_sigma)
    assert lead.probability == pytest.approx(0.5 * math.erfc(-z / math.sqrt(2)))
