from neuralcollapse.report.figure import Figure
from neuralcollapse.report.formats import escaped, markdown
from neuralcollapse.report.page import Cell, Claim, Page, Table

FINDINGS = [(True, "first", "1", "so"), (False, "second", "2 < 3", ""), (None, "third", "?", "")]
FIGURE = Figure("f", "F", "c", "a curve of a & b", [])
TABLES = [
    Table("T", [["x", Cell("1", "-5 %")]], ("a", "b"), "note"),
    Table("Settings", [["y", "2"], ["z", "3"]], narrow=True),
]


def test_the_page_in_markdown():
    claim = Claim("It is so", "someone", "partly supported", FINDINGS)
    text = markdown(Page("Title", "sub", "So.", [], [FIGURE], TABLES, claim), {"f": "figures/f.png"})
    assert text.startswith("# Title\n\nsub\n\n> It is so\n")
    assert "| check |  | numbers | why this check |" in text
    assert "| first | holds | 1 | so |\n| second | **does not hold** | 2 &lt; 3 |  |\n" in text
    assert "| third | not tested | ? |  |" in text
    assert "## T\n\nnote\n\n| a | b |\n| --- | --- |\n| x | 1 (-5 %) |" in text
    assert "![a curve of a &amp; b](figures/f.png)" in text
    assert "\n\nSettings: y 2; z 3.\n" in text


def test_without_images_there_are_no_links():
    assert "![" not in markdown(Page("T", "s", "v", [], [FIGURE], []))


def test_nothing_of_a_users_text_is_markup():
    assert escaped("a|b *c* <i> [d]\n# e") == r"a\|b \*c\* &lt;i&gt; \[d\] \# e"
