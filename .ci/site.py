"""What the documentation's site needs beyond MkDocs."""

import re

_OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+(?:[A-Z]+\.md|(?:adapters|backends|deploy|examples|tests)/[^)]*)\)"
)


def on_page_markdown(markdown: str, **_more: object) -> str:
    """Keep only the text of links to the repository, which is not part of the site. MkDocs calls this."""
    return _OUTSIDE.sub(r"\1", markdown)
