from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from metaformer.io.images import (
    ImageError,
    WhiteLevelWarning,
    guess_white_level,
    list_images,
    read_image,
    read_mask,
    resize_image,
    resize_map,
)
from tests.helpers import trees

RGB = trees.picture(3)
GREY = RGB[:, :, 1].copy()


def encoded(pixels, form: str, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def encoded16(pixels, suffix: str) -> bytes:
    """16-bit colour, which Pillow cannot write; channels given as RGB(A)."""
    order = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    ok, data = cv2.imencode(suffix, cv2.cvtColor(pixels, order))
    assert ok
    return data.tobytes()


# What is read


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_keep_every_pixel(form, options):
    assert np.array_equal(read_image(encoded(RGB, form, **options)), RGB)
    assert np.array_equal(read_image(encoded(GREY, form, **options)), np.dstack([GREY] * 3))


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_lossy_formats_come_close(form, options):
    image = read_image(encoded(RGB, form, quality=95, **options))
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - RGB).mean() < 4
    grey = read_image(encoded(GREY, form, quality=95, **options))
    assert np.abs(grey.astype(int) - GREY[:, :, None]).mean() < 4


def test_sources_agree(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(RGB, "PNG"))
    for source in (path, str(path), path.read_bytes(), RGB, Image.open(path)):
        assert np.array_equal(read_image(source), RGB)


def test_the_content_counts_not_the_ending(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(RGB, "PNG"))
    assert np.array_equal(read_image(path), RGB)


def test_results_can_be_written_to_so_that_torch_does_not_complain():
    for data in (encoded(RGB, "PNG"), encoded(GREY, "PNG"), encoded(RGB, "JPEG")):
        image = read_image(data)
        assert image.flags.writeable
        assert image.flags.c_contiguous


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_one_bit(form):
    bits = GREY > 127
    expected = np.dstack([bits * np.uint8(255)] * 3)
    assert np.array_equal(read_image(encoded(Image.fromarray(bits), form)), expected)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_palette(form):
    palette = Image.fromarray(RGB).quantize(16)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(read_image(encoded(palette, form)), expected)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_laid_over_black(form):
    alpha = np.zeros(GREY.shape, np.uint8)
    alpha[:, 20:] = 255
    alpha[:10] = 128
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    image = read_image(encoded(np.dstack([RGB, alpha]), form, **options))
    expected = RGB * (alpha[:, :, None] / 255.0)
    assert np.abs(image - expected).max() <= 0.5 + 1e-9
    assert image[20:, :20].max() == 0  # the hidden colour stays hidden


def test_grey_with_alpha_and_transparent_palette_and_colour_key():
    alpha = np.where(GREY > 100, 255, 0).astype(np.uint8)
    expected = np.dstack([np.where(GREY > 100, GREY, 0)] * 3)
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    assert np.array_equal(read_image(encoded(grey_alpha, "PNG")), expected)

    palette = Image.fromarray(RGB).quantize(8)
    image = read_image(encoded(palette, "PNG", transparency=0))
    assert image[np.asarray(palette) == 0].max() == 0

    key = tuple(int(value) for value in RGB[5, 5])
    assert not read_image(encoded(RGB, "PNG", transparency=key))[5, 5].any()


