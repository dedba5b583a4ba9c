"""Formulas of the site: TeX in, MathML out, in text, tables, headings and blocks."""

import pytest

markdown = pytest.importorskip("markdown", reason="the docs extra is not installed")
pytest.importorskip("latex2mathml", reason="the docs extra is not installed")
pytest.importorskip("pymdownx", reason="the docs extra is not installed")


def shown(text: str) -> str:
    return markdown.Markdown(extensions=["tables", "toc", "docs_formulas"]).convert(text)


def test_a_formula_in_the_text_becomes_mathml():
    html = shown("The mean $\\mu_k$ of class k.")
    assert '<span class="formula"><math display="inline">' in html
    assert "<mi>μ</mi>" in html
    assert "\\" not in html


def test_a_formula_of_its_own_is_a_block():
    html = shown("before\n\n$$\n\\frac{a}{b} \\le c\n$$\n\nafter")
    assert '<div class="formula"><math display="block">' in html
    assert "<mfrac>" in html


def test_what_html_would_read_as_markup_stays_a_sign():
    html = shown("$a < b$ and $$a < b$$")
    assert html.count("&lt;") == 2


def test_code_and_prices_are_no_formulas():
    html = shown("`$x$`, 5 $ and 6 $.\n\n    $y$\n")
    assert "<math" not in html
    assert "$x$" in html
    assert "$y$" in html


def test_a_heading_has_its_formula_in_the_table_of_contents_as_text():
    page = markdown.Markdown(extensions=["toc", "docs_formulas"])
    html = page.convert("# The rank of $S_B$")
    assert "<math" in html
    assert "\\" not in page.toc_tokens[0]["name"]


def test_bars_do_not_stretch():
    html = shown("$\\lvert x \\rvert$ $\\lVert y \\rVert$")
    assert html.count('form="prefix" stretchy="false"') == 2
    assert html.count('form="postfix" stretchy="false"') == 2


@pytest.mark.parametrize("latex", ["\\nosuchcommand{x}", "a_b_c"])
def test_a_formula_that_cannot_be_read_stops_the_build_by_name(latex):
    with pytest.raises(ValueError, match="formula") as caught:
        shown(f"${latex}$")
    assert latex in str(caught.value)
