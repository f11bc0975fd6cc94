"""The one place where text becomes HTML as it is."""

from __future__ import annotations

from markupsafe import Markup


def trusted(html: str) -> Markup:
    """Return HTML that was put together here, every text in it escaped where it was put in."""
    return Markup(html)  # noqa: S704 - see above