def test_cmyk_is_not_inverted():
    solid = np.zeros((16, 16, 3), np.uint8)
    solid[:] = (200, 30, 60)
    cmyk = Image.fromarray(solid).convert("CMYK")
    for form in ("JPEG", "TIFF"):  # Pillow's JPEG carries the Adobe marker: inverted values
        image = read_image(encoded(cmyk, form))
        assert np.abs(image.astype(int) - solid).max() <= 4, form


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_honoured(form, orientation, tmp_path):
    # What the camera stores is what turns into RGB when the orientation is undone. Blocks of one
    # colour, so that JPEG is faithful enough to tell the eight apart.
    corner = np.zeros((32, 48, 3), np.uint8)
    corner[:8, :8], corner[:8, 40:] = (255, 0, 0), (0, 255, 0)
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    upright = Image.fromarray(corner)
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(stored, form, exif=exif, **options)
    image = read_image(data)
    assert image.shape == corner.shape
    assert np.abs(image.astype(int) - corner).mean() < 3
    assert np.array_equal(image, read_image(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_16_bit_colour_png(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    eight = encoded(RGB, "PNG", exif=exif)
    wide = encoded16(RGB.astype(np.uint16) * 257, ".png")
    block = exif.tobytes().removeprefix(b"Exif\x00\x00")
    wide = wide[:33] + trees.png_chunk(b"eXIf", block) + wide[33:]  # after IHDR
    assert np.array_equal(read_image(wide), read_image(eight))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_16_bit_colour_tiff(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    eight = encoded(RGB, "TIFF", exif=exif)
    assert np.array_equal(read_image(tiff16(RGB, orientation)), read_image(eight))


def tiff16(rgb, orientation: int) -> bytes:
    """A minimal uncompressed little-endian 16-bit RGB TIFF (TIFF 6.0, section 6)."""
    height, width, _ = rgb.shape
    pixels = (rgb.astype("<u2") * 257).tobytes()
    after = 8 + len(pixels)
    bits = after + 2 + 11 * 12 + 4
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits), (259, 3, 1, 1),
        (262, 3, 1, 2), (273, 4, 1, 8), (274, 3, 1, orientation), (277, 3, 1, 3),
        (278, 4, 1, height), (279, 4, 1, len(pixels)), (284, 3, 1, 1),
    ]  # fmt: skip
    directory = np.uint16(len(tags)).tobytes()
    for tag, kind, count, value in tags:
        directory += (
            np.array([tag, kind], "<u2").tobytes() + np.array([count, value], "<u4").tobytes()
        )
    directory += bytes(4) + np.array([16, 16, 16], "<u2").tobytes()
    return b"II*\x00" + np.uint32(after).tobytes() + pixels + directory


def test_first_page_and_first_frame():
    others = [Image.fromarray(trees.picture(seed)) for seed in (4, 5)]
    for form, options in (("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(RGB, form, save_all=True, append_images=others, **options)
        assert np.array_equal(read_image(data), RGB), form


# 16 bits and decimals


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_grey_scales_by_white_level(form):
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = encoded(values, form)
    image = read_image(data, white_level=4095)
    assert image[0, 0, 0] == 0
    assert image.max() == 255
    assert np.abs(image[:, :, 0] - values * (255 / 4095)).max() <= 0.5
    assert read_image(data).max() == round(4095 / 257)
    assert (read_image(data, white_level=1023)[values >= 1023] == 255).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_keeps_its_lower_bits(suffix, channels):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 4096, (20, 30, channels), dtype=np.uint16)
    values[:, :, 3:] = 65535
    image = read_image(encoded16(values, suffix), white_level=4095)
    assert np.abs(image - values[:, :, :3] * (255 / 4095)).max() <= 0.5
    assert np.array_equal(image, read_image(values, white_level=4095))


def test_white_level_leaves_8_bits_alone():
    assert np.array_equal(read_image(RGB, white_level=4095), RGB)


@pytest.mark.parametrize("level", [0, -1, 65536, 1.5, True])
def test_white_level_out_of_range(level):
    with pytest.raises(ValueError, match="white_level"):
        read_image(RGB, white_level=level)


@pytest.mark.parametrize(
    ("brightest", "level"),
    [(0, 255), (255, 255), (256, 1023), (4000, 4095), (4096, 16383), (16384, 65535)],
)
def test_guess_white_level(brightest, level):
    dark = np.zeros((9, 9), np.uint16)
    bright = dark.copy()
    bright[4, 3:] = brightest
    assert guess_white_level([dark, encoded(bright, "PNG"), RGB]) == level


def test_hot_pixels_do_not_set_the_white_level():
    frames = [np.full((100, 100), 3000, np.uint16) for _ in range(10)]
    for frame in frames:
        frame[::50, ::30] = 65535  # 8 of 10,000
    assert guess_white_level(frames) == 4095
    assert guess_white_level(frames[:1]) == 4095


def test_one_odd_image_of_several_does_not_set_the_white_level():
    frames = [np.full((20, 20), 3000, np.uint16) for _ in range(5)]
    frames[2][:] = 65535
    assert guess_white_level(frames) == 4095
    dim = [np.full((20, 20), 800, np.uint16) for _ in range(6)]
    assert guess_white_level(dim + frames[3:]) == 4095  # two of eight are no accident


def test_guess_white_level_without_16_bit_images():
    assert guess_white_level([RGB, GREY]) is None


def test_an_unknown_white_level_is_told_at_the_first_16_bit_image():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(RGB, white_level=None)
        bright = read_image(np.full((20, 20), 25700, np.uint16), white_level=None)
    assert (bright == 100).all()
    with pytest.warns(WhiteLevelWarning, match="--white-level"):
        dark = read_image(np.full((20, 20), 2570, np.uint16), white_level=None)
    assert (dark == 10).all()


def test_float_tiff():
    values = np.linspace(0, 1, 200, dtype=np.float32).reshape(10, 20)
    image = read_image(encoded(values, "TIFF"))
    assert np.abs(image[:, :, 0] - values * 255).max() <= 0.5 + 1e-4
    with pytest.raises(ImageError, match=r"0 to 3.*Divide"):
        read_image(encoded(values * 3, "TIFF"))
    values[3, 3] = np.nan
    with pytest.raises(ImageError, match="NaN"):
        read_image(encoded(values, "TIFF"))


# Arrays


@pytest.mark.parametrize(
    "array",
    [
        GREY,
        GREY[:, :, None],
        np.dstack([GREY] * 3),
        np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]),
        GREY.astype(np.uint16) * 257,
        GREY.astype(">u2") * 257,
        GREY / 255,
        (GREY / 255).astype(np.float32)[:, :, None],
    ],
)
def test_arrays_of_every_accepted_kind(array):
    image = read_image(array)
    assert image.dtype == np.uint8
    assert np.array_equal(image, np.dstack([GREY] * 3))


def test_bool_array():
    assert np.array_equal(read_image(GREY > 9)[:, :, 2], (GREY > 9) * np.uint8(255))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((16, 16), np.int64), "int64"),
        (np.zeros((16, 16), np.complex64), "complex64"),
        (np.full((16, 16), 2.0), "decimal values from 2 to 2"),
        (np.full((16, 16), -0.5), "decimal values"),
        (np.full((16, 16), np.nan), "NaN"),
        (np.full((16, 16), np.inf), "infinite"),
        (np.zeros((3, 16, 16), np.uint8), "transpose"),
        (np.zeros((16, 16, 2), np.uint8), "accepted shapes"),
        (np.zeros((2, 16, 16, 3), np.uint8), "one by one"),
        (np.zeros(16, np.uint8), "accepted shapes"),
        (np.zeros((), np.uint8), "accepted shapes"),
        (np.zeros((0, 16, 3), np.uint8), "has none"),
        (np.zeros((16, 0), np.float32), "has none"),
        (np.zeros((7, 16, 3), np.uint8), "16 x 7"),
        (np.array([["a"] * 9] * 9), "accepted are uint8"),
    ],
)
def test_arrays_that_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        read_image(array)


