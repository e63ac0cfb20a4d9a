"""Files as microscopes write them, small, for the tests of the readers."""

from __future__ import annotations

import struct

import imagecodecs
import numpy as np

from densebatch.readers.czi_file import PIXEL_TYPES, open_czi, read_block

NAMES = ("DAPI", "CD3")
UM = 0.325


def write_czi(path, planes, *, names=NAMES, compression="uncompressed:", tile=64, um=UM):
    """A CZI by Zeiss's own library.

    `planes` is (scenes, T, Z, C, rows, columns), or fewer dimensions without the first of them;
    colours are (rows, columns, 3). Tiles overlap by a tenth, as those of a mosaic.
    """
    from pylibCZIrw import czi

    colours = planes.ndim == 3 and planes.shape[-1] == 3
    shaped = planes[None] if colours else planes.reshape((1,) * (6 - planes.ndim) + planes.shape)
    step = tile - tile // 10
    with czi.create_czi(str(path), exist_ok=True, compression_options=compression) as file:
        for index in np.ndindex((1,) * 4 if colours else shaped.shape[:4]):
            scene, t, z, c = index
            plane = planes if colours else shaped[index][..., None]
            for y in range(0, plane.shape[0], step):
                for x in range(0, plane.shape[1], step):
                    piece = np.ascontiguousarray(plane[y : y + tile, x : x + tile])
                    file.write(
                        piece, location=(x + 5000 * scene, y), plane={"C": c, "Z": z, "T": t},
                        **({} if shaped.shape[0] == 1 or colours else {"scene": scene}),
                    )  # fmt: skip
        file.write_metadata(
            document_name="slide", channel_names=dict(enumerate(names)), scale_x=um * 1e-6,
            scale_y=um * 1e-6,
        )  # fmt: skip
    return path


def recompress_czi(path, number, encode):
    """Blocks of an uncompressed CZI in a compression that Zeiss's library does not write."""
    czi = open_czi(path)
    data = bytearray(path.read_bytes())
    (directory,) = struct.unpack_from("<q", data, 32 + 52)
    entry = directory + 32 + 128
    with path.open("rb") as file:
        for block in czi.blocks:
            dtype, samples = PIXEL_TYPES[block.pixel_type]
            pixels = np.frombuffer(read_block(czi, file, block), dtype)
            pixels = pixels.reshape(*block.stored, samples)
            coded = encode(pixels if samples > 1 else pixels[..., 0])
            start = block.position + 32
            n_metadata, _, n_data = struct.unpack_from("<iiq", data, start)
            assert len(coded) <= n_data
            at = start + max(256, 16 + block.n_bytes) + n_metadata
            data[at : at + len(coded)] = coded
            struct.pack_into("<q", data, start + 8, len(coded))
            for place in (start + 16, entry):
                struct.pack_into("<i", data, place + 18, number)
            entry += block.n_bytes
    path.write_bytes(data)
    return path


def encode_jpeg_xr(pixels):
    """Without loss; colours as Zeiss has them, blue first."""
    shown = np.ascontiguousarray(pixels[..., ::-1]) if pixels.ndim == 3 else pixels
    coded = imagecodecs.jpegxr_encode(shown, level=1.0)
    rgb = bytes.fromhex("24c3dd6f034efe4bb1853d77768dc90d")
    return coded.replace(rgb, rgb[:-1] + b"\x0c")


def write_mcd(path, acquisitions, *, metals=(("Ir", 191), ("Gd", 158)), labels=NAMES, um=1.0):
    """An MCD file: tables of 32-bit floats, then XML. `acquisitions`: name and (C, rows, columns).

    A name may come with the number of pixels after which the acquisition ended.
    """
    blocks, xml, position = [b"\0" * 64], [], 64
    xml.append("<Slide><ID>1</ID></Slide>")
    xml.append("<Panorama><ID>1</ID><SlideID>1</SlideID><Type>Default</Type></Panorama>")
    for number, (name, planes, *ended) in enumerate(acquisitions, 1):
        n, height, width = planes.shape
        y, x = np.mgrid[:height, :width]
        places = [x, y, np.zeros_like(x)]
        table = np.stack([*places, *planes], -1).reshape(-1, n + 3).astype("<f4")
        data = table[: ended[0] if ended else None].tobytes()
        xml.append(
            f"<AcquisitionROI><ID>{number}</ID><PanoramaID>1</PanoramaID></AcquisitionROI>"
            f"<Acquisition><ID>{number}</ID><AcquisitionROIID>{number}</AcquisitionROIID>"
            f"<Description>{name}</Description><MaxX>{width}</MaxX><MaxY>{height}</MaxY>"
            f"<AblationDistanceBetweenShotsX>{um}</AblationDistanceBetweenShotsX>"
            f"<AblationDistanceBetweenShotsY>{um}</AblationDistanceBetweenShotsY>"
            f"<DataStartOffset>{position}</DataStartOffset>"
            f"<DataEndOffset>{position + len(data)}</DataEndOffset><ValueBytes>4</ValueBytes>"
            "</Acquisition>"
        )
        channels = [("X", ""), ("Y", ""), ("Z", "")]
        channels += [
            (f"{metal}({mass})", label) for (metal, mass), label in zip(metals, labels, strict=True)
        ]
        xml += [
            f"<AcquisitionChannel><ID>{1000 * number + k}</ID>"
            f"<AcquisitionID>{number}</AcquisitionID>"
            f"<ChannelName>{channel}</ChannelName><ChannelLabel>{label}</ChannelLabel>"
            f"<OrderNumber>{k}</OrderNumber></AcquisitionChannel>"
            for k, (channel, label) in enumerate(channels)
        ]
        blocks.append(data)
        position += len(data)
    schema = (
        f'<MCDSchema xmlns="http://www.fluidigm.com/IMC/MCDSchema.xsd">{"".join(xml)}</MCDSchema>'
    )
    path.write_bytes(b"".join(blocks) + schema.encode("utf-16-le"))
    return path


