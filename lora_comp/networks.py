"""Task networks: the small classifier that ships here, and any of timm's or torchvision's, behind one interface.

A network takes float images (B, 3, H, W) in [0, 1] of any size and normalises them itself. It has
    name               str
    classes            list of class names, empty where they are not known
    stage_variance     variance of the numbers of each stage on natural images, or None where it was not measured
    stages(x)          list of feature maps, fine to coarse
    forward(x)         logits (B, classes)
    stages_and_logits(x)
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lora_comp.errors import LoraCompError

ZOO = Path(__file__).parent / "zoo" / "networks"
Network = TypeVar("Network", bound=nn.Module)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, where a network names no other


def _normaliser(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean).view(1, 3, 1, 1), torch.tensor(std).view(1, 3, 1, 1)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, after "Deep Residual Learning for Image Recognition" (figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual classifier of about 1 M parameters and 0.2 G multiplications at 256x256.

    widths, depths: channels and blocks of its four stages, at strides 4, 8, 16 and 32.
    """

    kind = "small_resnet"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        classes: list[str],
        name: str = "small",
        widths: tuple[int, ...] = (24, 48, 96, 160),
        depths: tuple[int, ...] = (1, 1, 2, 2),
    ):
        super().__init__()
        self.name, self.classes, self.widths, self.depths = name, list(classes), tuple(widths), tuple(depths)
        self.stage_variance: list[float] | None = None
        mean, std = _normaliser(MEAN, STD)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        width = 16
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.layers = nn.ModuleList()
        for outputs, depth in zip(self.widths, self.depths, strict=True):
            blocks = [_Block(width, outputs, 2)] + [_Block(outputs, outputs, 1) for _ in range(depth - 1)]
            self.layers.append(nn.Sequential(*blocks))
            width = outputs
        self.head = nn.Linear(width, len(self.classes))

    def stages(self, x: Tensor) -> list[Tensor]:
        x = self.stem((x - self.mean) / self.std)
        features = []
        for layer in self.layers:
            x = layer(x)  # (B, width, H / stride, W / stride), rounded up
            features.append(x)
        return features

    def stages_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        features = self.stages(x)
        return features, self.head(features[-1].mean(dim=(2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.stages_and_logits(x)[1]

    def core(self) -> dict:
        """What a file tells of the network besides its weights."""
        return {
            "name": self.name,
            "classes": self.classes,
            "widths": self.widths,
            "depths": self.depths,
            "stage_variance": self.stage_variance,
        }


class Ours(Protocol):
    """A network that can be saved: its kind tells what class reads the file."""

    kind: str

    def core(self) -> dict: ...

    def state_dict(self) -> dict[str, Tensor]: ...


def save_network(network: Ours, path: str | os.PathLike, **facts) -> None:
    """Write the weights (convolutions in float16) of a network of ours, with its `core()`, to PATH, and `facts` (what
    it was trained on, for how long, its scores) besides to PATH with the suffix .json."""
    weights = {
        key: value.to(torch.float16 if value.ndim > 1 else value.dtype).contiguous()
        for key, value in network.state_dict().items()
    }
    core = network.core()
    Path(path).write_bytes(safetensors.torch.save(weights, {network.kind: json.dumps(core)}))
    Path(path).with_suffix(".json").write_text(json.dumps(core | facts, indent=1) + "\n")


def read_network(path: Path, make: Callable[[dict], Network], kind: str, what: str = "network") -> Network:
    """What `save_network` wrote: `make` builds the network of that kind from its core. what: its name in errors."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            core = json.loads((file.metadata() or {})[kind])
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        network = make(core)
        network.load_state_dict(weights)  # copies into float32
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LoraCompError(
            f"{path} is not a {what} saved by lora_comp; for another architecture's weights give its "
            "name as the network (timm/NAME or torchvision/NAME) and the file as weights"
        ) from error
    return network


def _small(core: dict) -> SmallResNet:
    network = SmallResNet(core["classes"], core["name"], core["widths"], core["depths"])
    network.stage_variance = core["stage_variance"]
    return network


def _load_small(path: Path) -> SmallResNet:
    return read_network(path, _small, SmallResNet.kind)


class LibraryNetwork(nn.Module):
    """A classifier of timm or torchvision. Its stages are the last four resolutions at stride 4 or coarser, each as it
    leaves the last of the model's parts at that resolution; for a network of one resolution, such as a ViT, four
    evenly spaced blocks.

    size: (H, W) where the network takes only one size; images are resized to it.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, name: str, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, ...] | None
    ):
        super().__init__()
        self.name, self.model, self.size = name, model, size
        self.classes: list[str] = []
        self.stage_variance: list[float] | None = None
        mean_, std_ = _normaliser(mean, std)
        self.register_buffer("mean", mean_, persistent=False)
        self.register_buffer("std", std_, persistent=False)
        for module in model.modules():
            if getattr(module, "inplace", False):
                # It would overwrite a stage after its hook has seen it.
                module.inplace = False  # type: ignore[assignment]
        model.eval()
        self.stage_modules = self._find_stages()

    def _run(self, x: Tensor, modules: dict[str, nn.Module]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's logits, and the outputs of the modules in order of computation, by name."""
        short = min(x.shape[2:])
        if self.size:
            if x.shape[2:] != self.size:
                x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        elif short < 64:  # several networks cannot halve a smaller image five times
            size = [round(side * 64 / short) for side in x.shape[2:]]
            x = F.interpolate(x, size, mode="bilinear")
        outputs: dict[str, Tensor] = {}

        def keeper(name: str):
            def keep(_module, _inputs, output):
                if isinstance(output, Tensor):
                    outputs[name] = output

            return keep

        hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
        try:
            logits = self.model((x - self.mean) / self.std)
        finally:
            for hook in hooks:
                hook.remove()
        return outputs, logits

    @torch.no_grad()
    def _find_stages(self) -> dict[str, nn.Module]:
        side = self.size[0] if self.size else 224
        parts = {name: module for name, module in self.model.named_modules() if name and name.count(".") < 2}
        outputs, _ = self._run(torch.rand(1, 3, side, side), parts)
        last: dict[int, str] = {}
        for name, output in outputs.items():
            if output.ndim != 4:
                continue
            extent = output.shape[2] if output.shape[2] == output.shape[3] else output.shape[1]  # else channels last
            if 1 < extent <= side // 4:
                last[extent] = name
        names = [last[extent] for extent in sorted(last, reverse=True)][-4:]
        if len(names) < 2:
            blocks = [
                (name, module)
                for name, module in self.model.named_modules()
                if isinstance(module, (nn.Sequential, nn.ModuleList))
            ]
            name, longest = max(blocks, key=lambda item: len(item[1]), default=("", nn.Sequential()))
            if len(longest) < 4:
                raise LoraCompError(f"the network {self.name!r} has no stages that lora_comp can find")
            names = [f"{name}.{key}" for key in [*longest._modules][len(longest) // 4 - 1 :: len(longest) // 4][:4]]
        return {name: self.model.get_submodule(name) for name in names}

    def stages_and_logits(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        outputs, logits = self._run(x, self.stage_modules)
        return list(outputs.values()), logits

    def stages(self, x: Tensor) -> list[Tensor]:
        return self.stages_and_logits(x)[0]

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, {})[1]


TaskNetwork = SmallResNet | LibraryNetwork


def fold_batch_norms(network: nn.Module) -> None:
    """Make each batch norm that alone reads a convolution a part of it: the same function, in evaluation mode.

    A network that torch.fx cannot trace is left as it is, and so are its `stage_modules`, whose outputs hooks catch.
    """
    model = network.model if isinstance(network, LibraryNetwork) else network
    hooked = [*getattr(network, "stage_modules", {}).values()]
    try:
        calls = [node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_module"]
    except Exception:  # whatever the network's own code raises on a proxy
        return
    modules, times = dict(model.named_modules()), Counter(node.target for node in calls)
    for node in calls:
        source, norm = node.args[0], modules[node.target]
        if type(norm) is not nn.BatchNorm2d or source.op != "call_module" or len(source.users) > 1:
            continue
        conv = modules[source.target]
        if (
            type(conv) is nn.Conv2d
            and times[node.target] == times[source.target] == 1
            and not (conv in hooked or norm in hooked)
        ):
            model.set_submodule(source.target, fuse_conv_bn_eval(conv, norm))
            model.set_submodule(node.target, nn.Identity())


def no_weights(name: str, error: Exception) -> LoraCompError:
    """What to tell when a library cannot get its own weights."""
    line = " ".join(str(error).split())[:200]
    return LoraCompError(
        f"the weights of {name} cannot be had ({line}); give a file as weights, or null for seeded random ones"
    )


@contextmanager
def fitting(weights: str | os.PathLike, architecture: str) -> Iterator[None]:
    """Tell in one line what goes wrong while a checkpoint file is read into an architecture."""
    try:
        yield
    except FileNotFoundError as error:
        raise LoraCompError(f"weights {weights} do not exist") from error
    except Exception as error:  # pickle and zip readers raise nearly anything on a file that is something else
        line = " ".join(str(error).split())[:200]
        raise LoraCompError(f"weights {weights} do not fit {architecture}: {line}") from error


def read_weights(path: str | os.PathLike) -> dict:
    """The tensors of a checkpoint file by name, of which nothing else is unpickled."""
    if str(path).endswith(".safetensors"):
        return safetensors.torch.load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("state_dict", state)


def own_weights(model: nn.Module, weights: str | os.PathLike) -> None:
    """Load a checkpoint file of the model's own library into it."""
    with fitting(weights, type(model).__name__):
        model.load_state_dict(read_weights(weights))


def library_model(
    name: str,
    weights: str | os.PathLike | None = "default",
    every_kind: bool = False,
) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...], tuple[int, int] | None]:
    """A model "timm/NAME" or "torchvision/NAME", its mean and standard deviation, and its size (H, W) if it takes one
    only. weights: as for `load_network`. every_kind: torchvision's segmenters and detectors too, not only classifiers.
    """
    library, _, kind = name.partition("/")
    published = weights == "default"
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    size: tuple[int, ...] | None = None
    try:
        if library == "timm":
            import timm

            if not timm.is_model(kind.split(".")[0]):
                raise LoraCompError(f"timm has no model {kind!r}; timm.list_models() names those it has")
            model = timm.create_model(kind, pretrained=published)
            facts: dict = model.pretrained_cfg  # type: ignore[assignment]
            mean, std = facts["mean"], facts["std"]
            size = facts["input_size"][1:] if facts["fixed_input_size"] else None
        else:
            import torchvision

            classifier = kind in torchvision.models.list_models(torchvision.models)
            if not classifier and not (every_kind and kind in torchvision.models.list_models()):
                raise LoraCompError(
                    f"torchvision has no {'model' if every_kind else 'classifier'} {kind!r}; "
                    "torchvision.models.list_models() names those it has"
                )
            extra: dict = {"init_weights": True} if kind in ("googlenet", "inception_v3") else {}
            if not classifier and not published:
                extra = {"weights_backbone": None}  # or it would be downloaded
            model = torchvision.models.get_model(kind, weights="DEFAULT" if published else None, **extra)
            size = (model.image_size, model.image_size) if hasattr(model, "image_size") else None
    except (OSError, RuntimeError) as error:
        raise no_weights(name, error) from error
    if weights is not None and not published:
        own_weights(model, weights)
    return model, mean, std, size and (size[0], size[1])


def load_network(name: str | os.PathLike, weights: str | os.PathLike | None = "default", seed: int = 0) -> TaskNetwork:
    """A frozen network in evaluation mode: "scenes", "flowers" (they ship here), "timm/NAME", "torchvision/NAME", or
    the path of a file that `save_network` wrote.

    weights: "default" is what ships or what the library publishes (and downloads), None random ones from `seed`,
    anything else a checkpoint file of that architecture.
    Raises LoraCompError, in one line, for an unknown name or weights that are missing or do not fit.
    """
    text = str(name)
    shipped = sorted(path.stem for path in ZOO.glob("*.safetensors") if not path.stem.endswith(("-det", "-seg")))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if text in shipped:
            path = ZOO / f"{text}.safetensors" if weights in ("default", None) else Path(weights)
            small = _load_small(path)
            network: TaskNetwork = small
            if weights is None:
                network = SmallResNet(small.classes, text, small.widths, small.depths)
        elif text.startswith(("timm/", "torchvision/")):
            network = LibraryNetwork(text, *library_model(text, weights))
        elif Path(text).is_file():
            network = _load_small(Path(text))
        else:
            raise LoraCompError(
                f"unknown network {text!r}; known are {', '.join(shipped)}, timm/NAME, "
                "torchvision/NAME and the path of a checkpoint"
            )
    return network.eval().requires_grad_(False)
