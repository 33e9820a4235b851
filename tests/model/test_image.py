"""Images from any source become upright 8-bit RGB, or end in a message that says why not."""

import io
import re
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.data_files import save_image
from helpers.tiny import tiny_image, tiny_processor
from PIL import Image, ImageOps

from modeling_qca import QCAProcessor


@pytest.fixture(scope="module")
def processor() -> QCAProcessor:
    return tiny_processor()


def seen(processor: QCAProcessor, image: object) -> torch.Tensor:
    """The picture the model gets, back in [0, 255], `[height, width, 3]`."""
    pixels = processor(images=image)["pixel_values"][0]
    return ((pixels * 0.5 + 0.5) * 255).permute(1, 2, 0)


FORMS = ["path", "string", "bytes", "array", "tensor", "file", "stream", "upload", "data_url", "base64", "datasets"]
FORMS += ["float_array", "float_tensor", "bfloat_tensor", "int32_array", "int64_tensor", "uint16_array"]


class Upload:
    """As `UploadFile` of FastAPI: `read` is a coroutine, `file` is the file."""

    def __init__(self, content: bytes):
        self.file = io.BytesIO(content)

    async def read(self) -> bytes:
        return self.file.read()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_gives_the_same_pixels(processor, form, tmp_path):
    picture = tiny_image()
    path = tmp_path / "picture.png"
    picture.save(path)
    array, stream = np.array(picture), io.BytesIO(path.read_bytes())
    stream.read()  # a file may have been read before
    image = {
        "file": path.open("rb"),
        "stream": stream,
        "upload": Upload(path.read_bytes()),
        "data_url": "data:image/png;base64," + b64encode(path.read_bytes()).decode(),
        "base64": b64encode(path.read_bytes()).decode(),
        "datasets": {"bytes": path.read_bytes(), "path": None},
        "float_array": array.astype(np.float32) / 255,
        "float_tensor": torch.from_numpy(array).permute(2, 0, 1) / 255,
        "bfloat_tensor": torch.from_numpy(array).to(torch.bfloat16),
        "int32_array": array.astype(np.int32),
        "int64_tensor": torch.from_numpy(array).long(),
        "uint16_array": array.astype(np.uint16) * 257,
        "path": path,
        "string": str(path),
        "bytes": path.read_bytes(),
        "array": array,
        "tensor": torch.from_numpy(array).permute(2, 0, 1),
    }[form]
    assert torch.equal(
        processor(images=[image, picture])["pixel_values"][0], processor(images=picture)["pixel_values"][0]
    )


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(processor, orientation, as_file, tmp_path):
    stored = tiny_image(size=(32, 24))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save_image(stored, tmp_path / "photo.png", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    turned = {5: 90, 6: 90, 7: 90, 8: 90}.get(orientation, 0)
    assert upright.size == ((24, 32) if turned else (32, 24))
    shown = seen(processor, path if as_file else Image.open(path))
    assert shown.allclose(seen(processor, upright), atol=1e-3)


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1 bit"])
def test_transparent_pixels_become_white(processor, mode, as_file, tmp_path):
    if mode == "P":
        image = Image.new("P", (32, 32), 1)
        image.putpalette([255, 0, 0, 0, 0, 0])
        options = {"transparency": 1}
    elif mode == "1 bit":
        image, options = Image.new("1", (32, 32), 0), {"transparency": 0}
    else:
        image, options = Image.new(mode, (32, 32), (0,) * len(mode)), {}
    path = save_image(image, tmp_path / "picture.png", **options)
    assert seen(processor, path if as_file else Image.open(path)).allclose(torch.full((32, 32, 3), 255.0), atol=1e-3)


@pytest.mark.parametrize("as_file", [False, True])
def test_16_bit_files_are_scaled_to_8_bits(processor, as_file, tmp_path):
    levels = np.repeat(np.linspace(0, 65535, 32).astype(np.uint16)[None], 32, axis=0)
    path = save_image(Image.fromarray(levels), tmp_path / "depth.png")
    shown = seen(processor, path if as_file else Image.open(path))
    expected = torch.from_numpy(levels.astype(np.float32) / 65535 * 255)
    assert (shown - expected[..., None]).abs().max() < 1.01


def test_cmyk_and_gray_images_are_converted_to_rgb(processor, tmp_path):
    path = save_image(Image.new("CMYK", (32, 32), (0, 255, 255, 0)), tmp_path / "print.jpg", quality=100)
    assert seen(processor, path).mean((0, 1)).allclose(torch.tensor([255.0, 0.0, 0.0]), atol=4)
    assert seen(processor, Image.new("L", (32, 32), 100)).allclose(torch.full((32, 32, 3), 100.0), atol=1e-3)


def test_an_animation_gives_its_first_frame(processor, tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime")]
    path = save_image(frames[0], tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert Image.open(path).n_frames == 2
    assert seen(processor, path).mean((0, 1)).allclose(torch.tensor([255.0, 0.0, 0.0]), atol=1)


def truncated(folder: Path) -> str:
    whole = io.BytesIO()
    tiny_image(size=(64, 64)).save(whole, "PNG")
    (folder / "half.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    return str(folder / "half.png")


def not_an_image(folder: Path) -> Path:
    (folder / "notes.jpg").write_text("no picture")
    return folder / "notes.jpg"


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (truncated, "half.png"),
        (not_an_image, "notes.jpg"),
        (lambda folder: str(folder / "absent.jpg"), "absent.jpg: .*No such file"),
        (lambda folder: folder, "directory"),
        (lambda folder: b"no picture", "10 bytes"),
        (lambda folder: 7, "7: expected"),
        (lambda folder: "data:image/png;base64,abc", "data:image/png"),
    ],
)
def test_error_names_the_unreadable_image(processor, make, name, tmp_path):
    image = make(tmp_path)
    with pytest.raises(ValueError, match=f"Cannot read the image.*{name}") as error:
        processor(images=[tiny_image(), image], text=["yes", "no"])
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("shape", [(40, 30), (40, 30, 4), (1, 40, 30), (40, 30, 2)])
def test_an_array_without_three_channels_is_refused(processor, shape):
    with pytest.raises(ValueError, match="is no RGB image: pass"):
        processor(images=[np.zeros(shape, np.uint8)])


def values_of(kind: str, levels: np.ndarray) -> object:
    """A gray picture of `levels` `[32, 32]` as an RGB array, or a PIL image of mode `kind`."""
    if kind in ("I", "F"):
        return Image.fromarray(levels.astype(np.int32 if kind == "I" else np.float32))
    if kind == "I;16":
        return Image.fromarray(levels.astype(np.uint16))
    return np.repeat(levels.astype(kind)[..., None], 3, axis=-1)


RAMP = np.repeat(np.linspace(0, 1, 32)[None], 32, axis=0)


@pytest.mark.parametrize(
    ("kind", "top"),
    [("F", 1), ("F", 255), ("I", 255), ("I", 65535), ("I;16", 255), ("I;16", 65535), ("float32", 1), ("float64", 1)]
    + [("float32", 255), ("int16", 255), ("int32", 255), ("uint16", 255), ("uint16", 65535), ("uint32", 65535)],
)
def test_values_of_a_clear_range_are_scaled_to_8_bits(processor, kind, top):
    shown = seen(processor, values_of(kind, RAMP * top))
    assert (shown - torch.from_numpy(RAMP * 255)[..., None]).abs().max() < 1.1


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("I", 0, 4095), ("I;16", 0, 4095), ("I", -5, 200), ("I", 0, 10**6), ("F", 0, 4095), ("F", -1, 1)]
    + [("int32", 0, 4095), ("uint16", 0, 1023), ("int16", -1024, 3071), ("float32", -2, 2), ("float32", 0, 65535)],
)
def test_values_of_an_unclear_range_are_refused_with_their_range(processor, kind, low, high):
    image = values_of(kind, low + RAMP * (high - low))
    with pytest.raises(ValueError, match=rf"from {low:g} to {re.escape(f'{high:g}')}, .*Pass integers from 0 to 255"):
        processor(images=image)