def write_imc_txt(path, planes, *, metals=("Ir191Di", "Gd158Di"), labels=NAMES, n_px=None):
    """A TXT file of imaging mass cytometry."""
    names = [f"{label}({metal})" for label, metal in zip(labels, metals, strict=True)]
    lines = ["\t".join(["Start_push", "End_push", "Pushes_duration", "X", "Y", "Z", *names])]
    for k, (y, x) in enumerate(np.ndindex(planes.shape[1:])):
        values = [k * 10, k * 10 + 9, 10, x, y, k, *planes[:, y, x]]
        lines.append("\t".join(map(str, values)))
    path.write_text("\n".join(lines[: None if n_px is None else n_px + 1]) + "\n")
    return path


def write_lif(path, images, *, um=UM, names=NAMES):
    """A LIF file, as its library reads it. `images`: name and (Z, C, rows, columns)."""
    blocks, elements = [], []
    for number, (name, planes) in enumerate(images):
        n_z, n, height, width = planes.shape
        item = planes.dtype.itemsize
        steps = {1: item, 2: item * width, 3: item * width * height * n}
        sizes = {1: width, 2: height, 3: n_z}
        dimensions = "".join(
            f'<DimensionDescription DimID="{k}" NumberOfElements="{sizes[k]}" Origin="0" '
            f'Length="{(sizes[k] - 1) * um * 1e-6}" Unit="m" BytesInc="{steps[k]}" BitInc="0"/>'
            for k in (1, 2, 3)
            if sizes[k] > 1
        )
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="{item * 8}" '
            f'NameOfMeasuredQuantity="" Min="0" Max="1" Unit="" LUTName="{names[c]}" '
            f'IsLUTInverted="0" BytesInc="{c * item * width * height}" BitInc="0"/>'
            for c in range(n)
        )
        elements.append(
            f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
            f"<Dimensions>{dimensions}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{planes.nbytes}" MemoryBlockID="MemBlock_{number}"/></Element>'
        )
        block = f"MemBlock_{number}"
        head = struct.pack("<IIBQBI", 0x70, 0, 0x2A, planes.nbytes, 0x2A, len(block))
        blocks.append(head + block.encode("utf-16-le") + planes.tobytes())
    xml = (
        '<LMSDataContainerHeader Version="2"><Element Name="file"><Children>'
        f"{''.join(elements)}</Children></Element></LMSDataContainerHeader>"
    )
    head = struct.pack("<IIBI", 0x70, 2 * len(xml) + 5, 0x2A, len(xml))
    path.write_bytes(head + xml.encode("utf-16-le") + b"".join(blocks))
    return path


