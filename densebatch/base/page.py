"""Pages of HTML from the templates beside this module, with nothing to load from elsewhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A picture of a page, which holds its bytes.

    Attributes
    ----------
    caption : what is to be seen
    png : the coded picture
    """

    caption: str
    png: bytes

    @property
    def uri(self) -> str:
        """The picture as an address that needs no file."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def render_page(template: str, **values: Any) -> str:  # noqa: ANN401
    """Fill in a template.

    Parameters
    ----------
    template
        File in `templates`.
    **values
        What the template names. All text is escaped; SVG of `base.charts` is given as the
        template's `charts`, which are not.

    Returns
    -------
    str
        The page.

    Raises
    ------
    jinja2.UndefinedError
        If the template names a value that was not given.
    """
    # Jinja2 is imported here, because few commands write a page and all would wait for it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("densebatch.base"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
