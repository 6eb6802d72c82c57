"""Web pages in one file, which open offline and ask the network for nothing.

A page is a body, rendered from a template, in a skeleton with our style sheet. Its content security policy allows its
own scripts and styles, by their digests, and pictures as data URIs; all else is forbidden, so that even a mistake in
escaping could run and load nothing.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

_PACKAGE = "moge_core.visualization"


def render_template(package: str, name: str, **values: Any) -> Markup:
    """A template among a package's files, with every value escaped that is not `Markup`.

    Args:
        package: the package with a folder `templates`.
        name: file name in there.
        values: what the template names; a name without a value is an error.

    The filters `number` (three digits, `-` for None), `percent` and `plain` (no invisible characters) are there beside
    Jinja's own.
    """
    return Markup(_environment(package).get_template(name).render(**values))  # noqa: S704 - the template escapes


def render_page(title: str, body: Markup, *, styles: Sequence[str] = (), scripts: Sequence[str] = ()) -> bytes:
    """The whole page as UTF-8.

    Args:
        title: plain text.
        body: HTML inside `<body>`.
        styles: style sheets after the skeleton's own.
        scripts: JavaScript that runs when the body was read.
    """
    all_styles = [template_source(_PACKAGE, "page.css"), *styles]
    page = render_template(
        _PACKAGE,
        "page.html",
        title=title,
        body=body,
        styles=[Markup(style) for style in all_styles],  # noqa: S704 - ours
        scripts=[Markup(script) for script in scripts],  # noqa: S704 - ours
        style_sources=_csp_sources(all_styles),
        script_sources=_csp_sources(scripts),
    )
    # File names may hold bytes that are no UTF-8, which Python keeps as lone surrogates.
    return page.encode("utf-8", "replace")


def template_source(package: str, name: str) -> str:
    """The text of a file in a package's folder `templates`, as it is."""
    environment = _environment(package)
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def image_data_uri(image: npt.NDArray[np.uint8], *, quality: int = 84) -> str:
    """A picture, uint8 (H, W, 3), as the data URI of a JPEG."""
    from PIL import Image

    buffer = io.BytesIO()
    # Full colour resolution: thin coloured lines would fade otherwise. Pillow's `optimize` fails on noise.
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def format_number(value: float | None) -> str:
    """A number with about three digits, for people."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def format_percent(share: float | None) -> str:
    """A share of 1 as per cent: 0 % and 100 % mean exactly none and all."""
    if share is None:
        return "–"
    percent = 100 * share
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) or 10 <= percent < 99.5 else f"{percent:.1f} %"


def plain_text(text: object) -> str:
    """Text with its invisible characters written out, such as line breaks and those that turn the direction."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))


def _csp_sources(texts: Sequence[str]) -> Markup:
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    return Markup(" ".join(f"'sha256-{digest}'" for digest in digests) or "'none'")  # noqa: S704 - ours


@functools.cache
def _environment(package: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": format_number, "percent": format_percent, "plain": plain_text}
    return environment
