"""Coloured tokens are safe HTML, and their colours follow the numbers."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pytest

from tokrl.show import Grid, TokenHeat, Tokens, bars, curves


def test_tokens_are_escaped_and_scaled():
    heat = TokenHeat(["<eos>", "it's", "x"], [-2.0, 1.0, None], caption="a < b")
    page = heat._repr_html_()
    assert "<eos>" not in page
    assert "&lt;eos&gt;" in page
    assert "--v:-1.00" in page
    assert "--v:0.50" in page
    assert "unjudged" in page.split("</style>")[1]
    assert "a &lt; b" in page
    assert repr(heat) == "<eos>[-2.00] it's[+1.00] x"


def test_all_zero_is_no_division_by_zero():
    assert "--v:0.00" in TokenHeat(["a"], [0.0])._repr_html_()


def test_a_value_for_each_token():
    with pytest.raises(ValueError, match="2 tokens but 1 values"):
        TokenHeat(["a", "b"], [0.0])


def test_chips_are_escaped_counted_and_show_their_spaces():
    chips = Tokens({"a < b": ["<b>", " x"], "special": ["<eos>"]}, lang='z"h')
    page = chips._repr_html_().split("</style>")[1]
    assert "a &lt; b: 2" in page
    assert "special: 1" in page
    assert '<span class="tok">&lt;b&gt;</span>' in page
    assert '<span class="tok"><span class="gap">\u2423</span>x</span>' in page
    assert '<span class="tok special">&lt;eos&gt;</span>' in page
    assert page.count("z&quot;h") == 2
    assert "<b>" not in page
    assert repr(chips) == "a < b: 2: <b>|\u2423x\nspecial: 1: <eos>"


def test_curves_name_their_limits():
    curves({"a": ([1, 2], [3, 4]), "b": ([1], [2])}, {"floor": 1.5}, xlabel="step",
           ylabel="nats")  # fmt: skip
    ax = plt.gca()
    assert [t.get_text() for t in ax.texts] == ["floor"]
    assert ax.get_xlabel() == "step"
    plt.close("all")


def test_bars_keep_the_order_of_names():
    bars({"true": {"a": 0.5, "b": 0.5}, "model": {"b": 0.4, "c": 0.6}}, xlabel="p")
    labels = [t.get_text() for t in plt.gca().get_yticklabels()]
    assert labels == ["a", "b", "c"]
    plt.close("all")


def test_a_grid_has_a_cell_for_each_pair_and_frames_the_marked():
    grid = Grid(["a", "<b>"], ["x", "y", "z"], [[0, 0.26, 1], [0.04, 0, 0.5]], {(1, 2)})
    page = grid._repr_html_().split("</style>")[1]
    assert page.count("<td style") + page.count('<td class="marked" style') == 6
    assert '<td class="marked" style="--v:0.5" title="&lt;b&gt;, z: 0.5">' in page
    assert page.count("marked") == 1
    assert '<td style="--v:0.3" title="a, y: 0.3">' in page
    assert "<b>" not in page
    assert repr(grid) == "a: y[0.3] z[1.0]\n<b>: z[0.5]"
    with pytest.raises(ValueError, match="2 rows and 3 columns, but weights of 2 by"):
        Grid(["a", "b"], ["x", "y", "z"], [[0, 1, 2], [0, 1]])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_without_a_colour_is_named(value):
    with pytest.raises(ValueError, match=f"the value of 'b' is {value}"):
        TokenHeat(["a", "b"], [0.5, value])
