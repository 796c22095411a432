"""Generated scenes: reproducible, with exact annotations."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_comp.data import Scenes, load_data
from lora_comp.data.shapes import KINDS, OUTLINES, coverage
from lora_comp.errors import LoraCompError

FINGERPRINT = (
    "import hashlib; from lora_comp.data import Scenes; s = Scenes('val', 9, 'odd', seed=3)[8]; "
    "print(hashlib.sha256(s.image.numpy().tobytes() + s.masks.numpy().tobytes()).hexdigest())"
)


def fingerprint(sample) -> str:
    return hashlib.sha256(sample.image.numpy().tobytes() + sample.masks.numpy().tobytes()).hexdigest()


def test_a_scene_is_identical_in_another_process():
    scenes = Scenes("val", 9, "odd", seed=3)
    scenes[2]
    other = subprocess.run(
        [sys.executable, "-c", FINGERPRINT],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert other.stdout.strip() == fingerprint(scenes[8])


def test_scenes_depend_on_index_split_and_seed_but_not_on_count():
    first = Scenes("val", 5)[3]
    others = [Scenes("val", 5)[4], Scenes("train", 5)[3], Scenes("val", 5, seed=1)[3]]
    assert all(fingerprint(first) != fingerprint(other) for other in others)
    assert fingerprint(first) == fingerprint(Scenes("val", 4)[3])


@pytest.mark.parametrize("size, shape", [(256, (3, 256, 256)), ((77, 130), (3, 77, 130)), (32, (3, 32, 32))])
def test_scenes_have_the_given_size(size, shape):
    sample = Scenes("val", 1, size)[0]
    assert sample.image.shape == shape
    assert sample.masks.shape[1:] == shape[1:]


def test_odd_sizes_vary():
    scenes = Scenes("val", 6, "odd")
    sizes = {tuple(scenes[i].image.shape[1:]) for i in range(6)}
    assert len(sizes) == 6
    assert all(161 <= side <= 351 for size in sizes for side in size)


@settings(max_examples=40, deadline=None)
@given(index=st.integers(0, 10**6), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([64, (200, 97), "odd"]))
def test_annotations_are_consistent(index, seed, size):
    sample = Scenes("train", index + 1, size, seed)[index]
    assert sample.image.dtype == torch.float32
    assert 0 <= sample.image.min() <= sample.image.max() <= 1
    assert 1 <= len(sample.labels) <= 5
    assert len(set(sample.labels.tolist())) == len(sample.labels)
    assert sample.labels[-1] == sample.label
    assert sample.masks.sum(dim=0).max() == 1, "visible parts do not overlap"
    areas = sample.masks.sum(dim=(1, 2))
    assert (areas[:-1] < areas[-1]).all(), "the dominant object is the largest"
    for box, mask in zip(sample.boxes.int().tolist(), sample.masks, strict=True):
        y, x = mask.nonzero(as_tuple=True)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_all_kinds_are_about_equally_frequent():
    scenes = Scenes("val", 600, 32)
    counts = np.bincount([scenes[i].label for i in range(600)], minlength=12)
    assert len(scenes.classes) == 12
    assert counts.min() > 25


def test_images_have_8_bit_values():
    levels = Scenes("val", 1)[0].image * 255
    assert torch.allclose(levels, levels.round(), atol=1e-4)


def sampled_coverage(outlines, height, width, rows, columns):
    """Reference: the share of rows x columns sample points in each pixel with a non-zero winding number."""
    y, x = np.mgrid[: height * rows, : width * columns] + 0.5
    y, x = y / rows, x / columns
    winding = np.zeros(y.shape, int)
    for outline in outlines:
        for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, axis=0), strict=True):
            if y0 != y1:
                crossed = ((y0 <= y) != (y1 <= y)) & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0))
                winding += np.where(crossed, np.sign(y1 - y0).astype(int), 0)
    return (winding != 0).reshape(height, rows, width, columns).mean(axis=(1, 3))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    turn=st.floats(0, 6.3),
    radius=st.floats(2, 9),
    x=st.floats(-1, 16),
    y=st.floats(-1, 13),
)
def test_coverage_matches_dense_sampling(kind, turn, radius, x, y):
    rotation = radius * np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    outlines = [outline @ rotation + (x, y) for outline in OUTLINES[kind]]
    drawn = coverage(outlines, 12, 15, rows=4)
    assert abs(drawn - sampled_coverage(outlines, 12, 15, rows=4, columns=32)).max() < 0.1


def test_an_unknown_split_or_size_raises():
    with pytest.raises(LoraCompError, match="split 'validation'"):
        load_data("scenes", split="validation")
    with pytest.raises(LoraCompError, match="size of scenes"):
        load_data("scenes", size=8)
