"""TIFF files as programs and scanners write them, for the tests of reading."""

from __future__ import annotations

import json
import struct

import numpy as np
import tifffile

from tests.helpers.slide_files import random_pixels

NAMES = ("CD3", "CD8", "DAPI")
PLANES = random_pixels((3, 64, 96))
SMALL = PLANES[0, ::4, ::4].copy()
COLOURS = random_pixels((64, 96, 3), "uint8")
PLAIN = {"metadata": None, "photometric": "minisblack"}
TILED = {"tile": (32, 32), "compression": "zlib"}
_NAME_SPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


def write_pages(path, *pages, description=None, **options):
    """Pages one by one; a page is pixels, or pixels and options of its own."""
    with tifffile.TiffWriter(path, bigtiff=options.pop("bigtiff", False)) as writer:
        for number, page in enumerate(pages):
            pixels, own = page if isinstance(page, tuple) else (page, {})
            photometric = "rgb" if pixels.ndim == 3 else "minisblack"
            first = {"description": description} if number == 0 and description else {}
            writer.write(
                pixels,
                **{**PLAIN, "photometric": photometric, **options, **first, **own},
            )
    return path


def ome_xml(*images, **attributes):
    told = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f'<?xml version="1.0"?><OME xmlns="{_NAME_SPACE}"{told}>{"".join(images)}</OME>'


def ome_image(name, channels, *, um=0.5, ifd=0, size=(64, 96), axis="C", planes=None):
    """An `Image`, with a `TiffData` for each plane, or those given."""
    n = len(channels) if axis == "C" else len(PLANES)
    planes = planes if planes is not None else "".join(place(k, ifd + k, axis) for k in range(n))
    counts = {"C": len(channels), "Z": 1, "T": 1, axis: n}
    sizes = " ".join(f'Size{key}="{value}"' for key, value in counts.items())
    elements = "".join(f'<Channel Name="{channel}" SamplesPerPixel="1"/>' for channel in channels)
    return (
        f'<Image ID="Image:{name}" Name="{name}"><Pixels ID="Pixels:{name}" Type="uint16" '
        f'DimensionOrder="XYCZT" SizeX="{size[1]}" SizeY="{size[0]}" {sizes} '
        f'PhysicalSizeX="{um}" PhysicalSizeY="{um}">{elements}{planes}</Pixels></Image>'
    )


def place(plane, ifd, axis="C", file=None, uuid=None):
    """Where a plane lies: a page of the file itself, or of the file of a name or UUID."""
    named = "" if file is None else f' FileName="{file}"'
    inner = "" if file is None and uuid is None else f"<UUID{named}>{uuid or file}</UUID>"
    return f'<TiffData First{axis}="{plane}" IFD="{ifd}" PlaneCount="1">{inner}</TiffData>'


def write_qptiff(path, *pages):
    """A page is pixels, a type, and the name and marker of a channel."""
    written = []
    for pixels, kind, name, marker in pages:
        told = f"<ImageType>{kind}</ImageType><Name>{name}</Name><Biomarker>{marker}</Biomarker>"
        root = "PerkinElmer-QPI-ImageDescription"
        xml = f'<?xml version="1.0" encoding="utf-16"?><{root}>{told}</{root}>'
        options = {"tile": (32, 32)} if pixels.ndim == 2 else {}
        written.append((pixels, {"description": xml.encode(), **options}))
    return write_pages(
        path,
        *written,
        software="PerkinElmer-QPI",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
    )


def scn_image(name, ifds, *, size=(64, 96), view=(96 * 250, 64 * 250), channels=()):
    """An image of a Leica collection: a page for each channel; the view in nm, across and down."""
    places = "".join(
        f'<dimension sizeX="{size[1]}" sizeY="{size[0]}" r="0" c="{c}" ifd="{ifd}"/>'
        for c, ifd in enumerate(ifds)
    )
    named = "".join(f'<channel index="{i}" name="{n}"/>' for i, n in enumerate(channels))
    return (
        f'<image name="{name}"><view sizeX="{view[0]}" sizeY="{view[1]}" offsetX="0" offsetY="0"/>'
        f'<pixels sizeX="{size[1]}" sizeY="{size[0]}">{places}</pixels><scanSettings>'
        f"<channelSettings>{named}</channelSettings></scanSettings></image>"
    )


def write_scn(path, images, *pages):
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f'<collection sizeX="900000" sizeY="600000">{"".join(images)}</collection></scn>'
    )
    return write_pages(path, *pages, description=xml, tile=(32, 32))


def write_mmstack(path, planes, *, xml=None, position=0, **summary):
    """A stack as Micro-Manager lays it out byte by byte: summary, pages, then indices."""
    n, height, width = planes.shape
    told = {
        **{"Prefix": "x", "Channels": n, "Slices": 1, "Frames": 1, "Positions": 1},
        **{"Width": width, "Height": height, "PixelType": "GRAY16", "TimeFirst": False},
        **{"SlicesFirst": False, "MicroManagerVersion": "2.0.0", **summary},
    }
    head = json.dumps(told).encode()
    head += b" " * (len(head) % 2)
    start, step = 40 + len(head), 162 + height * width * 2
    offsets = [start + k * step for k in range(n)]
    end = start + n * step
    tail = bytearray()

    def put(data):
        at = end + len(tail)
        tail.extend(data + b"\0" * (len(data) % 2))
        return at

    body = bytearray()
    first = (xml or "ImageJ=1.52").encode() + b"\0"
    for k in range(n):
        page = json.dumps({"ChannelIndex": k}).encode() + b"\0"
        text = first if k == 0 else b"ImageJ=1.52\0"
        text_at, page_at, one = put(text), put(page), put(struct.pack("<II", 1, 1))
        tags = [
            *((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 16), (259, 3, 1, 1)),
            *((262, 3, 1, 1), (270, 2, len(text), text_at), (273, 4, 1, offsets[k] + 162)),
            *((277, 3, 1, 1), (278, 4, 1, height), (279, 4, 1, height * width * 2)),
            *((282, 5, 1, one), (283, 5, 1, one), (51123, 2, len(page), page_at)),
        ]
        body += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *t) for t in tags)
        body += struct.pack("<I", 0 if k == n - 1 else offsets[k + 1])
        body += planes[k].astype("<u2").tobytes()
    rows = b"".join(struct.pack("<IIIII", k, 0, 0, position, offsets[k]) for k in range(n))
    index = put(struct.pack("<II", 3453623, n) + rows)
    display = put(struct.pack("<II", 347834724, 2) + b"{}")
    comments = put(struct.pack("<II", 84720485, 2) + b"{}")
    # tifffile takes the end of the file for pixels unless there is something behind them.
    put(bytes(2 * height * width + 200))
    marks = (54773648, index, 483765892, display, 99384722, comments, 2355492, len(head))
    path.write_bytes(
        b"II*\0"
        + struct.pack("<I", offsets[0])
        + struct.pack("<8I", *marks)
        + head
        + bytes(body)
        + bytes(tail)
    )
    return path


def ndpi_tags(magnification):
    return [
        (65420, "I", 1, 1, True),
        (271, "s", 0, "Hamamatsu", True),
        (65421, "f", 1, np.float32(magnification).item(), True),
    ]
