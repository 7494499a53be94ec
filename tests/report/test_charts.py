"""Charts: well-formed, escaped, complete, and true to the numbers."""

from __future__ import annotations

import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trivet.errors import TrivetError
from trivet.report.charts import (
    Section,
    Series,
    bar_chart,
    cdf_chart,
    heatmap,
    html_table,
    line_chart,
    number,
    page,
    scatter_chart,
    seconds,
    tornado_chart,
)
from trivet.report.svg import scale
from trivet.report.tables import print_table

NUMBERS = st.floats(-1e12, 1e12, allow_nan=False) | st.just(float("nan"))


def drawn(figure: str) -> ElementTree.Element:
    """The figure as XML; a coordinate that is not a number would be seen in the text."""
    assert "nan" not in re.sub(r"<title>.*?</title>", "", figure)
    return ElementTree.fromstring(figure)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20), st.booleans(), st.booleans(), st.booleans())
def test_any_numbers_draw(points: list[tuple[float, float]], x_log: bool, y_log: bool, step: bool) -> None:
    series = Series("a & <b>", [p[0] for p in points], [p[1] for p in points])
    drawn(line_chart([series], title="x < y", x_log=x_log, y_log=y_log, step=step))
    drawn(scatter_chart([series], x_log=x_log, y_log=y_log))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=1, max_size=10), st.integers(2, 12))
@example([5e-324], 2)
@example([5e-324], 4)
def test_scale_holds_the_data_and_rises(values: list[float], most: int) -> None:
    s = scale(values, 0.0, 100.0, most=most)
    assert all(-1e-6 <= s(v) <= 100 + 1e-6 for v in values)
    assert list(s.ticks) == sorted(set(s.ticks))
    assert 2 <= len(s.ticks) <= most + 3


def test_bars_have_the_length_of_their_values() -> None:
    figure = drawn(bar_chart(["p", "q"], {"cost": [1.0, 3.0]}))
    widths = [float(r.get("width", 0)) for r in figure.iter("rect")]
    assert widths[1] == pytest.approx(3 * widths[0], rel=0.01)
    stacked = drawn(bar_chart(["p"], {"a": [1.0], "b": [2.0]}, stacked=True))
    first, second = stacked.iter("rect")
    assert float(second.get("x", 0)) == pytest.approx(float(first.get("x", 0)) + float(first.get("width", 0)), abs=0.2)


def test_tornado_puts_the_widest_first() -> None:
    figure = tornado_chart(["small", "large"], [0.9, 0.5], [1.1, 2.0], 1.0)
    assert figure.index(">large<") < figure.index(">small<")


def test_spikes_survive_thinning() -> None:
    y = np.zeros(100_000)
    y[54_321] = 7.0
    figure = line_chart([Series("s", np.arange(y.size), y)])
    path = re.search(r'<path class="s c0" d="M([^"]*)"', figure)
    assert path is not None
    tops = [float(p.split()[1]) for p in path[1].split("L")]
    assert min(tops) < 0.5 * max(tops)
    assert len(tops) <= 3000


def test_cdf_ends_at_one_and_refuses_nothing() -> None:
    drawn(cdf_chart({"a": np.random.default_rng(0).lognormal(0, 2, 50_000)}, x_log=True, tail=True))
    with pytest.raises(TrivetError, match="samples"):
        cdf_chart({"a": [float("nan")]})


def test_bad_shapes_are_named() -> None:
    with pytest.raises(TrivetError, match="series 's'"):
        Series("s", [1, 2], [1])
    with pytest.raises(TrivetError, match="2 values for 1 categories"):
        bar_chart(["a"], {"s": [1, 2]})
    with pytest.raises(TrivetError, match="values: shape"):
        heatmap([[1]], ["a", "b"], ["c"])


def test_page_is_whole_and_alone() -> None:
    body = heatmap([[1, 2], [3, float("nan")]], ["a", "b"], ["c", "d"], log=True)
    text = page("T <&>", [Section("S", [body], "words", columns=True), ("U", html_table([{"a": 1, "b<": None}]))])
    assert "T &lt;&amp;&gt;" in text
    assert "b&lt;" in text
    assert not re.search(r"(?:src|href)=|https?://|@import|url\(", text)


def test_numbers_and_seconds() -> None:
    assert [number(v) for v in (0, 1250, 34_500, 3.4e6, 0.02, 5e-7)] == ["0", "1,250", "34.5k", "3.4M", "0.02", "5e-07"]
    assert [seconds(v) for v in (0.0025, 1.5, 90, 7200, 864000)] == ["2.5 ms", "1.5 s", "90 s", "2 h", "10 d"]


def test_table_shows_intervals() -> None:
    out = io.StringIO()
    print_table([{"a": {"value": 1.0, "lo": 0.5, "hi": 2.0}, "b": "[x]"}], file=out)
    assert "1 [0.5, 2]" in out.getvalue()
    assert "[x]" in out.getvalue()
