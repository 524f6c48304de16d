#!/usr/bin/env python3
"""Makes tests/golden/formats: tiny files of the kinds of formats other than JPEG, and what Pillow makes of them.

Usage: scripts/golden-formats.py OUT      (Python 3.11, Pillow 11.3.0, NumPy; safetensors is written by hand)

formats.json lists the files as the golden values of odd files are listed (decodes, width, height, mode, tolerance); formats.safetensors
has the files themselves, file.<name>, and Pillow's pixels, rgb.<name>.
"""

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

W, H = 13, 9


def picture(channels: int = 3, levels: int = 256, seed: int = 1) -> np.ndarray:
    """A smooth picture with some noise, H x W x channels."""
    y, x = np.mgrid[0:H, 0:W]
    noise = np.random.default_rng(seed).integers(0, 40, (H, W, channels))
    planes = [x * 17 + y * 3, y * 25 + 11, (x + y) * 11, 255 - x * 13 - y * 7][:channels]
    return ((np.stack(planes, -1) + noise).clip(0, 255) * levels // 256).astype(np.uint8)


def packed(values: np.ndarray, bits: int) -> list[bytes]:
    """Rows of samples, the first in the highest bits of a byte."""
    rows = []
    for row in values.reshape(values.shape[0], -1):
        text = "".join(f"{value:0{bits}b}" for value in row)
        text += "0" * (-len(text) % 8)
        rows.append(bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8)))
    return rows


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# PNG


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png(values: np.ndarray, bits: int, color: int, extra: bytes = b"", interlaced: bool = False, end: bytes | None = None) -> bytes:
    """A PNG of samples, H x W x samples (16 bits: uint16)."""

    def rows(part: np.ndarray) -> bytes:
        if bits == 16:
            return b"".join(b"\0" + row.astype(">u2").tobytes() for row in part)
        return b"".join(b"\0" + row for row in packed(part, bits))

    parts = [values[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [values]
    data = zlib.compress(b"".join(rows(part) for part in parts if part.size))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, color, 0, 0, int(interlaced))
    end = png_chunk(b"IEND", b"") if end is None else end
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + extra + png_chunk(b"IDAT", data) + end


def palette(colors: int) -> bytes:
    return bytes((index * step + 40) % 256 for index in range(colors) for step in (5, 83, 201))


def pngs() -> dict[str, bytes]:
    deep = picture(4).astype(np.uint16) * 256 + picture(4, seed=2)
    files = {}
    for interlaced in (False, True):
        name = "adam7_" if interlaced else ""
        for bits in (1, 2, 4, 8):
            levels = 1 << bits
            plte = png_chunk(b"PLTE", palette(levels)) + png_chunk(b"tRNS", bytes([0, 128][: levels]))
            files[f"{name}gray{bits}.png"] = png(picture(1, levels), bits, 0, interlaced=interlaced)
            files[f"{name}palette{bits}.png"] = png(picture(1, levels), bits, 3, plte, interlaced)
        files[f"{name}rgb16.png"] = png(deep[..., :3], 16, 2, interlaced=interlaced)
        files[f"{name}rgba16.png"] = png(deep, 16, 6, interlaced=interlaced)
        files[f"{name}gray_alpha.png"] = png(picture(2), 8, 4, interlaced=interlaced)
        files[f"{name}gray_alpha16.png"] = png(deep[..., :2], 16, 4, interlaced=interlaced)
        files[f"{name}rgba.png"] = png(picture(4), 8, 6, interlaced=interlaced)
        files[f"{name}no_end.png"] = png(picture(3), 8, 2, interlaced=interlaced, end=b"")
    files["gray_transparent.png"] = png(picture(1), 8, 0, png_chunk(b"tRNS", b"\0\x40"))
    files["rgb_transparent.png"] = png(picture(3), 8, 2, png_chunk(b"tRNS", b"\0\x40\0\x40\0\x40"))
    files["palette_short.png"] = png(picture(1), 8, 3, png_chunk(b"PLTE", palette(100)))
    files["gray16.png"] = png(deep[..., :1], 16, 0)
    frames = [Image.fromarray(picture(3, seed=seed)) for seed in (3, 4)]
    files["animated.png"] = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=9)
    whole = png(picture(3), 8, 2)
    files["cut.png"] = whole[: len(whole) * 2 // 3]
    files["narrow_adam7.png"] = png(picture(3)[:, :1], 8, 2, interlaced=True, end=b"")
    return files


# GIF


def lzw(indices: np.ndarray) -> bytes:
    """Codes of nine bits, with a clear code before they grow."""
    codes = []
    for nth, index in enumerate(indices.ravel()):
        codes += [256, int(index)] if nth % 100 == 0 else [int(index)]
    text = "".join(f"{code:09b}"[::-1] for code in [*codes, 257])
    data = bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))
    return b"".join(bytes([len(data[at : at + 255])]) + data[at : at + 255] for at in range(0, len(data), 255)) + b"\0"


