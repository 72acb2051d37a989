"""Code of the pages in docs/."""

import re

from support.places import ROOT

DOCS = ROOT / "docs"


def code(page):
    return "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S))
