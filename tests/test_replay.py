"""What a GPU replays: when a function runs, is recorded or replayed, and that a step of fine-tuning can be."""

import contextlib
import copy

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_comp.finetune import _Descent
from lora_comp.methods import FitSettings, load_method
from lora_comp.methods.svd_lora import OURS
from lora_comp.objective import Objective, tiles
from lora_comp.ops import svd_lora, window_attention
from lora_comp.replay import Replayed


class Counter:
    """x becomes 2 x each time it is called; it returns what x was."""

    def __init__(self, device="cpu"):
        self.x, self.calls = torch.ones(1, device=device), 0

    def __call__(self):
        self.calls += 1
        before = self.x.clone()
        self.x.mul_(2)
        return before


def test_on_the_processor_a_function_is_called_each_time():
    count = Counter()
    replayed = Replayed(count, torch.device("cpu"))
    assert [replayed().item() for _ in range(4)] == [1, 2, 4, 8] and count.calls == 4


class Recorded:
    """In place of CUDA's graphs, which need a GPU: a function that is recorded does nothing until it is replayed."""

    def __init__(self, refuses):
        self.refuses, self.recording, self.replays, self.x, self.out = refuses, False, 0, torch.ones(1), torch.zeros(1)

    def work(self):
        self.out.copy_(self.x)
        self.x.mul_(2)

    def replay(self):
        self.replays += 1
        self.work()

    @contextlib.contextmanager
    def graph(self, _):
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def __call__(self):
        if self.recording:
            if self.refuses:
                raise RuntimeError("operation not permitted when stream is capturing")
            return self.out
        self.work()
        return self.out.clone()


@pytest.mark.parametrize("refuses, replays", [(False, 4), (True, 0)])
def test_on_a_gpu_it_is_recorded_at_its_second_call_or_called_each_time_if_it_cannot_be(monkeypatch, refuses, replays):
    function = Recorded(refuses)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: function)
    monkeypatch.setattr(torch.cuda, "graph", function.graph)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Replayed, "_aside", lambda self: self.function())
    replayed = Replayed(function, torch.device("cuda"))
    found = [replayed() for _ in range(5)]
    assert [x.item() for x in found] == [1, 2, 4, 8, 16]  # none is overwritten by those after it
    assert function.replays == replays


@pytest.mark.gpu
def test_a_gpu_gives_what_was_computed():
    count = Counter("cuda")
    replayed = Replayed(count, torch.device("cuda"))
    found = [replayed() for _ in range(5)]
    assert [x.item() for x in found] == [1, 2, 4, 8, 16]
    assert count.calls == 2


class FromOneDevice(TorchDispatchMode):
    """Operations on tensors of two devices, and those that read a number, are errors: no graph can record them."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        assert len(devices) <= 1 and func is not torch.ops.aten._local_scalar_dense.default, func
        return out


def imagined(module, mode):
    """A module as if it lay on a GPU, without numbers."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(mode.from_tensor(parameter.data).cuda(), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer).cuda()
    return module


@pytest.mark.filterwarnings("ignore:CUDA is not available:UserWarning", "ignore:Accessing the data pointer:UserWarning")
@pytest.mark.parametrize("recipe", ["latents", "adapter"])
def test_a_step_takes_nothing_from_the_processors_memory(codec, monkeypatch, recipe):
    """Up to the loss, on a GPU that is imagined: tensors have a device and a shape, and no numbers."""
    monkeypatch.setattr(svd_lora._Eager, "apply", lambda *t: svd_lora._operator(*t)[0])
    monkeypatch.setattr(window_attention.__globals__["_C"], "has_cuda", True)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    monkeypatch.setattr(torch.autograd, "backward", lambda *_: None)
    codec = copy.deepcopy(codec)
    adapted = load_method("svd_lora", codec).prepare(codec, torch.rand(1, 3, 64, 128), FitSettings(recipe=recipe))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, network = torch.empty(1, 3, 64, 128, device="cuda"), nn.Conv2d(3, 4, 3, device="cuda")
        whole = tiles((64, 128), codec, lambda *_: lambda x_hat: network(x_hat).square().mean((1, 2, 3)))
        objective = Objective(x, (64, 128), whole, 1.0)
        imagined(adapted, mode)
        descent = _Descent(lambda backward: objective.evaluate(adapted, backward), adapted.groups(0.04), 10, OURS)
        descent.set_rates(0)
        with FromOneDevice():
            descent.evaluate_and_track(True)