@pytest.mark.parametrize("kind", ["float32", "F"])
def test_values_that_are_not_finite_are_refused(processor, kind):
    levels = RAMP.copy()
    levels[3, 4] = np.nan
    with pytest.raises(ValueError, match="finite"):
        processor(images=values_of(kind, levels))


def test_arrays_are_taken_as_they_are_without_rescaling(processor):
    array = np.random.default_rng(0).random((32, 32, 3)).astype(np.float32)
    pixels = processor(images=array, do_rescale=False)["pixel_values"][0]
    np.testing.assert_allclose(pixels, (array.transpose(2, 0, 1) - 0.5) / 0.5, atol=0.01)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x18ftypheic", "HEIC"),
        (b"\0\0\0\x18ftypmif1", "HEIF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b'<?xml version="1.0"?><svg xmlns="...">', "SVG"),
        (b"<!DOCTYPE html><html><body>Sign in", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (b"", "empty"),
        (b"image,question\n", "text"),
        (bytes(range(1, 255)), "unknown"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_error_says_what_the_file_looks_like_and_which_formats_are_read(processor, content, kind, as_file, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{kind}.*formats read are BMP, GIF, JPEG, PNG, TIFF, WEBP"):
        processor(images=str(path) if as_file else content)


@pytest.mark.parametrize("source", ["data:image/png;base64," + "QUJD" * 400, "QUJD" * 400, b"ABC" * 400])
def test_error_contains_no_content_of_the_image(processor, source):
    with pytest.raises(ValueError, match="Cannot read the image") as error:
        processor(images=source)
    assert "QUJDQUJD" not in str(error.value) and "ABCABC" not in str(error.value)