def write_nd2(path, planes, *, um=UM, names=NAMES):
    """An ND2 file of version 3, as its library reads it; `planes` is (Z, C, rows, columns)."""
    n_z, n, height, width = planes.shape
    item = planes.dtype.itemsize
    kinds = {"ui": "lx_uint32", "e": "lx_int32", "d": "double", "b": "bool", "s": "CLxStringW"}

    def to_xml(values):
        parts = []
        for key, value in values.items():
            if isinstance(value, dict):
                parts.append(f"<{key}>{to_xml(value)}</{key}>")
            else:
                kind = next(kinds[k] for k in ("ui", "e", "d", "b", "s") if key.startswith(k))
                parts.append(f'<{key} runtype="{kind}" value="{value}"/>')
        return "".join(parts)

    def variant(values):
        return f"<variant><no_name>{to_xml(values)}</no_name></variant>".encode()

    attributes = {
        "uiWidth": width, "uiWidthBytes": width * n * item, "uiHeight": height, "uiComp": n,
        "uiBpcInMemory": item * 8, "uiBpcSignificant": item * 8, "uiSequenceCount": n_z,
        "eCompression": 2,
    }  # fmt: skip
    probe = {"m_ExcitationSpectrum": {"uiCount": 0}}
    planes_told = {
        f"a{c}": {"uiCompCount": 1, "sDescription": names[c], "pFluorescentProbe": probe}
        for c in range(n)
    }
    metadata = {
        "bCalibrated": "true", "dCalibration": um,
        "sPicturePlanes": {"uiCount": n, "sPlaneNew": planes_told},
    }  # fmt: skip
    chunks = {
        "ImageAttributesLV!": variant(attributes),
        "ImageMetadataSeqLV|0!": variant(metadata),
    }
    if n_z > 1:
        loop = {"uiCount": n_z, "dZStep": 1.0, "dZLow": 0.0, "dZHigh": 1.0, "eType": 0}
        chunks["ImageMetadataLV!"] = variant({"eType": 4, "uLoopPars": loop})
    data, places = bytearray(), {}

    def add(name, content, reserve):
        places[name] = len(data), len(content)
        label = name.encode().ljust(reserve, b"\0")
        data.extend(struct.pack("<IIQ", 0x0ABECEDA, len(label), len(content)) + label + content)

    add("ND2 FILE SIGNATURE CHUNK NAME01!", b"Ver3.0".ljust(64, b"\0"), 32)
    for name, content in chunks.items():
        add(name, content, 4096 - 16)
    for z in range(n_z):
        # pixels begin 4096 bytes behind the chunk's beginning, after 8 bytes of time
        frame = np.moveaxis(planes[z], 0, -1).tobytes()
        add(f"ImageDataSeq|{z}!", bytes(8) + frame, 4096 - 24)
    where = len(data)
    table = b"".join(name.encode() + struct.pack("<QQ", *place) for name, place in places.items())
    end = b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", where)
    add("ND2 FILEMAP SIGNATURE NAME 0001!", table + end, 32)
    path.write_bytes(data)
    return path


_MRXS_ID = "0123456789abcdef0123456789abcdef"
_MRXS = """[GENERAL]
SLIDE_VERSION=01.02
SLIDE_ID={id}
IMAGENUMBER_X={nx}
IMAGENUMBER_Y={ny}
OBJECTIVE_MAGNIFICATION=20
CameraImageDivisionsPerSide=1
[HIERARCHICAL]
HIER_COUNT=1
NONHIER_COUNT=0
INDEXFILE=Index.dat
HIER_0_NAME=Slide zoom level
HIER_0_COUNT=2
HIER_0_VAL_0_SECTION=LEVEL_0
HIER_0_VAL_1_SECTION=LEVEL_1
[DATAFILE]
FILE_COUNT=1
FILE_0=Data0000.dat
"""
_MRXS_LEVEL = """[LEVEL_{level}]
OVERLAP_X=0
OVERLAP_Y=0
MICROMETER_PER_PIXEL_X={um}
MICROMETER_PER_PIXEL_Y={um}
IMAGE_FORMAT={format}
IMAGE_FILL_COLOR_BGR=16777215
DIGITIZER_WIDTH={tile}
DIGITIZER_HEIGHT={tile}
IMAGE_CONCAT_FACTOR={level}
"""


