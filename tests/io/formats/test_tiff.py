"""TIFF and PNG files of every kind that cameras and editors write: the right pixels, or their kind
by name."""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from metaformer.io.formats.lzw import decompress_lzw
from metaformer.io.images import ImageError, pixels_of, read_image
from tests.helpers import trees

RGB = trees.picture(3, 40, 56)
WIDE = RGB.astype(np.uint16) * 257
GREY = RGB[:, :, 1].copy()


def tiff(pixels, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, metadata=None, **options)
    return buffer.getvalue()


def retagged(data: bytes, tag: int, value: int) -> bytes:
    """A little-endian TIFF with another (short) value of ``tag`` in its first directory."""
    changed = bytearray(data)
    (place,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, place)
    for at in range(place + 2, place + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<HII", changed, at + 2, 3, 1, value)
            return bytes(changed)
    raise LookupError(tag)


def reason(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(data)
    return caught.value.reason


# The same pixels, however they are stored


@pytest.mark.parametrize("pixels", [RGB, WIDE], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw", "packbits", "lzma"])
@pytest.mark.parametrize("tile", [None, (16, 32)], ids=["strips", "tiles"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_planes_tiles_and_compressions(pixels, compression, tile, planar):
    stored = pixels if planar == "contig" else np.moveaxis(pixels, 2, 0)
    data = tiff(
        stored,
        photometric="rgb",
        planarconfig=planar,
        compression=compression,
        tile=tile,
        rowsperstrip=None if tile else 7,
    )
    assert np.array_equal(read_image(data), RGB)
    assert pixels_of(data) == RGB.shape[0] * RGB.shape[1]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("predictor", [False, True])
def test_byte_orders_and_predictors(order, bigtiff, predictor):
    options = {"compression": "zlib", "predictor": True} if predictor else {}
    data = tiff(WIDE, photometric="rgb", byteorder=order, bigtiff=bigtiff, **options)
    assert np.array_equal(read_image(data), RGB)


@pytest.mark.parametrize("colour", ["rgb", "ycbcr"])
def test_jpeg_inside_tiff_in_tiles(colour):
    data = tiff(
        np.asarray(Image.fromarray(RGB).convert("RGB" if colour == "rgb" else "YCbCr")),
        photometric=colour,
        compression="jpeg",
        compressionargs={"level": 95},
        tile=(16, 16),
        subsampling=(1, 1),
    )
    assert np.abs(read_image(data).astype(int) - RGB).mean() < 4


@settings(max_examples=60, deadline=None)
@given(
    content=st.lists(st.tuples(st.binary(min_size=1, max_size=4), st.integers(1, 900))),
    share=st.floats(0, 1),
)
def test_lzw_is_the_inverse_of_another_library(content, share):
    plain = b"".join(piece * times for piece, times in content)
    packed = imagecodecs.lzw_encode(plain)
    size = int(len(plain) * share)
    assert decompress_lzw(packed, len(plain)) == plain
    assert decompress_lzw(packed, size) == plain[:size]


def test_jpeg_inside_tiff_is_as_pillow_reads_it():
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "TIFF", compression="jpeg", quality=95)
    expected = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    assert np.abs(read_image(buffer.getvalue()) - expected).max() <= 3


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "RGBA", "LA"])
def test_8_bit_kinds_are_as_pillow_reads_them(mode):
    picture = Image.fromarray(RGB)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(GREY))
    stored = picture.quantize(16) if mode == "P" else picture.convert(mode)
    buffer = io.BytesIO()
    stored.save(buffer, "TIFF")
    expected = read_image(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.abs(read_image(buffer.getvalue()).astype(int) - expected).max() <= 1


def test_luma_and_chroma_become_rgb():
    ycbcr = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    data = tiff(ycbcr, photometric="ycbcr", subsampling=(1, 1))
    assert np.abs(read_image(data).astype(int) - RGB).max() <= 3


def test_reading_gives_the_same_each_time():
    data = tiff(np.moveaxis(WIDE, 2, 0), photometric="rgb", planarconfig="separate")
    assert len({read_image(data).tobytes() for _ in range(5)}) == 1


# Channels beyond colour


@pytest.mark.parametrize("pixels", [RGB, WIDE], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("value", [0, 77, 255])
def test_unspecified_channels_are_dropped(pixels, value):
    scale = pixels.dtype.type(1 if pixels.dtype == np.uint8 else 257)
    extra = np.full(GREY.shape, value, pixels.dtype) * scale
    one = tiff(np.dstack([pixels, extra]), photometric="rgb", extrasamples=["unspecified"])
    assert np.array_equal(read_image(one), RGB)
    two = np.dstack([pixels, extra, extra])
    assert np.array_equal(
        read_image(tiff(two, photometric="rgb", extrasamples=["unspecified"] * 2)), RGB
    )
    grey = np.dstack([pixels[:, :, 1], extra])
    data = tiff(grey, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"])
    assert np.array_equal(read_image(data), np.dstack([GREY] * 3))


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_laid_over_black_once(bits):
    scale = 1 if bits == 8 else 257
    alpha = np.zeros(GREY.shape, int)
    alpha[:, 10:], alpha[:, 30:] = 128, 255
    kind = np.uint8 if bits == 8 else np.uint16
    plain = np.dstack([RGB, alpha]).astype(kind) * kind(scale)
    over_black = RGB * (alpha[:, :, None] / 255)
    image = read_image(tiff(plain, photometric="rgb", extrasamples=["unassalpha"]))
    assert np.abs(image - over_black).max() <= 1
    multiplied = np.dstack([np.rint(over_black), alpha]).astype(kind) * kind(scale)
    image = read_image(tiff(multiplied, photometric="rgb", extrasamples=["assocalpha"]))
    assert np.abs(image - over_black).max() <= 1


def test_alpha_of_zero_everywhere_does_not_blacken_an_image():
    """Programs that store four bytes a pixel leave the fourth at zero."""
    picture = np.dstack([RGB, np.zeros_like(GREY)])
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "PNG")
    for source in (picture, png.getvalue(), Image.fromarray(picture)):
        assert np.array_equal(read_image(source), RGB)
    assert np.array_equal(
        read_image(tiff(picture, photometric="rgb", extrasamples=["unassalpha"])), RGB
    )


# Sample formats


@pytest.mark.parametrize("bits", [9, 10, 12, 14])
@pytest.mark.parametrize("pixels", [RGB, GREY], ids=["RGB", "grey"])
def test_packed_samples_are_scaled_by_their_depth(bits, pixels):
    white = 2**bits - 1
    values = np.rint(pixels / 255 * white).astype(np.uint16)
    runlen = values.size // values.shape[0]
    packed = imagecodecs.packints_encode(values.reshape(-1), bits, runlen=runlen)
    plain = tiff(pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", rowsperstrip=40)
    with tifffile.TiffFile(io.BytesIO(plain)) as file:
        tags = file.pages.first.tags
        offset, place = tags[273].valueoffset, tags[258]
    data = bytearray(plain) + packed
    struct.pack_into("<I" if tags[273].dtype == 4 else "<H", data, offset, len(plain))
    length = tags[279]
    struct.pack_into("<I" if length.dtype == 4 else "<H", data, length.valueoffset, len(packed))
    for channel in range(place.count):
        struct.pack_into("<H", data, place.valueoffset + 2 * channel, bits)
    image = read_image(bytes(data))
    expected = pixels if pixels.ndim == 3 else np.dstack([pixels] * 3)
    assert np.abs(image.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_decimals_of_any_precision(kind):
    image = read_image(tiff((RGB / 255).astype(kind), photometric="rgb"))
    assert np.abs(image.astype(int) - RGB).max() <= 1
    too_bright = reason(tiff(RGB.astype(kind), photometric="rgb"))
    assert "accepted is [0, 1]" in too_bright


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.uint32])
def test_other_integers_within_16_bits(kind):
    values = np.full((20, 20), 25700, kind)
    assert (read_image(tiff(values)) == 100).all()


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (np.full((20, 20), -5, np.int16), "signed 16-bit values from -5 to -5"),
        (np.full((20, 20), 70000, np.uint32), "32-bit values from 70000"),
        (np.full((20, 20), 3, np.int8), "signed 8-bit values"),
        (np.full((20, 20), 1, np.complex64), "complex numbers"),
    ],
)
def test_samples_that_are_no_grey_levels_are_named(pixels, found):
    assert found in reason(tiff(pixels))


def test_white_as_zero_is_turned_round():
    data = tiff(255 - GREY, photometric="miniswhite")
    assert np.array_equal(read_image(data), np.dstack([GREY] * 3))
    assert "white as zero" in reason(tiff(WIDE[:, :, 1], photometric="miniswhite"))


# Kinds that are not read are named, and not called damaged


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (tiff(np.dstack([RGB, RGB]), photometric="minisblack", planarconfig="contig"), "6 channel"),
        (tiff(np.dstack([WIDE, WIDE[:, :, :1]]), photometric="separated"), "16-bit CMYK"),
        (tiff(RGB, photometric="cielab"), "CIELab"),
        (retagged(tiff(GREY), 262, 32803), "colour filter array"),
        (retagged(tiff(GREY, rowsperstrip=40), 259, 6), "old-style JPEG"),
        (tiff(RGB, photometric="rgb", compression="jpeg2000"), "JPEG 2000 inside TIFF"),
        (tiff(RGB, photometric="rgb", compression="zstd"), "Zstandard inside TIFF"),
        (tiff(RGB, photometric="rgb", compression="webp"), "WebP inside TIFF"),
        (tiff(RGB, photometric="rgb", compression="jpegxl"), "JPEG XL inside TIFF"),
        (retagged(tiff(GREY, rowsperstrip=40), 259, 4711), "compression 4711 inside TIFF"),
        (retagged(tiff(GREY, rowsperstrip=40), 259, 4), "as for fax"),
        (
            tiff(
                np.zeros((1, 4, 32, 32), np.uint8),
                photometric="minisblack",
                volumetric=True,
                tile=(4, 32, 32),
            ),
            "volume",
        ),
    ],
)
def test_kinds_that_are_not_read_are_named(data, found):
    why = reason(data)
    assert found in why
    assert "damaged" not in why
    assert "Save it as PNG" in why