def gif(
    indices: np.ndarray,
    screen: tuple[int, int] | None = None,
    at: tuple[int, int] = (0, 0),
    colors: bytes = b"",
    own: bytes = b"",
    transparent: int | None = None,
    interlaced: bool = False,
    end: bytes = b"\x3b",
    background: int = 5,
) -> bytes:
    height, width = indices.shape
    screen = screen or (width, height)

    def size(table: bytes) -> int:
        return 0x80 | ((len(table) // 3).bit_length() - 2) if table else 0

    if interlaced:
        indices = np.concatenate([indices[first::step] for first, step in ((0, 8), (4, 8), (2, 4), (1, 2))])
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    head = b"GIF89a" + struct.pack("<HHBBB", *screen, size(colors), background, 0) + colors
    frame = b"," + struct.pack("<HHHHB", *at, width, height, size(own) | (0x40 if interlaced else 0)) + own + b"\x08"
    return head + control + frame + lzw(indices) + end


def gifs() -> dict[str, bytes]:
    indices, colors = picture(1)[..., 0] % 64, palette(64)
    two = gif(indices, colors=colors, end=b"") + gif(indices[::-1], colors=colors)[13 + len(colors) :]
    return {
        "interlaced.gif": gif(indices, colors=colors, interlaced=True),
        "own_palette.gif": gif(indices, colors=palette(128)[::-1], own=colors),
        "only_own_palette.gif": gif(indices, own=colors),
        "palette_short.gif": gif(indices, colors=palette(32)),
        "offset.gif": gif(indices, (20, 15), (3, 4), colors),
        "beyond.gif": gif(indices, (6, 30), (4, 2), colors),
        "offset_transparent.gif": gif(indices, (20, 15), (3, 4), colors, transparent=7),
        "offset_transparent_interlaced.gif": gif(indices, (20, 15), (3, 4), colors, transparent=7, interlaced=True),
        "no_screen.gif": gif(indices, (0, 0), (0, 0), colors),
        "no_trailer.gif": gif(indices, colors=colors, end=b""),
        "two_frames.gif": two,
        "rows_missing.gif": gif(indices, colors=colors).replace(lzw(indices), lzw(indices[:5])),
        "cut.gif": gif(indices, colors=colors)[:-60],
        "gray_palette.gif": gif(indices, colors=bytes(value for value in range(256) for _ in range(3))),
        "no_palette.gif": gif(indices),
    }


# BMP


def bmp(rows: list[bytes], bits: int, colors: bytes = b"", compression: int = 0, head: int = 40, masks: tuple[int, ...] = (), **more: int) -> bytes:
    """A BMP of rows from the top; of `data` as it is where compressed."""
    pad = more.get("pad", 1)
    data = b"".join(row + b"\0" * (-len(row) % 4) * pad for row in rows[:: more.get("order", -1)])
    width, height = more.get("width", W), more.get("height", H)
    mask_bytes = struct.pack(f"<{len(masks)}I", *masks)
    if head == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        count = more.get("count", 0)
        info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(data), 0, 0, count, 0)
        info = struct.pack("<I", head) + info[4:] + (mask_bytes + b"\0" * head)[: head - 40]
    if head <= 40:
        info += mask_bytes
    offset = 14 + len(info) + len(colors)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + colors + data


def run_rows(values: np.ndarray, bits: int, end: bytes = b"\0\0") -> list[bytes]:
    """Rows, from the top, as runs of one pixel, and as literal ones; the last row is ended by what ends the bitmap."""
    rows = []
    for nth, row in enumerate(values):
        if nth % 2:
            body = b"".join(bytes([1, int(value) << (8 - bits)]) for value in row)
        else:
            literal = packed(row[None, :], bits)[0]
            body = bytes([0, len(row)]) + literal + b"\0" * (len(literal) % 2)
        rows.append(body + end)
    return rows


def bmps() -> dict[str, bytes]:
    rgb, alpha = picture(3), picture(4)
    bgr = [row[:, ::-1].tobytes() for row in rgb]
    bgra = [row[:, [2, 1, 0, 3]].tobytes() for row in alpha]
    files = {}
    for bits in (1, 4, 8):
        colors = b"".join(palette(1 << bits)[3 * at : 3 * at + 3] + b"\0" for at in range(1 << bits))
        files[f"palette{bits}.bmp"] = bmp(packed(picture(1, 1 << bits), bits), bits, colors)
        core = palette(1 << bits)
        files[f"os2_palette{bits}.bmp"] = bmp(packed(picture(1, 1 << bits), bits), bits, core, head=12)
    colors = b"".join(palette(256)[3 * at : 3 * at + 3] + b"\0" for at in range(256))
    files["palette_short.bmp"] = bmp(packed(picture(1), 8), 8, colors[:400], count=100)
    gray = b"".join(bytes([value, value, value, 0]) for value in range(256))
    files["gray8.bmp"] = bmp(packed(picture(1), 8), 8, gray)
    files["two_gray1.bmp"] = bmp(packed(picture(1, 2), 1), 1, b"\0\0\0\0\xff\xff\xff\0")
    for head in (40, 52, 56, 64, 108, 124):
        files[f"header{head}.bmp"] = bmp(bgr, 24, head=head)
    files["os2_24.bmp"] = bmp(bgr, 24, head=12)
    files["plain32.bmp"] = bmp(bgra, 32)
    files["top_down32.bmp"] = bmp(bgra, 32, order=1, height=-H)
    files["top_down_palette.bmp"] = bmp(packed(picture(1), 8), 8, colors, order=1, height=-H)
    files["no_padding.bmp"] = bmp(bgr, 24)[: -(-3 * W % 4)]
    files["cut.bmp"] = bmp(bgr, 24)[:-8]
    words = rgb.astype(np.uint32) * 31 // 255
    sixteen = (words[..., 0] << 10 | words[..., 1] << 5 | words[..., 2]).astype("<u2")
    files["plain16.bmp"] = bmp([row.tobytes() for row in sixteen], 16)
    files["masks555.bmp"] = bmp([row.tobytes() for row in sixteen], 16, compression=3, masks=(0x7C00, 0x3E0, 0x1F))
    files["masks565.bmp"] = bmp([row.tobytes() for row in sixteen], 16, compression=3, masks=(0xF800, 0x7E0, 0x1F))
    files["masks444.bmp"] = bmp([row.tobytes() for row in sixteen], 16, compression=3, masks=(0xF00, 0xF0, 0xF))
    layouts = {
        "bgrx": (0xFF0000, 0xFF00, 0xFF, 0), "xbgr": (0xFF000000, 0xFF0000, 0xFF00, 0), "bgxr": (0xFF000000, 0xFF00, 0xFF, 0),
        "abgr": (0xFF000000, 0xFF0000, 0xFF00, 0xFF), "rgba": (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        "bgra": (0xFF0000, 0xFF00, 0xFF, 0xFF000000), "bgar": (0xFF000000, 0xFF00, 0xFF, 0xFF0000), "zero": (0, 0, 0, 0),
    }  # fmt: skip
    for name, masks in layouts.items():
        files[f"masks_{name}.bmp"] = bmp(bgra, 32, compression=3, head=108, masks=masks)
    files["masks_info.bmp"] = bmp(bgra, 32, compression=3, masks=layouts["bgrx"][:3])
    files["masks24.bmp"] = bmp(bgr, 24, compression=3, masks=(0xFF0000, 0xFF00, 0xFF))
    files["rle8.bmp"] = bmp([b"".join(run_rows(picture(1)[::-1, :, 0], 8))[:-2] + b"\0\1"], 8, colors, 1)
    four = b"".join(palette(16)[3 * at : 3 * at + 3] + b"\0" for at in range(16))
    # Pillow drops the last pixel of an odd literal run of 4 bits: rows of twelve pixels.
    even = picture(1, 16)[::-1, :12, 0]
    files["rle4.bmp"] = bmp([b"".join(run_rows(even, 4))[:-2] + b"\0\1"], 4, four, 2, width=12)
    files["rle8_cut.bmp"] = bmp([b"".join(run_rows(picture(1)[::-1, :, 0], 8))[:-60]], 8, colors, 1)
    files["bits2.bmp"] = bmp(packed(picture(1, 4), 2), 2, four[:16])
    files["jpeg.bmp"] = bmp([b"\xff\xd8\xff\xd9"], 24, compression=4)
    return files


# TIFF


def tiff(chunks: list[bytes], tags: dict[int, object], big: bool = False, tiled: tuple[int, int] | None = None, size: tuple[int, int] | None = None) -> bytes:
    """A TIFF of these strips or tiles."""
    order, size = ">" if big else "<", size or (W, H)
    data, offsets = b"", []
    for chunk in chunks:
        offsets.append(8 + len(data))
        data += chunk + b"\0" * (len(chunk) % 2)
    lengths = [len(chunk) for chunk in chunks]
    entries: dict[int, tuple[str, list[int]]] = {256: ("I", [size[0]]), 257: ("I", [size[1]])}
    if tiled:
        entries |= {322: ("I", [tiled[0]]), 323: ("I", [tiled[1]]), 324: ("I", offsets), 325: ("I", lengths)}
    else:
        entries |= {273: ("I", offsets), 279: ("I", lengths)}
        entries.setdefault(278, ("I", [size[1]]))
    for tag, value in tags.items():
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        entries[tag] = ("I" if tag in (278, 292) else "B" if tag == 347 else "H", values)
    directory, more = struct.pack(order + "H", len(entries)), b""
    start = 8 + len(data)
    for tag in sorted(entries):
        kind, values = entries[tag]
        body = struct.pack(f"{order}{len(values)}{kind}", *values)
        directory += struct.pack(order + "HHI", tag, {"B": 7, "H": 3, "I": 4}[kind], len(values))
        if len(body) <= 4:
            directory += body + b"\0" * (4 - len(body))
        else:
            directory += struct.pack(order + "I", start + 2 + 12 * len(entries) + 4 + len(more))
            more += body
    head = (b"MM\0*" if big else b"II*\0") + struct.pack(order + "I", start)
    return head + data + directory + struct.pack(order + "I", 0) + more


def reversed_bits(data: bytes) -> bytes:
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)


def abbreviated(jpeg: bytes) -> tuple[bytes, bytes]:
    """The tables of a JPEG as one without an image, and the JPEG without them and without JFIF's marker."""
    tables, rest, at = b"", b"", 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", jpeg, at + 2)[0]
        if jpeg[at + 1] in (0xDB, 0xC4):
            tables += jpeg[at:end]
        elif jpeg[at + 1] != 0xE0:
            rest += jpeg[at:end]
        at = end
    return jpeg[:2] + tables + b"\xff\xd9", jpeg[:2] + rest + jpeg[at:]


def jpeg_tiffs() -> dict[str, bytes]:
    """TIFFs of 37x21 pixels whose strips or tiles are JPEGs."""
    y, x = np.mgrid[0:32, 0:48]
    noise = np.random.default_rng(5).integers(0, 60, (32, 48, 4))
    whole = (np.stack([x * 5, y * 7, (x + y) * 3, 200 - x * 4], -1) + noise).clip(0, 255).astype(np.uint8)
    size, files = (37, 21), {}

    def jpeg(values: np.ndarray, **options: object) -> bytes:
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[values.shape[-1]]
        return saved(Image.frombytes(mode, (values.shape[1], values.shape[0]), values.tobytes()), "JPEG", **{"quality": 85} | options)

    def strips(rows: int, channels: slice, **options: object) -> list[bytes]:
        return [jpeg(whole[:21, :37, channels][at : at + rows], **options) for at in range(0, 21, rows)]

    def tables_apart(jpegs: list[bytes]) -> tuple[list[bytes], dict[int, object]]:
        parts = [abbreviated(jpeg) for jpeg in jpegs]
        assert len({tables for tables, _ in parts}) == 1
        return [rest for _, rest in parts], {347: list(parts[0][0])}

    eight = {258: 8, 259: 7, 262: 1}
    color = {258: [8] * 3, 259: 7, 262: 6, 277: 3}
    rgb, gray = slice(0, 3), slice(0, 1)
    for sampling, tag in {"4:4:4": [1, 1], "4:2:2": [2, 1], "4:2:0": [2, 2]}.items():
        name = "jpeg_ycc" + sampling.replace(":", "")
        for big in (False, True):
            files[f"{'big_' if big else ''}{name}.tif"] = tiff(strips(8 * tag[1], rgb, subsampling=sampling), color | {278: 8 * tag[1], 530: tag}, big, size=size)
        parts, tables = tables_apart(strips(16, rgb, subsampling=sampling))
        files[f"{name}_tables.tif"] = tiff(parts, color | tables | {278: 16, 530: tag}, size=size)
        tiles = [jpeg(whole[top : top + 16, left : left + 16, rgb], subsampling=sampling) for top in (0, 16) for left in (0, 16, 32)]
        parts, tables = tables_apart(tiles)
        files[f"{name}_tiles.tif"] = tiff(parts, color | tables | {530: tag}, tiled=(16, 16), size=size)
    files["jpeg_progressive.tif"] = tiff(strips(21, rgb, subsampling="4:2:0", progressive=True), color | {530: [2, 2]}, size=size)
    files["jpeg_restarts.tif"] = tiff(strips(21, rgb, subsampling="4:2:0", restart_marker_blocks=1), color | {530: [2, 2]}, size=size)
    # Components that stay as they are, whatever JFIF's marker says.
    files["jpeg_rgb.tif"] = tiff(strips(8, rgb, subsampling="4:4:4", keep_rgb=True), color | {262: 2, 278: 8}, size=size)
    files["jpeg_rgb_jfif.tif"] = tiff(strips(8, rgb, subsampling="4:4:4"), color | {262: 2, 278: 8}, size=size)
    files["jpeg_inks.tif"] = tiff(strips(21, slice(0, 4)), {258: [8] * 4, 259: 7, 262: 5, 277: 4}, size=size)
    files["jpeg_reversed.tif"] = tiff(strips(8, gray), eight | {266: 2, 278: 8}, size=size)
    files["jpeg_black.tif"] = tiff(strips(8, gray), eight | {278: 8}, size=size)
    files["jpeg_white.tif"] = tiff(strips(8, gray), eight | {262: 0, 278: 8}, size=size)
    planes = [part for plane in range(3) for part in strips(8, slice(plane, plane + 1))]
    files["jpeg_planes.tif"] = tiff(planes, color | {262: 2, 278: 8, 284: 2}, size=size)
    files["jpeg_ycc_planes.tif"] = tiff(planes, color | {278: 8, 284: 2}, size=size)
    files["jpeg_whole_last.tif"] = tiff([jpeg(whole[at : at + 8, :37, gray]) for at in (0, 8, 16)], eight | {278: 8}, size=size)
    files["jpeg_narrow.tif"] = tiff([jpeg(whole[:21, :36, gray])], eight, size=size)
    files["jpeg_wide.tif"] = tiff([jpeg(whole[:21, :38, gray])], eight, size=size)
    files["jpeg_three_times_as_wide.tif"] = tiff([jpeg(whole[:21, :37, gray].repeat(3, 1))], color | {262: 2}, size=size)
    files["jpeg_rgb_as_gray.tif"] = tiff(strips(21, rgb), eight, size=size)
    files["jpeg_high.tif"] = tiff([jpeg(whole[:9, :37, gray]), *strips(8, gray)[1:]], eight | {278: 8}, size=size)
    files["jpeg_gray_as_rgb.tif"] = tiff(strips(21, gray), color | {262: 2}, size=size)
    files["jpeg_cut.tif"] = tiff([strips(21, gray)[0][:-200]], eight, size=size)
    return files


def tiffs() -> dict[str, bytes]:
    rgb, rgba = picture(3), picture(4)
    deep = rgba.astype(np.uint16) * 256 + picture(4, seed=2)
    premultiplied = (rgba[..., :3].astype(int) * rgba[..., 3:] // 255).astype(np.uint8)
    associated = np.concatenate([premultiplied, rgba[..., 3:]], -1)
    eight = {258: 8, 262: 1}
    color = {258: [8] * 3, 262: 2, 277: 3}
    four = {258: [8] * 4, 262: 2, 277: 4}
    files = {}
    for bits in (1, 2, 4, 8):
        rows = packed(picture(1, 1 << bits), bits)
        for photometric, name in ((0, "white"), (1, "black")):
            files[f"{name}_is_zero{bits}.tif"] = tiff([b"".join(rows)], {258: bits, 262: photometric})
        reverse = [reversed_bits(b"".join(rows))]
        files[f"reversed{bits}.tif"] = tiff(reverse, {258: bits, 262: 1, 266: 2})
        colors = [int(value) * 257 for value in np.frombuffer(palette(1 << bits), np.uint8).reshape(-1, 3).T.ravel()]
        files[f"palette{bits}.tif"] = tiff([b"".join(rows)], {258: bits, 262: 3, 320: colors})
    files["palette_alpha.tif"] = tiff([picture(2).tobytes()], {258: [8, 8], 262: 3, 277: 2, 338: 2, 320: colors})
    files["gray_alpha.tif"] = tiff([picture(2).tobytes()], {258: [8, 8], 262: 1, 277: 2, 338: 2})
    for big in (False, True):
        name, order = ("big_", ">") if big else ("", "<")
        files[f"{name}rgb.tif"] = tiff([rgb.tobytes()], color, big)
        files[f"{name}rgb16.tif"] = tiff([deep[..., :3].astype(order + "u2").tobytes()], color | {258: [16] * 3}, big)
        files[f"{name}rgba16.tif"] = tiff([deep.astype(order + "u2").tobytes()], four | {258: [16] * 4, 338: 2}, big)
        files[f"{name}associated16.tif"] = tiff([deep.astype(order + "u2").tobytes()], four | {258: [16] * 4, 338: 1}, big)
        files[f"{name}cmyk16.tif"] = tiff([deep.astype(order + "u2").tobytes()], four | {258: [16] * 4, 262: 5}, big)
        floats = (picture(1).astype(order + "f4") * 1.7 - 60.3).astype(order + "f4")
        files[f"{name}float.tif"] = tiff([floats.tobytes()], {258: 32, 262: 1, 339: 3}, big)
        predicted = np.diff(deep[..., :3].astype(np.uint16), axis=1, prepend=np.zeros((H, 1, 3), np.uint16))
        body = zlib.compress(predicted.astype(order + "u2").tobytes())
        files[f"{name}predictor16.tif"] = tiff([body], color | {258: [16] * 3, 259: 8, 317: 2}, big)
    files["gray16.tif"] = tiff([deep[..., 0].astype("<u2").tobytes()], {258: 16, 262: 1})
    for number in range(1, 9):
        files[f"orientation{number}.tif"] = tiff([rgb.tobytes()], color | {274: number})
        files[f"orientation{number}_gray_lzw.tif"] = saved(Image.fromarray(picture(1)[..., 0]), "TIFF", compression="tiff_lzw", tiffinfo={274: number})
    files["associated.tif"] = tiff([associated.tobytes()], four | {338: 1})
    files["associated_over.tif"] = tiff([rgba.tobytes()], four | {338: 1})
    files["unassociated.tif"] = tiff([rgba.tobytes()], four | {338: 2})
    files["unspecified.tif"] = tiff([rgba.tobytes()], four | {338: 0})
    files["unnamed_alpha.tif"] = tiff([rgba.tobytes()], four)
    five = np.concatenate([associated, picture(1, seed=5)], -1)
    files["associated_and_more.tif"] = tiff([five.tobytes()], {258: [8] * 5, 262: 2, 277: 5, 338: [1, 0]})
    files["cmyk.tif"] = tiff([rgba.tobytes()], four | {262: 5})
    files["cmyk_and_more.tif"] = tiff([five.tobytes()], {258: [8] * 5, 262: 5, 277: 5, 338: 0})
    planes = [rgb[..., channel].tobytes() for channel in range(3)]
    files["planar.tif"] = tiff(planes, color | {284: 2})
    files["planar_deflate.tif"] = tiff([zlib.compress(plane) for plane in planes], color | {284: 2, 259: 8})
    planes = [associated[..., channel].tobytes() for channel in range(4)]
    files["planar_associated.tif"] = tiff(planes, four | {284: 2, 338: 1})
    strips = [rgb[at : at + 4].tobytes() for at in range(0, H, 4)]
    files["strips.tif"] = tiff(strips, color | {278: 4})
    files["strips_deflate_old.tif"] = tiff([zlib.compress(strip) for strip in strips], color | {278: 4, 259: 32946})
    padded = np.pad(rgb, ((0, max(0, 32 - H)), (0, max(0, 16 - W)), (0, 0)), mode="edge")
    tiles = [padded[:16].tobytes()]
    files["tiles.tif"] = tiff(tiles, color, tiled=(16, 16))
    wide = np.pad(picture(1)[..., 0].repeat(3, 1), ((0, max(0, 16 - H)), (0, max(0, 48 - 3 * W))))
    tiles = [zlib.compress(np.ascontiguousarray(wide[:, at : at + 16]).tobytes()) for at in (0, 16, 32)]
    files["tiles_gray_deflate.tif"] = tiff(tiles, eight | {259: 8}, tiled=(16, 16), size=(3 * W, H))
    files["cut.tif"] = tiff([rgb.tobytes()[:200]], color)
    files["cut_deflate.tif"] = tiff([zlib.compress(rgb.tobytes())[:150]], color | {259: 8})
    for name, options in {
        "lzw": {"compression": "tiff_lzw"}, "lzw_predictor": {"compression": "tiff_lzw", "tiffinfo": {317: 2}},
        "deflate": {"compression": "tiff_adobe_deflate"}, "packbits": {"compression": "packbits"},
        "jpeg": {"compression": "jpeg"},
    }.items():  # fmt: skip
        files[f"{name}.tif"] = saved(Image.fromarray(rgb), "TIFF", **options)
    files |= jpeg_tiffs()
    files["jpeg_gray.tif"] = saved(Image.fromarray(picture(1)[..., 0]), "TIFF", compression="jpeg")
    files["jpeg_ycbcr.tif"] = saved(Image.fromarray(rgb).convert("YCbCr"), "TIFF", compression="jpeg")
    files["jpeg_cmyk.tif"] = saved(Image.frombytes("CMYK", (W, H), rgba.tobytes()), "TIFF", compression="jpeg")
    files["bigtiff_lzw.tif"] = saved(Image.fromarray(rgb), "TIFF", big_tiff=True, compression="tiff_lzw")
    for mode, image in {"cmyk": Image.frombytes("CMYK", (W, H), rgba.tobytes()), "rgba": Image.fromarray(rgba)}.items():
        files[f"{mode}_lzw.tif"] = saved(image, "TIFF", compression="tiff_lzw")
    bits = Image.fromarray(picture(1)[..., 0].repeat(3, 1).repeat(2, 0)).convert("1")
    for name in ("group3", "group4", "tiff_ccitt"):
        files[f"{name}.tif"] = saved(bits, "TIFF", compression=name)
    files["group3_2d.tif"] = saved(bits, "TIFF", compression="group3", tiffinfo={292: 1})
    for name, of in (("group4_reversed", "group4"), ("group3_reversed", "group3")):
        files[f"{name}.tif"] = saved(bits, "TIFF", compression=of, tiffinfo={266: 2})
    files["two_pages.tif"] = saved(Image.fromarray(rgb), "TIFF", save_all=True, append_images=[Image.fromarray(rgb[::-1])])
    files["lab.tif"] = tiff([rgb.tobytes()], color | {262: 8})
    files["ycbcr.tif"] = tiff([rgb.tobytes()], color | {262: 6, 530: [1, 1]})
    files["signed8.tif"] = tiff([picture(1).tobytes()], eight | {339: 2})
    files["signed16.tif"] = tiff([deep[..., 0].astype("<u2").tobytes()], {258: 16, 262: 1, 339: 2})
    files["integers32.tif"] = tiff([picture(1).astype("<u4").tobytes()], {258: 32, 262: 1})
    files["doubles.tif"] = tiff([picture(1).astype("<f8").tobytes()], {258: 64, 262: 1, 339: 3})
    files["bits12.tif"] = tiff([bytes(H * (W * 12 + 7) // 8 + 20)], {258: 12, 262: 1})
    return files


# WebP and PNM


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def animation(image: Image.Image, size: tuple[int, int], at: tuple[int, int], flags: int, **options: object) -> bytes:
    """An animated WebP whose first frame is this image, at an even place."""

    def three(value: int) -> bytes:
        return struct.pack("<I", value)[:3]

    still = saved(image, "WEBP", **options)[12:]
    if still[:4] == b"VP8X":
        still = still[18:]
    head = riff(b"VP8X", bytes([0x12, 0, 0, 0]) + three(size[0] - 1) + three(size[1] - 1))
    head += riff(b"ANIM", bytes([10, 200, 90, 255]) + b"\0\0")
    frame = three(at[0] // 2) + three(at[1] // 2) + three(image.width - 1) + three(image.height - 1) + three(40)
    body = b"WEBP" + head + riff(b"ANMF", frame + bytes([flags]) + still)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def others() -> dict[str, bytes]:
    rgb, rgba = Image.fromarray(picture(3)), Image.fromarray(picture(4))
    frames = [Image.fromarray(picture(3, seed=seed)) for seed in (3, 4)]
    files = {
        "lossless.webp": saved(rgb, "WEBP", lossless=True),
        "lossless_alpha.webp": saved(rgba, "WEBP", lossless=True, exact=True),
        "animated.webp": saved(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]),
        "animated_offset.webp": animation(rgb, (20, 14), (4, 2), 0, lossless=True),
        "animated_offset_blend.webp": animation(rgba, (20, 14), (4, 2), 0, lossless=True, exact=True),
        "animated_offset_no_blend.webp": animation(rgba, (20, 14), (4, 2), 2, lossless=True, exact=True),
        "animated_lossy_alpha.webp": animation(rgba, (W, H), (0, 0), 0, quality=90, exact=True),
        "lossy_alpha.webp": saved(rgba, "WEBP", quality=90, exact=True),
        "lossy.webp": saved(rgb, "WEBP", quality=80),
        "cut.webp": saved(rgb, "WEBP", lossless=True)[:-40],
        "gray.pgm": saved(Image.fromarray(picture(1)[..., 0]), "PPM"),
        "rgb.ppm": saved(rgb, "PPM"),
        "bits.pbm": saved(Image.fromarray(picture(1)[..., 0]).convert("1"), "PPM"),
        "text.ppm": b"P3\n# a remark\n2 2 255\n1 2 3 4 5 6\n7 8 9 10 11 255\n",
        "text.pgm": b"P2 3 1 255 1 128 255\n",
        "text.pbm": b"P1 3 2 1 0 1 0 1 1\n",
        "deep.ppm": b"P6 13 9 65535\n" + (picture(3).astype(">u2") * 257 + 99).tobytes(),
        "deep.pgm": b"P5 13 9 65535\n" + (picture(1).astype(">u2") * 257 + 99).tobytes(),
        "cut_text.pgm": b"P2 3 2 9\n1 2 3 4 5",
        "bits_behind.pbm": b"P1 3 2\n101\n010\n1 1 2\n",
        "no_space.pbm": b"P1#\n3 2 101010",
        "remarks.ppm": b"P3 # one\r#two\n2#\n\n#\n2 100#\r\n1 2 3 # 4\n 4 5 6#\n\n7 8 9 10 11 1#1\n2 99 # end",
        "split.pgm": b"P2\n1#x\n0 1 25#\n5\n1#\n2 0#\n07 200 3 4 5 6 7 8 9\n",
        "too_high.pgm": b"P2 2 1 9 8 10\n",
        "clipped.pgm": b"P5 2 1 9\n\x08\x0b",
        "no_levels.pgm": b"P5 2 1 0\n\0\0",
        "many_levels.pgm": b"P5 1 1 65536\n\0\0",
        "long_number.pgm": b"P2 1 1 255 00000000012\n",
        "cut_bits.pbm": b"P4 9 2\n\xff\x80\x7f",
        "padded_bits.pbm": b"P4\n9 2\n\xa5\xff\x7f\x00",
        "spaces.pgm": b"P5\x0b2\t1\r15\x0c\x03\x09",
        "cut.ppm": saved(rgb, "PPM")[:-30],
        "alpha.pam": b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n" + bytes(range(8)),
    }
    # Ties are rounded to even.
    for levels in (1, 2, 3, 10, 15, 100, 127, 200, 254, 255, 256, 510, 1000, 4095, 65534, 65535):
        values = np.linspace(0, levels, min(levels + 1, 301)).astype(int)
        values = values[: len(values) // 3 * 3] if len(values) > 2 else np.array([0, levels, 0])
        text, kind = " ".join(map(str, values)).encode(), ">u1" if levels < 256 else ">u2"
        raw = values.astype(kind).tobytes()
        for plain, packed, name, width in ((b"P2", b"P5", "pgm", len(values)), (b"P3", b"P6", "ppm", len(values) // 3)):
            files[f"levels{levels}.{name}"] = packed + b" %d 1 %d\n" % (width, levels) + raw
            files[f"levels{levels}_text.{name}"] = plain + b" %d 1 %d\n" % (width, levels) + text
    return files


# What mixd does otherwise than Pillow, as its table says (docs/formats.md). Of all other files each pixel is compared.
TOLERANCES = {
    "exact-or-refused": {
        "no_palette.gif", "lab.tif", "ycbcr.tif", "tiff_ccitt.tif", "group3_2d.tif", "signed8.tif", "signed16.tif", "integers32.tif", "bits12.tif",
    },
    "free": {"planar_associated.tif"},
    # Pillow fills in missing data, or leaves pixels uninitialized.
    "refused": {"jpeg_cut.tif", "jpeg_narrow.tif"},
}  # fmt: skip


def entry(name: str, data: bytes) -> tuple[dict[str, object], np.ndarray | None]:
    found: dict[str, object] = {"file": name, "bytes": len(data)}
    tolerance = next((tolerance for tolerance, names in TOLERANCES.items() if name in names), "exact")
    try:
        image = Image.open(io.BytesIO(data))
        found |= {"decodes": True, "format": image.format, "mode": image.mode}
        rgb = np.asarray(image.convert("RGB"))
    except Exception as error:
        return found | {"decodes": False, "error": type(error).__name__, "tolerance": tolerance}, None
    return found | {"height": rgb.shape[0], "width": rgb.shape[1], "tolerance": tolerance}, None if tolerance == "refused" else rgb


def main() -> None:
    assert PIL.__version__ == "11.3.0", "the golden values are those of Pillow 11.3.0"
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    entries, header, body = [], {}, b""
    for files in (pngs(), gifs(), bmps(), tiffs(), others()):
        for name, data in files.items():
            found, rgb = entry(name, data)
            entries.append(found)
            file = np.frombuffer(data, np.uint8)
            for key, values in ((f"file.{name}", file), (f"rgb.{name}", rgb)):
                if values is not None:
                    offsets = [len(body), len(body) + values.size]
                    header[key] = {"dtype": "U8", "shape": list(values.shape), "data_offsets": offsets}
                    body += values.tobytes()
    lines = ",\n  ".join(json.dumps(found) for found in entries)
    (out / "formats.json").write_text(f'{{"pillow": "{PIL.__version__}", "files": [\n  {lines}\n]}}\n')
    text = json.dumps(header).encode()
    (out / "formats.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)


if __name__ == "__main__":
    main()
