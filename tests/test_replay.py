"""CUDA graphs: when a function runs eagerly, is captured or replayed, and that steps of fine-tuning and of training are
capturable."""

import contextlib
import copy
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lora_comp.codecs import CODECS, build
from lora_comp.finetune import _Descent
from lora_comp.methods import FitSettings, annealed, load_method
from lora_comp.methods.annealing import Annealing
from lora_comp.methods.svd_lora import OURS
from lora_comp.objective import Objective, tiles
from lora_comp.ops import svd_lora, window_attention
from lora_comp.replay import Replayed
from lora_comp.training import codec as codec_training
from lora_comp.training.batches import Resident
from lora_comp.training.crops import Place
from lora_comp.training.rates import Rates


class Counter:
    """Each call doubles x and returns its previous value."""

    def __init__(self, device="cpu"):
        self.x, self.calls = torch.ones(1, device=device), 0

    def __call__(self):
        self.calls += 1
        before = self.x.clone()
        self.x.mul_(2)
        return before


def test_on_the_cpu_the_function_runs_at_each_call():
    count = Counter()
    replayed = Replayed(count, torch.device("cpu"))
    assert [replayed().item() for _ in range(4)] == [1, 2, 4, 8] and count.calls == 4


class FakeGraph:
    """Stands in for a CUDA graph without a GPU: a captured function takes effect only when it is replayed."""

    def __init__(self, fails):
        self.fails, self.capturing, self.replays, self.x, self.out = fails, False, 0, torch.ones(1), torch.zeros(1)

    def work(self):
        self.out.copy_(self.x)
        self.x.mul_(2)

    def replay(self):
        self.replays += 1
        self.work()

    @contextlib.contextmanager
    def graph(self, _):
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False

    def __call__(self):
        if self.capturing:
            if self.fails:
                raise RuntimeError("operation not permitted when stream is capturing")
            return self.out
        self.work()
        return self.out.clone()


@pytest.mark.parametrize("fails, replays", [(False, 4), (True, 0)])
def test_on_a_gpu_the_second_call_captures_or_falls_back_to_eager(monkeypatch, fails, replays):
    function = FakeGraph(fails)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: function)
    monkeypatch.setattr(torch.cuda, "graph", function.graph)
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Replayed, "_warm_up", lambda self: self.function())
    monkeypatch.setattr(torch.cuda, "default_generators", [generator := Mock()])
    replayed = Replayed(function, torch.device("cuda"))
    results = [replayed() for _ in range(5)]
    assert [x.item() for x in results] == [1, 2, 4, 8, 16]  # later calls overwrite none
    assert function.replays == replays
    assert generator.graphsafe_set_state.called == fails  # that of a failed capture cannot be used again


@pytest.mark.gpu
def test_replays_on_a_gpu_match_eager_calls():
    count = Counter("cuda")
    replayed = Replayed(count, torch.device("cuda"))
    results = [replayed() for _ in range(5)]
    assert [x.item() for x in results] == [1, 2, 4, 8, 16]
    assert count.calls == 2


def devices(*values):
    return {t.device.type for t in tree_leaves(values) if isinstance(t, torch.Tensor)}


class FromOneDevice(TorchDispatchMode):
    """Raises on operations that a graph cannot capture: on tensors of two devices, and reads of a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        assert len(devices(args, kwargs, out)) <= 1 and func is not torch.ops.aten._local_scalar_dense.default, func
        return out


def to_fake_gpu(module, mode):
    """Replace a module's tensors by fake ones on a GPU."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(mode.from_tensor(parameter.data).cuda(), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = mode.from_tensor(buffer).cuda()
    return module


@pytest.fixture
def imagined_gpu(monkeypatch):
    """A step is checked up to the loss with fake tensors, which have a device and a shape but no values."""
    monkeypatch.setattr(svd_lora._Eager, "apply", lambda *t: svd_lora._operator(*t)[0])
    monkeypatch.setattr(window_attention.__globals__["_C"], "has_cuda", True)
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: None)
    monkeypatch.setattr(torch.autograd, "backward", lambda *_: None)


on_the_imagined_gpu = pytest.mark.filterwarnings(
    "ignore:CUDA is not available:UserWarning", "ignore:Accessing the data pointer:UserWarning"
)