@pytest.mark.parametrize("source", [None, 3, [RGB], object()])
def test_other_types_are_refused(source):
    with pytest.raises(ImageError, match=r"not an image source; accepted are"):
        read_image(source)


# Bad files: each names itself, the finding and the remedy


def reason(source, **options) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    error = caught.value
    assert isinstance(error, ValueError)
    assert str(error) == f"{error.path}: {error.reason}"
    if isinstance(source, Path):
        assert error.path == str(source)
    return error.reason


def test_missing_file(tmp_path):
    assert "no such file" in reason(tmp_path / "gone.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    assert "no such file" in reason(tmp_path / "link.png")
    assert "cannot be read" in reason("impossible\x00name.png")


def test_folder_given(tmp_path):
    assert "a folder" in reason(tmp_path)


def test_pipe_given_does_not_wait_for_ever(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "neither a file" in reason(tmp_path / "pipe.png")


def test_text_named_png(tmp_path):
    found = reason(trees.write_text_named_png(tmp_path / "note.png"))
    assert "found text" in found
    assert "PNG, JPEG, BMP, TIFF and WebP" in found


def test_other_formats_are_named():
    assert "GIF" in reason(encoded(GREY, "GIF"))
    assert "PDF" in reason(encoded(GREY, "PDF"))
    assert "HEIC" in reason(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00")
    assert "another kind" in reason(bytes(range(256)))


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    assert "empty" in reason(tmp_path / "empty.png")
    assert "empty" in reason(b"")


def test_one_pixel(tmp_path):
    assert "1 x 1" in reason(trees.write_one_pixel_png(tmp_path / "dot.png"))


def test_smallest_accepted():
    assert read_image(trees.picture(0, 8, 8)).shape == (8, 8, 3)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_permission_denied(tmp_path):
    path = trees.write_good_png(tmp_path / "secret.png")
    path.chmod(0)
    if os.geteuid() != 0:
        assert "no permission" in reason(path)
        return
    for folder in (tmp_path, *tmp_path.parents[:2]):  # root passes everywhere: step down
        folder.chmod(0o755)
    os.seteuid(65534)
    try:
        assert "no permission" in reason(path)
    finally:
        os.seteuid(0)


HUGE = """
import resource, sys, warnings
from metaformer.io.images import ImageError, read_image
warnings.simplefilter("error")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(sys.argv[1])
except ImageError as error:
    assert "20000 x 20000" in error.reason, error
else:
    raise SystemExit("accepted")
growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
assert growth < 20_000, f"{growth} kB"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in kilobytes")
@pytest.mark.parametrize("form", ["png", "bmp"])
def test_huge_image_is_refused_from_its_header(form, tmp_path):
    path = tmp_path / f"huge.{form}"
    if form == "png":
        trees.write_huge_png(path)
    else:  # 400 MB on paper, a few kilobytes on the disk
        grey = io.BytesIO()
        Image.fromarray(GREY).save(grey, "BMP")
        header = bytearray(grey.getvalue()[:1078])
        header[18:26] = np.array([20_000, 20_000], "<i4").tobytes()
        path.write_bytes(header)
        os.truncate(path, 1078 + 20_000 * 20_000)
    done = subprocess.run([sys.executable, "-c", HUGE, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_size_limit_is_exact(form):
    data = encoded(RGB, form)
    pixels = RGB.shape[0] * RGB.shape[1]
    assert read_image(data, max_pixels=pixels).shape == RGB.shape
    assert f"{pixels:,} in all" in reason(data, max_pixels=pixels - 1)
    assert "in all" in reason(RGB, max_pixels=pixels - 1)
    assert "in all" in reason(Image.fromarray(RGB), max_pixels=pixels - 1)


# Cut short or damaged: an error, never a picture with a grey part

WHOLE = {
    "png": encoded(RGB, "PNG"),
    "png palette": encoded(Image.fromarray(RGB).quantize(16), "PNG"),
    "png 16-bit grey": encoded(GREY.astype(np.uint16) * 257, "PNG"),
    "png 16-bit colour": encoded16(RGB.astype(np.uint16) * 257, ".png"),
    "jpeg": encoded(RGB, "JPEG", quality=90),
    "jpeg progressive": encoded(RGB, "JPEG", progressive=True),
    "jpeg grey": encoded(GREY, "JPEG"),
    "jpeg restarts": encoded(RGB, "JPEG", restart_marker_blocks=3),
    "jpeg thumbnail": encoded(RGB, "JPEG", exif=b"Exif\x00\x00" + encoded(GREY, "JPEG")),
    "webp": encoded(RGB, "WEBP"),
    "webp lossless": encoded(RGB, "WEBP", lossless=True),
    "bmp": encoded(RGB, "BMP"),
    "bmp grey": encoded(GREY, "BMP"),
    "tiff": encoded(RGB, "TIFF"),
    "tiff lzw": encoded(RGB, "TIFF", compression="tiff_lzw"),
    "tiff 64-bit": encoded(RGB, "TIFF", big_tiff=True),
    "tiff jpeg": encoded(RGB, "TIFF", compression="jpeg"),
    "tiff 16-bit colour": encoded16(RGB.astype(np.uint16) * 257, ".tiff"),
    "tiff 16-bit colour plain": tiff16(RGB, 1),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_at_any_byte_raises(kind, capfd):
    whole = WHOLE[kind]
    image = read_image(whole)
    step = max(1, len(whole) // 150)
    for cut in sorted({*range(1, len(whole), step), *range(max(1, len(whole) - 40), len(whole))}):
        try:
            part = read_image(whole[:cut])
        except ImageError:
            continue
        # Padding and metadata behind the last pixel may go missing unnoticed in BMP and TIFF.
        assert kind.startswith(("bmp", "tiff")), f"{cut} of {len(whole)} bytes were accepted"
        assert np.array_equal(part, image), f"{cut} of {len(whole)} bytes gave another image"
    assert capfd.readouterr() == ("", "")


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_damage_never_raises_anything_else(kind, data):
    damaged = bytearray(WHOLE[kind])
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


@settings(max_examples=100, deadline=None)
@given(start=st.sampled_from([data[:16] for data in WHOLE.values()]), rest=st.binary(max_size=300))
def test_random_bytes_behind_a_good_start(start, rest):
    with pytest.raises(ImageError):
        read_image(start + rest)


def test_wrong_checksum_is_damage():
    damaged = bytearray(WHOLE["png"])
    place = WHOLE["png"].index(b"IDAT") + 40
    damaged[place] ^= 0xFF
    assert "damaged" in reason(bytes(damaged))


def test_nothing_is_written_to_the_terminal(capfd):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    wide = WHOLE["png 16-bit colour"]
    bad_profile = trees.png_chunk(b"iCCP", b"x\x00\x00" + b"not zlib")
    data = [
        encoded(RGB, "PNG", icc_profile=profile),
        WHOLE["png"][:33] + bad_profile + WHOLE["png"][33:],
        wide[:33] + bad_profile + wide[33:],
        WHOLE["jpeg"] + b"trailing bytes",
        WHOLE["png"] + b"trailing bytes",
    ]
    half = len(WHOLE["jpeg"]) // 2
    data.append(WHOLE["jpeg"][:half] + WHOLE["jpeg"][half + 30 :])  # libjpeg: premature end
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 2000, zip=True)
    data.append(encoded(RGB, "PNG", pnginfo=text))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in data:
            try:
                read_image(source)
            except ImageError as error:
                assert "damaged" in error.reason
    assert capfd.readouterr() == ("", "")


# Masks, lists, sizes


def test_masks(tmp_path):
    truth = GREY > 127
    forms = {
        "plain.png": Image.fromarray(truth * np.uint8(255)),
        "bits.png": Image.fromarray(truth),
        "wide.png": Image.fromarray(truth * np.uint16(65535)),
        "classes.png": Image.fromarray(truth * np.uint8(2)),
        "wide_classes.tif": Image.fromarray(truth * np.uint16(1)),
        "colour.png": Image.fromarray(
            np.dstack([truth * np.uint8(200), *[truth * np.uint8(0)] * 2])
        ),
        "plain.bmp": Image.fromarray(truth * np.uint8(255)),
    }
    for name, image in forms.items():
        image.save(tmp_path / name)
        mask = read_mask(tmp_path / name)
        assert mask.dtype == np.bool_
        assert np.array_equal(mask, truth), name


def test_mask_threshold_and_jpeg_noise(tmp_path):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (9, 1))
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    assert np.array_equal(read_mask(tmp_path / "ramp.png"), ramp > 127)
    Image.fromarray(np.minimum(ramp, 20)).save(tmp_path / "noise.jpg")
    assert not read_mask(tmp_path / "noise.jpg").any()


def test_tiny_mask_is_read_and_bad_mask_is_not(tmp_path):
    assert read_mask(trees.write_one_pixel_png(tmp_path / "dot.png")).shape == (1, 1)
    with pytest.raises(ImageError, match="damaged"):
        read_mask(trees.write_truncated_png(tmp_path / "cut.png"))


def test_list_images(tmp_path):
    names = ["img10.png", "img2.PNG", "IMG1.jpg", "a.tiff", "b.webp", "c.bmp", "sub/x9.png"]
    hidden = [".hidden.png", "._img2.png", ".git/y.png", "__MACOSX/z.png", "Thumbs.db", "note.txt"]
    for name in names + hidden:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a.tiff", "b.webp", "c.bmp", "IMG1.jpg", "img2.PNG", "img10.png"]
    found = [
        path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path, recursive=True)
    ]
    assert found == ["a.tiff", "b.webp", "c.bmp", "IMG1.jpg", "img2.PNG", "img10.png", "sub/x9.png"]


def test_list_images_follows_links_once(tmp_path):
    trees.write_good_png(tmp_path / "real" / "a.png")
    (tmp_path / "real" / "up").symlink_to(tmp_path)
    (tmp_path / "real" / "b.png").symlink_to(tmp_path / "real" / "a.png")
    assert [path.name for path in list_images(tmp_path, recursive=True)] == ["a.png", "b.png"]


def test_list_images_of_what_is_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        list_images(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="a file"):
        list_images(trees.write_good_png(tmp_path / "a.png"))
    (tmp_path / "empty").mkdir()
    assert list_images(tmp_path / "empty") == []


@settings(max_examples=50, deadline=None)
@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    value=st.integers(0, 255),
)
def test_resizing_keeps_type_shape_and_flat_values(size, value):
    image = resize_image(np.full((20, 30, 3), value, np.uint8), size)
    assert image.shape == (*size, 3)
    assert image.dtype == np.uint8
    assert (image == value).all()
    resized = resize_map(np.full((20, 30), value / 7, np.float32), size)
    assert resized.shape == size
    assert resized.dtype == np.float32
    assert np.allclose(resized, value / 7)


def test_shrinking_averages_areas():
    checkers = (np.indices((16, 16)).sum(axis=0) % 2).astype(np.float32)
    assert np.allclose(resize_map(checkers, (8, 8)), 0.5)


def test_the_six_of_a_bad_folder(tmp_path):
    folder = trees.write_bad_folder(tmp_path)
    good = []
    for path in list_images(folder):
        try:
            good.append((path.stem, read_image(path).shape))
        except ImageError as error:
            assert str(path) in str(error)
    assert good == [("1_good", (40, 56, 3)), ("6_grey16", (40, 56, 3))]


# Telling 16 bits by the first bytes


@pytest.mark.parametrize("form", ["PNG", "BMP", "JPEG", "WEBP"])
def test_files_of_8_bits_are_not_decoded_for_the_white_level(form):
    cut_short = encoded(RGB, form)[:40]  # decoding it would raise
    assert guess_white_level([cut_short]) is None


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_files_of_16_bits_are(suffix, tmp_path):
    path = tmp_path / f"deep{suffix}"
    path.write_bytes(encoded16(np.full((20, 30, 3), 900, np.uint16), suffix))
    assert guess_white_level([path]) == guess_white_level([path.read_bytes()]) == 1023