def test_other_formats_are_named_by_their_content():
    assert "JPEG 2000" in reason(b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(40))
    assert "JPEG XL" in reason(b"\xff\x0a" + bytes(range(200, 255)))
    assert "PNM" in reason(b"P5\n8 8\n255\n" + bytes(64))
    assert "OpenEXR" in reason(b"\x76\x2f\x31\x01" + bytes(40))


def test_jpeg_kinds_are_named():
    assert "12-bit JPEG" in reason(
        imagecodecs.jpeg8_encode(GREY.astype(np.uint16) * 16, bitspersample=12)
    )


# Odd but sound files


def test_pages_before_the_photo_that_are_previews():
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(RGB[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)
        writer.write(RGB, photometric="rgb", metadata=None)
    assert np.array_equal(read_image(buffer.getvalue()), RGB)


def test_private_tags_that_are_damaged_do_not_matter(capfd):
    data = bytearray(tiff(RGB, photometric="rgb", extratags=[(65000, 2, 0, "x" * 99, True)]))
    (place,) = struct.unpack_from("<I", data, 4)
    for at in range(place + 2, place + 2 + 12 * struct.unpack_from("<H", data, place)[0], 12):
        if struct.unpack_from("<H", data, at)[0] == 65000:
            struct.pack_into("<I", data, at + 8, 10**8)  # its text lies beyond the file
    logging.getLogger().handlers.clear()  # as outside a test: Python prints what nobody handles
    assert np.array_equal(read_image(bytes(data)), RGB)
    assert capfd.readouterr() == ("", "")


def test_missing_strips_are_damage_and_not_black():
    data = tiff(RGB, photometric="rgb", rowsperstrip=10, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        lengths = file.pages.first.tags[279]
    holed = bytearray(data)
    holed[lengths.valueoffset : lengths.valueoffset + 2] = b"\0\0"
    assert "damaged" in reason(bytes(holed))


def test_a_jpeg_inside_that_is_far_larger_than_its_place_is_not_decoded():
    data = bytearray(tiff(RGB, photometric="ycbcr", compression="jpeg"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = b"\xff\x00\xff\x00"  # 65,280 x 65,280 pixels
    assert "JPEG that is larger than its place" in reason(bytes(data))


FUZZED = {
    "planes lzw": tiff(
        np.moveaxis(WIDE, 2, 0), photometric="rgb", planarconfig="separate", compression="lzw"
    ),
    "tiles lzw": tiff(RGB, photometric="rgb", tile=(16, 16), compression="lzw"),
    "jpeg": tiff(RGB, photometric="ycbcr", compression="jpeg"),
    "decimals": tiff(
        (RGB / 255).astype(np.float32), photometric="rgb", compression="zlib", predictor=3
    ),
    "palette": tiff(
        GREY, photometric="palette", colormap=np.zeros((3, 256), np.uint16), compression="packbits"
    ),
}


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(sorted(FUZZED)), data=st.data())
def test_damage_is_an_error_or_an_image(kind, data):
    damaged = bytearray(FUZZED[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            image = read_image(bytes(damaged))
        except ImageError:
            return
    assert image.dtype == np.uint8
    assert image.shape[2] == 3


@pytest.mark.parametrize("kind", sorted(FUZZED))
def test_damage_says_nothing_on_the_terminal(kind, capfd):
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(FUZZED[kind])
        for place in rng.integers(8, len(damaged), 3):
            damaged[place] = rng.integers(256)
        try:
            read_image(bytes(damaged))
        except ImageError:
            continue
    assert capfd.readouterr() == ("", "")


# PNG: what stands beside the pixels does not matter


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    return png[:33] + b"".join(chunks) + png[33:]  # behind IHDR


def png(pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("size", [2_000, 2_000_000])
def test_large_metadata_of_a_png(size, capfd):
    noise = np.random.default_rng(0).bytes(size)
    chunks = [
        trees.png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(noise)),
        trees.png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"a" * size)),
        trees.png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"a" * size)),
        trees.png_chunk(b"tEXt", b"Comment\0" + b"a" * size),
        trees.png_chunk(b"tIME", b"\0\0\0\0\0\0\0"),
    ]
    for pixels in (RGB, GREY, WIDE[:, :, 1]):
        assert np.array_equal(read_image(with_chunks(png(pixels), *chunks)), read_image(pixels))
    broken = bytearray(chunks[1])
    broken[-1] ^= 1
    assert np.array_equal(read_image(with_chunks(png(RGB), bytes(broken))), RGB)
    assert capfd.readouterr() == ("", "")


def test_the_turn_in_the_text_of_a_png_still_counts():
    text = PngImagePlugin.PngInfo()
    exif = Image.Exif()
    exif[0x0112] = 6
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    text.add_text("Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n")
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "PNG", pnginfo=text)
    assert np.array_equal(read_image(buffer.getvalue()), np.rot90(RGB, -1))


def test_16_bit_grey_and_alpha_png():
    alpha = np.full(GREY.shape, 65535, np.uint16)
    data = imagecodecs.png_encode(np.dstack([WIDE[:, :, 1], alpha]))
    assert np.array_equal(read_image(data), np.dstack([GREY] * 3))
