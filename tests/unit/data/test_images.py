"""The pixel conventions: what is refused and why, and that no step moves or recolours pixels."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from galray.core.errors import ConfigError, ImageRejected, InputError
from galray.core.schema import REJECT_REASONS
from galray.data import images
from galray.data.images import Rendering, check_image, lupton_rgb

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def rgb():
    ramp = np.linspace(0, 255, 424)
    plane = np.add.outer(ramp, ramp) / 2
    return np.stack([plane, plane.T[::-1], 255 - plane], axis=-1).astype(np.uint8)


def encoded(mode, kind, size=(424, 424), **options):
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def png_claiming(width, height):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def reason_for(data, *, size=None, decode=False):
    with pytest.raises(ImageRejected) as caught:
        check_image(data, expected_size_px=size, max_pixels=MAX_PIXELS, decode=decode)
    assert caught.value.reason in REJECT_REASONS
    return caught.value.reason


def test_checking_finds_the_damage_that_full_decoding_finds(rgb):
    random = np.random.default_rng(0)
    faults = 0
    for progressive in (False, True):
        sound = saved(rgb[:96, :96], progressive)
        for _ in range(400):
            cut = sound[: random.integers(600, len(sound))] + sound[-2:]
            faults += faulty(cut)
            assert faulty(cut) != fully_decodes(cut)
    assert faults > 5  # libjpeg fills what is missing with grey, and complains of few


def saved(rgb, progressive):
    buffer = BytesIO()
    grain = np.random.default_rng(1).integers(0, 60, rgb.shape, dtype=np.uint8)
    Image.fromarray(rgb // 2 + grain).save(buffer, "JPEG", quality=90, progressive=progressive)
    return buffer.getvalue()


def faulty(data):
    try:
        check_image(data, expected_size_px=None, decode=True)
    except ImageRejected:
        return True
    return False


def fully_decodes(data):
    try:
        images.decode_rgb(data)
    except ImageRejected:
        return False
    return True


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize(
    "data",
    [
        encoded("RGB", "JPEG"),
        encoded("RGB", "JPEG", progressive=True, quality=95, subsampling=0),
        encoded("RGB", "PNG"),
        encoded("RGB", "JPEG") + bytes(6000),
        encoded("RGB", "PNG") + b"\r\n",
        encoded("RGB", "JPEG", comment=b"c" * 60_000),
    ],
)
def test_good_images_pass(data, decode):
    assert check_image(data, expected_size_px=(424, 424), max_pixels=MAX_PIXELS, decode=decode) == (424, 424)


def test_size_is_height_then_width():
    data = encoded("RGB", "JPEG", size=(300, 200))
    assert check_image(data, expected_size_px=(200, 300), max_pixels=MAX_PIXELS, decode=False) == (200, 300)
    assert reason_for(data, size=(300, 200)) == "wrong_size"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_an_image"),
        (b"<html><body>404 Not Found</body></html>", "not_an_image"),
        (encoded("RGB", "GIF"), "not_an_image"),
        (encoded("RGB", "TIFF"), "not_an_image"),
        (b"\xff\xd8\xff\xe0\x00\x10" + b"A" * 500, "not_an_image"),
        (encoded("RGB", "JPEG")[:2], "truncated_image"),
        (encoded("RGB", "JPEG")[:100], "truncated_image"),
        (encoded("RGB", "PNG")[:20], "truncated_image"),
        (encoded("RGB", "JPEG")[:-2], "truncated_image"),
        (encoded("RGB", "JPEG")[:-200], "truncated_image"),
        (encoded("RGB", "PNG")[:-12], "truncated_image"),
        (encoded("L", "JPEG"), "wrong_mode"),
        (encoded("CMYK", "JPEG"), "wrong_mode"),
        (encoded("L", "PNG"), "wrong_mode"),
        (encoded("P", "PNG"), "wrong_mode"),
        (encoded("RGBA", "PNG"), "wrong_mode"),
        (encoded("I;16", "PNG"), "wrong_mode"),
        (png_claiming(50_000, 50_000), "decompression_bomb"),
        (png_claiming(0, 10), "not_an_image"),
    ],
)
@pytest.mark.parametrize("decode", [False, True])
def test_each_fault_has_its_reason(data, reason, decode):
    assert reason_for(data, size=(424, 424), decode=decode) == reason


def test_every_cut_of_a_jpeg_is_truncated():
    data = encoded("RGB", "JPEG", size=(32, 32))
    reasons = {reason_for(data[:n]) for n in range(1, len(data))}
    assert reasons == {"truncated_image"}


def test_decoding_finds_damage_that_the_header_hides():
    data = png_claiming(64, 64)
    assert check_image(data, expected_size_px=None, max_pixels=MAX_PIXELS, decode=False) == (64, 64)
    assert reason_for(data, decode=True) in ("truncated_image", "not_an_image")


def test_png_keeps_every_pixel_and_jpeg_nearly(rgb):
    np.testing.assert_array_equal(images.decode_rgb(images.encode_png(rgb)), rgb)
    error = np.abs(images.decode_rgb(images.encode_jpeg(rgb, quality=95)).astype(int) - rgb)
    assert error.mean() < 2


def test_crop_and_resize_keep_the_centre(rgb):
    assert images.crop_centre(rgb, 424) is not None
    np.testing.assert_array_equal(images.crop_centre(rgb, 256), rgb[84:340, 84:340])
    spot = np.zeros((256, 256, 3), np.uint8)
    spot[124:132, 124:132] = 255
    y, x = np.nonzero(images.resize(spot, 64)[..., 0] > 127)
    assert (y.mean(), x.mean()) == (31.5, 31.5)
    with pytest.raises(InputError, match="Crop less"):
        images.crop_centre(rgb, 500)


@pytest.mark.parametrize("shape", [(8, 9, 3), (5, 8, 9, 3)])
def test_tensor_range_returns_every_level(shape):
    levels = np.resize(np.arange(256, dtype=np.uint8), shape)
    tensor = images.to_tensor_range(levels)
    assert tensor.dtype == np.float32
    assert tensor.shape[-3:] == (3, 8, 9)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    np.testing.assert_array_equal(images.from_tensor_range(tensor), levels)


def test_lupton_maps_bands_and_turns_rows_up():
    gri = np.zeros((3, 4, 4), np.float32)
    gri[2, 0] = 0.3  # i band, lowest row of the sky
    rgb = lupton_rgb(gri, Rendering(minimum=(0, 0, 0)))
    assert rgb.dtype == np.uint8
    assert rgb.shape == (4, 4, 3)
    assert rgb[-1, 0, 0] > 50
    assert rgb[-1, 0, 1:].max() == 0
    assert rgb[:-1].max() == 0


def test_lupton_keeps_colour_where_it_saturates():
    gri = np.array([1.0, 2.0, 4.0], np.float32)[:, None, None] * np.array([[0.5, 50.0]], np.float32)
    faint, bright = lupton_rgb(gri, Rendering(minimum=(0, 0, 0)))[0].astype(float)
    assert bright.max() == 255
    np.testing.assert_allclose(bright / bright[0], faint / faint[0], atol=0.02)


def test_rendering_refuses_what_cannot_be():
    with pytest.raises(ConfigError, match="must be positive"):
        Rendering(stretch=0)


def test_many_pictures_are_coloured_as_one_by_one():
    gri = np.random.default_rng(0).gamma(0.3, 1.0, (4, 2, 3, 11, 9)).astype(np.float32)
    many = lupton_rgb(gri, Rendering())
    assert many.shape == (4, 2, 11, 9, 3)
    for i, j in np.ndindex(4, 2):
        np.testing.assert_array_equal(many[i, j], lupton_rgb(gri[i, j], Rendering()))
