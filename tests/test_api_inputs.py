"""What encode and decode take: images as users have them, in any context of PyTorch."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp.data import write_image
from lora_comp.data.images import read_mask, to_image, to_mask

SIZE = (24, 40)


@pytest.fixture(scope="module")
def bytes_(make_image):
    """A photograph in steps of 1/255: uint8 (H, W, 3)."""
    return make_image(*SIZE).mul(255).round().byte().permute(1, 2, 0).numpy()


def tensor_of(values: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(values.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


FORMS = {
    "uint8": lambda a: a,
    "uint16": lambda a: a.astype(np.uint16) * 257,
    "big-endian": lambda a: (a.astype(np.uint16) * 257).astype(">u2"),
    "float32": lambda a: a.astype(np.float32) / 255,
    "float64": lambda a: a / 255,
    "mirrored view": lambda a: np.ascontiguousarray(a[:, ::-1])[:, ::-1],
    "read-only": lambda a: np.frombuffer(a.tobytes(), np.uint8).reshape(a.shape),
    "opaque alpha": lambda a: np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
    "PIL": Image.fromarray,
    "PIL with alpha": lambda a: Image.fromarray(a).convert("RGBA"),
}


@pytest.mark.parametrize("form", FORMS)
def test_arrays_and_pil_images_are_the_same_image(bytes_, form):
    image = to_image(FORMS[form](bytes_))
    assert image.dtype == torch.float32 and image.is_contiguous()
    assert torch.allclose(image, tensor_of(bytes_), atol=1e-7)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read(tmp_path, bytes_, kind):
    write_image(tmp_path / "a.png", tensor_of(bytes_))
    assert torch.equal(to_image(kind(tmp_path / "a.png")), tensor_of(bytes_))


@pytest.mark.parametrize("shape", ["(H, W)", "(H, W, 1)"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32, bool])
def test_grey_arrays_become_rgb(shape, kind):
    values = np.array([[0, 1, 1], [1, 0, 1]])
    array = values.astype(kind) * (np.iinfo(kind).max if kind in (np.uint8, np.uint16) else kind(1))
    image = to_image(array[..., None] if "1" in shape else array)
    assert torch.equal(image, torch.from_numpy(values).float().expand(3, 2, 3))


def test_transparency_of_arrays_shows_white():
    half = np.array([[[0.2, 0.4, 0.6, 0.5]]])
    assert to_image(half).flatten().tolist() == pytest.approx([0.6, 0.7, 0.8])
    assert to_image(np.array([[[0, 0]]], np.uint8)).flatten().tolist() == [1, 1, 1]


def test_a_tensor_is_taken_as_it_is(make_image):
    image = make_image()
    assert to_image(image) is image


@pytest.mark.parametrize(
    "image, says",
    [
        (np.zeros((8, 8, 3), np.int64), "int64 has no agreed range"),
        (np.zeros((8, 8, 3), np.int16), "int16 has no agreed range"),
        (np.zeros((8, 8, 3), np.uint32), "uint32 has no agreed range"),
        (np.zeros((8, 8, 3), complex), "complex128 has no agreed range"),
        (np.array([["a"]]), "no agreed range"),
        (np.zeros((8, 8), object), "object has no agreed range"),
        (np.full((8, 8, 3), 255.0), r"must lie in \[0, 1\]"),
        (np.full((8, 8, 3), -0.1), r"must lie in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"must lie in \[0, 1\]"),
        (np.full((8, 8, 4), 255.0), r"must lie in \[0, 1\]"),
        (np.zeros((3, 8, 8), np.uint8), "move its channels last"),
        (np.zeros((3, 8, 8)), "move its channels last"),
        (np.zeros((1, 3, 8, 8)), r"not \(1, 3, 8, 8\)"),
        (np.zeros((8, 8, 5), np.uint8), r"not \(8, 8, 5\)"),
        (np.zeros((0, 8, 3), np.uint8), r"not \(0, 8, 3\)"),
        (np.zeros(8, np.uint8), r"not \(8,\)"),
        (np.float32(0.5), "not float32"),
        (Image.new("F", (8, 8)), "floating-point samples"),
        (Image.new("I", (8, 8)), "samples of 32 bits"),
        ([[0, 1]], "not list"),
        (None, "not NoneType"),
        (b"\x89PNG", "not bytes"),
        ("nowhere.png", "nowhere.png does not exist"),
        ("", "folder|does not exist"),
    ],
)
def test_what_is_no_image_raises_one_line(codec, image, says):
    with pytest.raises(lc.LoraCompError, match=says) as error:
        lc.encode(image, codec, method="none")
    assert "\n" not in str(error.value)


def test_a_batch_of_any_forms(tmp_path, codec, bytes_):
    write_image(tmp_path / "a.png", tensor_of(bytes_))
    expected = lc.encode(tensor_of(bytes_), codec, method="none").data
    forms = [tensor_of(bytes_), bytes_, Image.fromarray(bytes_), tmp_path / "a.png"]
    assert [one.data for one in lc.encode_batch(forms, codec, method="none")] == [expected] * 4
    assert [one.data for one in lc.encode_batch(np.stack([bytes_] * 2), codec, method="none")] == [expected] * 2
    for wrong in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(bytes_)):
        with pytest.raises(lc.LoraCompError, match="a batch is a list of images"):
            lc.encode_batch(wrong, codec, method="none")


def test_decode_and_info_take_bytes_paths_and_what_encode_returned(tmp_path, codec, make_image):
    coded = lc.encode(make_image(*SIZE), codec, method="none")
    (tmp_path / "a.lcz").write_bytes(coded.data)
    expected = lc.decode(coded.data, codec)
    forms = (coded, bytearray(coded.data), memoryview(coded.data), tmp_path / "a.lcz", str(tmp_path / "a.lcz"))
    for form in forms:
        assert torch.equal(lc.decode(form, codec), expected)
    for form in forms[1:]:
        assert lc.info(form) == lc.info(coded.data)
    for wrong, says in (
        (None, "bytes or a path, not NoneType"),
        ("nowhere.lcz", "cannot read nowhere"),
        (".", "Is a dir"),
    ):
        for call in (lambda data: lc.decode(data, codec), lc.info):
            with pytest.raises(lc.LoraCompError, match=says):
                call(wrong)


CONTEXTS = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.parametrize("method", ["svd_lora", "none"])
def test_contexts_around_the_calls_have_no_effect(codec, human, make_image, name, method):
    expected = lc.encode(make_image(), codec, human, method, steps=2)
    with CONTEXTS[name]():
        image = make_image()
        coded = lc.encode(image, codec, human, method, steps=2)
        decoded = lc.decode(coded, codec)
    assert coded == expected
    assert decoded.dtype == torch.float32 and not decoded.is_inference() and not decoded.requires_grad
    assert torch.equal(decoded, lc.decode(expected, codec))


def test_a_codec_loaded_under_inference_mode_can_be_adapted(weights, human, make_image):
    with torch.inference_mode():
        codec = lc.load_codec("tic-v", 2, weights)
        method = lc.load_method("svd_lora", codec)
    assert lc.encode(make_image(), codec, human, method, steps=1).loss_after > 0


def test_a_task_made_under_inference_mode_is_named(codec, network, make_image):
    with torch.inference_mode():
        task = lc.load_task("cls", network=str(network))
    if not next(task.network.parameters()).is_inference():
        return
    with pytest.raises(lc.LoraCompError, match="load it outside"):
        lc.encode(make_image(), codec, task, steps=1)


def test_an_image_that_needs_a_gradient_gets_none(codec, human, make_image):
    image = make_image().requires_grad_()
    assert lc.encode(image, codec, human, steps=1) == lc.encode(make_image(), codec, human, steps=1)
    assert image.grad is None


# regions of interest

MASK = np.zeros(SIZE, bool)
MASK[4:12, 8:30] = True


def rgba(colour, alpha):
    return np.dstack([np.broadcast_to(np.uint8(colour), (*SIZE, 3)), np.where(alpha, 255, 0).astype(np.uint8)])


MASKS = {
    "bool": MASK,
    "uint8": MASK.astype(np.uint8) * 255,
    "uint16": MASK.astype(np.uint16) * 65535,
    "float": MASK.astype(float),
    "1 bit": Image.fromarray(MASK),
    "white, transparent outside": rgba((255, 255, 255), MASK),
    "black, transparent outside": rgba((0, 0, 0), MASK),
    "red strokes on transparent black": rgba((255, 0, 0), MASK) * MASK[..., None],
    "white, transparent outside, over black": np.where(MASK[..., None], rgba((255,) * 3, MASK), rgba((0,) * 3, MASK)),
    "opaque": rgba((255, 255, 255), MASK | True) * np.where(MASK, 1, 0)[..., None].astype(np.uint8)
    + rgba((0, 0, 0), ~MASK),
    "grey and alpha": np.dstack([np.full(SIZE, 255, np.uint8), MASK.astype(np.uint8) * 255]),
}


@pytest.mark.parametrize("form", MASKS)
@pytest.mark.parametrize("through", ["file", "call"])
def test_masks_of_any_form_select_the_same(tmp_path, form, through):
    mask = MASKS[form]
    if through == "file":
        if isinstance(mask, np.ndarray):
            if mask.dtype == float:
                pytest.skip("no file of floats")
            mask = Image.fromarray(mask)
        mask.save(tmp_path / "mask.png")
        weights = read_mask(tmp_path / "mask.png")
    else:
        weights = to_mask(mask)
    assert weights.dtype == torch.float32
    assert torch.equal(weights, torch.from_numpy(MASK).float())


def test_soft_masks_keep_their_weights():
    soft = np.linspace(0, 1, SIZE[0] * SIZE[1]).reshape(SIZE)
    assert torch.allclose(to_mask(soft), torch.from_numpy(soft).float())
    under_alpha = to_mask(np.dstack([soft, np.full(SIZE, 0.5)]))
    assert torch.allclose(under_alpha, torch.from_numpy(soft / 2).float())


@pytest.mark.parametrize("form", ["uint8", "1 bit", "white, transparent outside"])
def test_encode_takes_masks_of_any_form(codec, human, make_image, form):
    image = make_image(*SIZE)
    expected = lc.encode(image, codec, human, steps=2, roi=torch.from_numpy(MASK).float())
    assert lc.encode(image, codec, human, steps=2, roi=MASKS[form]) == expected
    with pytest.raises(lc.LoraCompError, match=r"is \(H, W\) like its image"):
        lc.encode(image, codec, human, steps=2, roi=MASK[:-1])


@pytest.mark.parametrize(
    "mask", [MASK.astype(np.uint8), MASK * 0.0, Image.new("RGB", (9, 9)), rgba((9, 9, 9), MASK | True)]
)
def test_a_mask_that_selects_nothing_is_named(tmp_path, mask):
    with pytest.raises(
        lc.ImageError, match=r"the region of interest selects nothing: its brightest pixel is .* of 255"
    ):
        to_mask(mask)
    if isinstance(mask, np.ndarray) and mask.dtype != np.uint8:
        return
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(tmp_path / "mask.png")
    with pytest.raises(lc.ImageError, match=r"mask\.png selects nothing"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.data
def test_a_transparent_mask_selects_what_is_opaque(shared):
    path = shared / "cases" / "images" / "rgba_mask.png"
    if not path.exists():
        pytest.skip(f"no {path}")
    with Image.open(path) as image:
        alpha = np.asarray(image)[..., 3] / np.float32(255)
    assert np.array_equal(read_mask(path).numpy(), alpha) and 0 < alpha.mean() < 0.5