@on_the_imagined_gpu
@pytest.mark.parametrize("recipe", ["latents", "adapter"])
def test_a_step_uses_gpu_tensors_only(codec, imagined_gpu, recipe):
    codec = copy.deepcopy(codec)
    adapted = load_method("svd_lora", codec).prepare(codec, torch.rand(1, 3, 64, 128), FitSettings(recipe=recipe))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x, network = torch.empty(1, 3, 64, 128, device="cuda"), nn.Conv2d(3, 4, 3, device="cuda")
        whole = tiles((64, 128), codec, lambda *_: lambda x_hat: network(x_hat).square().mean((1, 2, 3)))
        objective = Objective(x, (64, 128), whole, 1.0)
        to_fake_gpu(adapted, mode)
        descent = _Descent(lambda backward: objective.evaluate(adapted, backward), adapted.groups(0.04), 10, OURS)
        descent.set_rates(0)
        with FromOneDevice():
            descent.evaluate_and_track(True)


@on_the_imagined_gpu
def test_a_step_of_refinement_uses_gpu_tensors_only(codec, imagined_gpu):
    codec = copy.deepcopy(codec)
    refined = annealed(None, 10).prepare(codec, torch.rand(1, 3, 64, 128), FitSettings())
    refined.start(torch.rand(1, 3, 64, 128))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = torch.empty(1, 3, 64, 128, device="cuda")
        refined.refined = {name: nn.Parameter(mode.from_tensor(p.data).cuda()) for name, p in refined.refined.items()}
        refined.adapted.zeros, rounding = mode.from_tensor(torch.zeros(1)).cuda(), Annealing(x.device)
        whole = tiles((64, 128), codec, lambda *_: lambda x_hat: x_hat.square().mean((1, 2, 3)))
        objective = Objective(x, (64, 128), whole, 1.0)
        to_fake_gpu(codec, mode)
        with FromOneDevice():
            rounding.cool(3, 10)
            objective.evaluate(refined, True, rounding)


class WithoutReading(TorchDispatchMode):
    """Raises on operations that wait for a value, or whose result has as many elements as a value says."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "repeat_interleave", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.FORBIDDEN, func
        return func(*args, **(kwargs or {}))


def training(name, codec, monkeypatch):
    """Steps of training a codec on two crops of one image in the device's memory."""
    image, place = np.zeros((70, 80, 3), np.uint8), Place(Path("a.png"), 1.0, 2, 3, True)
    data = SimpleNamespace(size=64, kept={(place.path, 1.0): image}, places=lambda count, seed: [place] * count)
    monkeypatch.setattr(codec_training, "batches_of", Resident)
    qualities = CODECS[name].qualities if CODECS[name].variable else (4,)
    rates = Rates(qualities, codec_training.weight)
    made = codec_training._Training(codec, data, rates, batch=2, lr=1e-3, seed=0)
    made.images.load(0)
    return made


@on_the_imagined_gpu
@pytest.mark.parametrize("name", ["tic", "tic-v"])
@pytest.mark.parametrize("kind", ["_all", "_synthesis"])
def test_a_step_of_training_uses_gpu_tensors_only(monkeypatch, name, kind):
    """Crops, loss, clipping, Adam and moving average, with fake tensors; gradients are taken as there."""
    monkeypatch.setattr(window_attention.__globals__["_C"], "has_cuda", True)
    codec = build(name)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        made = training(name, to_fake_gpu(codec, mode), monkeypatch)

        def backward(loss):
            assert loss.device.type == "cuda" and loss.requires_grad
            for parameter in made.codec.parameters():
                parameter.grad = torch.zeros_like(parameter)

        def fused_adam(*args, **kwargs):  # which fake tensors have not
            assert devices(args, kwargs) == {"cuda"}

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        monkeypatch.setattr(torch, "_fused_adam_", fused_adam)
        with FromOneDevice():
            found = getattr(made, kind)()
    assert found.shape == (3,) and found.device.type == "cuda"


@pytest.mark.parametrize("name", ["tic", "tic-v"])
@pytest.mark.parametrize("kind", ["_all", "_synthesis"])
def test_gradients_of_a_training_step_wait_for_no_value(monkeypatch, name, kind):
    """On the CPU, where backward runs; without Adam, which waits there and not on a GPU."""
    made = training(name, build(name), monkeypatch)
    made.optimizer = made.quantiles = Mock()
    with WithoutReading():
        getattr(made, kind)()
    trained = made.weights if kind == "_all" else list(made.codec.g_s.parameters())
    assert all(p.grad is not None for p in trained)
