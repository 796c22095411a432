"""Data-parallel training, with gloo on the CPU in place of NCCL."""

import contextlib
import csv
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import lora_comp as lc
from lora_comp.codecs import CODECS, build, hyperprior
from lora_comp.train import main
from lora_comp.training import codec as codec_training
from lora_comp.training import loop, parallel
from lora_comp.training.crops import SCALES, Crops
from lora_comp.training.soap import soap
from lora_comp.weights import read_weights

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    photo = lc.load_data("photos", limit=1)[0].image
    for i in range(6):
        piece = (photo[:, 32 * i : 32 * i + 256, :256].permute(1, 2, 0) * 255).byte().numpy()
        Image.fromarray(np.ascontiguousarray(piece)).save(path / f"{i}.png")
    return path


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def adam(groups, lr):
    return torch.optim.Adam([{"params": parameters} for parameters in groups], lr, fused=True)


def train(rank, size, port, folder, work, name="tic-v", optimizer=adam):
    """Train as one of `size` processes, without noise, which differs by process, and without bfloat16."""
    if size > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setattr(hyperprior, "add_noise", lambda x: x)
    patch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    patch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    patch.setattr(codec_training, "soap", optimizer)
    patch.setattr(codec_training, "ALONE", 0.75)  # the last step trains the synthesis transform alone
    try:
        parallel.start("cpu")
        codec = build(name, seed=rank)  # the first process's weights are broadcast
        qualities = CODECS[name].qualities if CODECS[name].variable else (4,)
        codec_training.train(codec, work, Crops([folder], 64, SCALES), qualities, batch=4, lr=1e-3, steps=STEPS)
        torch.save(codec.state_dict(), work / f"{rank}.pt")
    finally:
        parallel.finish()
        patch.undo()


def curve(work):
    with open(work / "curve.csv", newline="") as file:
        return np.array([[float(row[k]) for k in ("loss", "bpp", "psnr", "val_loss")] for row in csv.DictReader(file)])


@pytest.mark.parametrize("name", ["tic", "tic-v"])
def test_two_processes_match_one_process_with_the_whole_batch(folder, tmp_path, name):
    train(0, 1, 0, folder, tmp_path / "one", name)
    torch.multiprocessing.spawn(train, (2, port(), folder, tmp_path / "two", name), nprocs=2)
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one.shape == (STEPS, 4)
    np.testing.assert_allclose(two, one, rtol=1e-5)


def test_processes_with_soap_have_the_same_weights(folder, tmp_path):
    """Each finds the eigenbases for itself. Those of one process with the whole batch are others: rounding errors turn
    eigenvectors of equal eigenvalues, of which the first covariances have many, and so the directions of Adam."""
    train(0, 1, 0, folder, tmp_path, optimizer=soap)
    one = curve(tmp_path)
    torch.multiprocessing.spawn(train, (2, port(), folder, tmp_path / "two", "tic-v", soap), nprocs=2)
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    np.testing.assert_allclose(curve(tmp_path / "two"), one, rtol=1e-2)


def test_a_batch_that_cannot_be_divided_raises(monkeypatch):
    monkeypatch.setattr(parallel, "size", lambda: 4)
    with pytest.raises(lc.LoraCompError, match="a batch of 6 cannot be divided among 4 processes"):
        parallel.share(6)


def test_a_missing_gpu_raises(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["what=codec", "steps=1", "device=cuda"]) == 2
    assert capsys.readouterr().err == "error: device=cuda needs a GPU, and torch finds none; use device=cpu\n"


@pytest.mark.slow
def test_torchrun_trains_and_one_process_writes_the_files(folder, tmp_path):
    words = [
        "what=codec",
        f"images=[{folder}]",
        "steps=2",
        "batch=2",
        "device=cpu",
        f"work={tmp_path}",
        f"into={tmp_path}",
    ]
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-port",
            str(port()),
            "-m",
            "lora_comp.train",
            *words,
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    _, card = read_weights(tmp_path / "tic-v.safetensors", "the codec")
    assert card["steps"] == 2 and "2 processes" in card["hardware"]
