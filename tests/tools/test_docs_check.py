"""The look at a built site: each fault is found on a small one, and none where there is none."""

import pytest

PAGE = """<html><head><title>{title}</title><link rel="stylesheet" href="style.css"></head><body>
<article><h2 id="here">Here</h2>{body}</article></body></html>"""


@pytest.fixture
def site(tmp_path):
    """Write a site of two pages; `body` is the text of the first."""

    def written(body: str, name: str = "site"):
        folder = tmp_path / name
        (folder / "guides").mkdir(parents=True)
        (folder / "style.css").write_text("")
        (folder / "guides/style.css").write_text("")
        (folder / "index.html").write_text(PAGE.format(title="t", body=body))
        (folder / "guides/one.html").write_text(PAGE.format(title="t", body='<a href="../index.html#here">up</a>'))
        return folder

    return written


SOUND = """<p>x costs 5 $. <a href="guides/one.html#here">one</a> <a href="https://example.org">out</a></p>
<pre><code>r"\\frac" [a][b]</code></pre>"""


def test_a_sound_site_has_no_faults(site):
    from docs_check import faults

    assert faults(site(SOUND)) == []


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('<a href="gone.html">x</a>', "links to gone.html, which is not there"),
        ('<a href="guides/one.html#gone">x</a>', "links to guides/one.html#gone, whose anchor is not there"),
        ('<a href="#gone">x</a>', "links to #gone, whose anchor is not there"),
        ('<a href="guides/">x</a>', "links to guides/, a folder"),
        ('<a href="/index.html">x</a>', "links to /index.html, which is not relative"),
        ('<a href="../other/index.html">x</a>', "which is outside the site"),
        ('<img src="gone.png">', "loads gone.png, which is not there"),
        ('<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js from another host"),
        ('<script src="//example.org/x.js"></script>', "from another host"),
        ("<p>\\frac{a}{b}</p>", "is left as TeX"),
        ("<p>the mean $x$</p>", "is left as TeX"),
        ("<p>see [measures][nc.measures]</p>", "names nothing"),
    ],
)
def test_each_fault_is_named_with_its_page(body, said, site):
    from docs_check import faults

    found = faults(site(body))
    assert found
    assert all(line.startswith("index.html: ") for line in found)
    assert said in found[0]


def test_an_empty_folder_is_no_site(tmp_path):
    from docs_check import faults

    assert "expected a built site" in faults(tmp_path)[0]


@pytest.mark.parametrize(
    "other", [SOUND.replace("one</a>", "two</a>"), SOUND + "<table></table>", SOUND + "<h2 id='b'>"]
)
def test_two_builds_are_compared(other, site, capsys):
    from docs_check import differences, main

    one, same, changed = site(SOUND, "one"), site(SOUND, "same"), site(other, "changed")
    assert differences(one, same) == []
    assert main([str(one), str(same)]) == 0
    assert "2 pages" in capsys.readouterr().out
    assert "index.html" in differences(one, changed)[0]
    assert main([str(one), str(changed)]) == 1
    (same / "guides/one.html").unlink()
    assert differences(one, same) == [f"guides/one.html: only in {one}"]
