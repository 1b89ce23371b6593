"""What the documentation's site needs beyond MkDocs."""

from __future__ import annotations

import re
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

_OUTSIDE = re.compile(
    r"\[([^\]]+)\]\((?:\.\./)+([A-Z]+\.md|(?:adapters|backends|deploy|examples|tests)/[^)]*)\)"
)
_DIAGRAM = 'class="mermaid"'
_SCRIPT = "assets/javascripts/mermaid.js"
_LOADED = re.compile(
    r"<(?:script|img|link rel=\"(?:stylesheet|icon|preconnect)\")[^>]*(?:src|href)=\"https?://[^>]*>"
)


def on_config(config: dict[str, str], **_more: object) -> None:
    """Show the version in the title: each release has a site of its own."""
    config["site_name"] = f"{config['site_name']} {version('jobserver-core')}"


def on_page_markdown(markdown: str, **_more: object) -> str:
    """Replace links to the repository, which is not part of the site, by paths. MkDocs calls this."""
    return _OUTSIDE.sub(_path_shown, markdown)


def _path_shown(link: re.Match[str]) -> str:
    text, path = link[1], link[2].rstrip("/")
    return text if path in text else f"{text} (`{path}` in the repository)"


def on_post_page(output: str, *, page: object, **_more: object) -> str:
    """Draw diagrams with the site's own script; without it, the theme loads one from another host.

    Raises:
        RuntimeError: The page loads something from another host.
    """
    if found := _LOADED.search(output):
        raise RuntimeError(f"{page} loads {found[0]}")
    if _DIAGRAM not in output or find_spec("mermaidx") is None:
        return output
    root = "../" * str(getattr(page, "url", "")).count("/")
    tag = f'<script src="{root}{_SCRIPT}"></script>'
    return output.replace("</head>", f"{tag}</head>", 1)


def on_post_build(*, config: dict[str, str], **_more: object) -> None:
    """Add the script that draws diagrams, if the package ``mermaidx`` is installed."""
    if find_spec("mermaidx") is None:
        return
    target = Path(config["site_dir"], _SCRIPT)
    target.write_bytes(files("mermaidx").joinpath("assets/mermaid.js").read_bytes())
