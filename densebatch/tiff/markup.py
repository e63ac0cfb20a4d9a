"""XML in the descriptions of TIFF pages: parsed without document types, read without surprises."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterator


def parse_xml(text: str) -> ET.Element:
    """The root element of a text.

    Raises
    ------
    ValueError
        If it is no XML, or has a document type: entities are how a small file expands to gigabytes.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("a document type declaration is not accepted")
    try:
        return ET.fromstring(text.strip().rstrip("\0"))
    except ET.ParseError as exc:
        raise ValueError(f"no XML: {exc}") from exc


def bare_name(element: ET.Element) -> str:
    """Name of an element without its name space."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def children(element: ET.Element, name: str) -> Iterator[ET.Element]:
    """Child elements of a name in any name space."""
    return (child for child in element if bare_name(child) == name)


def descendants(element: ET.Element, name: str) -> Iterator[ET.Element]:
    """Elements of a name at any depth, in any name space."""
    return (child for child in element.iter() if bare_name(child) == name)


def child_text(element: ET.Element, name: str) -> str:
    """Text of the first child of a name, "" if there is none."""
    return next((child.text or "" for child in children(element, name)), "").strip()


def read_int(value: str | None, default: int) -> int:
    """A whole number of an attribute; the default if it is absent or is none."""
    try:
        return default if value is None else int(value)
    except ValueError:
        return default
