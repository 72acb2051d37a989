"""The site is built strictly, names all pages, and fetches nothing from elsewhere."""

import re
import subprocess
import sys

import pytest

from support.places import ROOT

FETCHED = re.compile(
    r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["']?(https?:)?//"""
)


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"^ +- .*?: ([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M))
    assert listed == {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.slow
def test_the_site(tmp_path):
    pytest.importorskip("mkdocs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        links = [tag for tag in re.findall(r"<[^>]+>", text) if "canonical" not in tag]
        assert not FETCHED.search("".join(links)), page.name
        assert "fonts.googleapis" not in text
    api = (tmp_path / "api.html").read_text()
    for name in ("spikedet.load", "spikedet.conversion.convert.convert", "Predictor.__call__"):
        assert f'{name}"' in api, name
    types = re.findall(r"<td>\s*<code>([^<]*)</code>", api)
    assert types and not [t for t in types if "`" in t]  # the beginning of a sentence is no type
    assert "<blockquote>" not in api  # `>>>` of an example
    assert not (tmp_path / "figures.py").exists()