def write_mrxs(path, pixels, *, tile=32, um=UM, jpeg=False):
    """An MRXS of two levels as OpenSlide reads it, (rows, columns, 3), even numbers of whole tiles.

    Tiles are PNG, or JPEG as scanners write it.
    """
    ny, nx = (n // tile for n in pixels.shape[:2])
    encode = imagecodecs.jpeg_encode if jpeg else imagecodecs.png_encode
    data, levels = bytearray(_MRXS_ID.encode()), []
    about = _MRXS.format(id=_MRXS_ID, nx=nx, ny=ny)
    for level, step in enumerate((1, 2)):
        places = []
        for row, col in np.ndindex(ny // step, nx // step):
            rows, cols = (slice(k * tile, (k + 1) * tile) for k in (row, col))
            coded = encode(np.ascontiguousarray(pixels[::step, ::step][rows, cols]))
            places.append((step * (row * nx + col), len(data), len(coded), 0))
            data += coded
        levels.append(places)
        about += _MRXS_LEVEL.format(
            level=level, um=um * step, format="JPEG" if jpeg else "PNG", tile=tile
        )
    # Version and name; where the table is of the levels' records, each 0 and where its page is; the
    # pages: how many tiles, no next page, and of each tile number, offset, length and file.
    start = b"01.02" + _MRXS_ID.encode()
    table = len(start) + 8
    records = [table + 8, table + 16]
    pages = [table + 24, table + 24 + 8 + 16 * len(levels[0])]
    index = start + struct.pack("<4i", table, 0, *records)
    index += b"".join(struct.pack("<ii", 0, page) for page in pages)
    for places in levels:
        index += struct.pack("<ii", len(places), 0)
        index += b"".join(struct.pack("<4i", *place) for place in places)
    folder = path.with_suffix("")
    folder.mkdir()
    (folder / "Slidedat.ini").write_bytes(b"\xef\xbb\xbf" + about.encode())
    (folder / "Index.dat").write_bytes(index)
    (folder / "Data0000.dat").write_bytes(data)
    path.write_bytes(b"")
    return path


_VOLUME, _SET, _MANY, _INLINE = 0x10000000, 0x10000001, 0x10000002, 0x40000000


def _vsi_volume(*fields):
    """A volume of Olympus's metadata; each field is (type, tag, bytes or a number in its place)."""
    out = struct.pack("<HHIqII", 24, 21321, 0, 24, len(fields), 0)
    for k, (kind, tag, value) in enumerate(fields):
        body = b"" if isinstance(value, int) else value
        following = len(out) + 16 + len(body) if k < len(fields) - 1 else 0
        size = value if isinstance(value, int) else len(body)
        out += struct.pack("<iiiI", kind, tag, following, size) + body
    return out


def write_vsi(path, pixels, *, tile=64, jpeg=True):
    """A VSI as slideio reads it: metadata, a small picture, and tiles in a file beside it.

    `pixels` are whole tiles, (rows, columns, 3) of bytes, as JPEG or as they are; or (rows,
    columns, 1) of 16 bits as they are.
    """
    jpeg = jpeg and pixels.shape[2] == 3
    ny, nx = (n // tile for n in pixels.shape[:2])
    start, data, table = 64 + 228, b"", b""
    for row, col in np.ndindex(ny, nx):
        rows, cols = (slice(k * tile, (k + 1) * tile) for k in (row, col))
        piece = np.ascontiguousarray(pixels[rows, cols])
        coded = imagecodecs.jpeg_encode(piece, level=95) if jpeg else piece.tobytes()
        table += struct.pack("<4iqII", 0, col, row, 0, start + len(data), len(coded), 0)
        data += coded
    # Bytes of three colours or 16 bits of grey; the last number of a place is a pyramid's level.
    kind = (2, 3, 4) if pixels.shape[2] == 3 else (4, 1, 1)
    about = struct.pack("<4s9I", b"ETS\0", 3, *kind, 2 * jpeg, 95, tile, tile, 1)
    about += bytes(4 * 28) + struct.pack("<I", 1) + bytes(4 * 18)
    head = struct.pack("<4s3IQII", b"SIS\0", 64, 2, 3, 64, 228, 0)
    head += struct.pack("<QIIQII", start + len(data), ny * nx, 0, 0, 0, 0)
    frames = path.with_name(f"_{path.stem}_") / "stack1"
    frames.mkdir(parents=True)
    (frames / "frame_t.ets").write_bytes((head + about).ljust(start, b"\0") + data + table)
    size = struct.pack("<4i", 0, 0, pixels.shape[1], pixels.shape[0])
    outside = _vsi_volume((_INLINE | 12, 20005, 1), (259, 2053, size))
    frame = _vsi_volume((_SET, 2018, outside))
    name = "20x".encode("utf-16-le") + bytes(2)
    stack = _vsi_volume((_INLINE | 5, 2074, 0), (8192, 2030, name))
    image = _vsi_volume((_VOLUME, 2002, frame), (_SET, 2005, stack))
    root = _vsi_volume((_VOLUME, 2000, _vsi_volume((_MANY, 2001, image))))
    small = np.broadcast_to(pixels[::4, ::4], (*(n // 4 for n in pixels.shape[:2]), 3))
    small = small.astype(np.uint8).tobytes()
    place = 8 + len(root) + len(root) % 2
    tags = [
        *((256, 3, 1, pixels.shape[1] // 4), (257, 3, 1, pixels.shape[0] // 4)),
        *((258, 3, 3, place + len(small)), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, place)),
        *((277, 3, 1, 3), (278, 3, 1, pixels.shape[0] // 4), (279, 4, 1, len(small))),
    ]
    tiff = struct.pack("<2sHI", b"II", 42, place + len(small) + 6) + root
    tiff = tiff.ljust(place, b"\0") + small + struct.pack("<4H", 8, 8, 8, len(tags))
    path.write_bytes(tiff + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4))
    return path
