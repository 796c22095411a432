"""Loading of published checkpoints into our modules.

`from_reference` takes a state dict as the published code saves it; buffers may be absent.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_comp.codecs import build
from lora_comp.codecs.stf import STF
from lora_comp.codecs.swin import SwinBlock
from lora_comp.codecs.tic import TIC
from lora_comp.errors import LoraCompError
from lora_comp.methods import transtic as prompts
from lora_comp.methods.calice import Range
from lora_comp.methods.low_rank import MLP, Adapter, layers, with_adapter

RANK, ALPHA = 4, 8  # of LoRA_comp's checkpoints
TRANSTIC_CARD = {"downsample": 2, "published_mask": True}
ALICE_ALPHA = 8  # of ALICE's and CALICE's
OF_ALICE = {"alpha": ALICE_ALPHA, "scale": 1}  # their updates are scaled by alpha itself
# Buffers that our modules compute, and parts of the published systems that these models do not use.
UNUSED = re.compile(
    r"relative_position_index|attn_mask|^gaussian_conditional|num_batches_tracked"
    r"|entropy_bottleneck\.(_offset|_quantized_cdf|_cdf_length|target|likelihood_lower_bound)"
)


def our_name(key: str) -> str:
    """Our name of a published entry: `g_a.1.blocks.0.norm1.weight` for `g_a1.residual_group.blocks.0.norm1.weight`."""
    key = re.sub(r"^(g_a|g_s|h_a|h_s)(\d)\.", r"\1.\2.", key.removeprefix("module.")).replace("residual_group.", "")
    return re.sub(
        r"^entropy_bottleneck\._(matrix|bias|factor)(\d)$",
        lambda m: (
            "entropy_bottleneck." + {"matrix": "matrices", "bias": "biases", "factor": "factors"}[m[1]] + f".{m[2]}"
        ),
        key,
    )


def stf_names() -> dict[str, str]:
    """The beginnings of STF's published names, and ours."""
    names = {"patch_embed": "g_a.0", "end_conv": "g_s.7", "h_mean_s": "h_s.means", "h_scale_s": "h_s.scales"}
    for theirs, ours in {"cc_mean": "means", "cc_scale": "scales", "lrp": "residuals"}.items():
        names[f"{theirs}_transforms"] = f"prior.{ours}"
    for i in range(4):
        names |= {f"layers.{i}.blocks": f"g_a.{2 * i + 1}.blocks", f"layers.{i}.downsample": f"g_a.{2 * i + 2}"}
        names |= {f"syn_layers.{i}.blocks": f"g_s.{2 * i}.blocks", f"syn_layers.{i}.downsample": f"g_s.{2 * i + 1}"}
    return names


def renamed(key: str, beginnings: Mapping[str, str]) -> str:
    """A name with another beginning, if it has one of these."""
    for old, new in beginnings.items():
        if key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def wrong(system: str, what: str) -> LoraCompError:
    return LoraCompError(f"this is not a checkpoint of {system}: {what}")


def check_shape(system: str, name: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if value.shape != expected:
        raise wrong(system, f"{name} is {tuple(value.shape)}, not {tuple(expected)}")


def load(
    module: nn.Module, state: Mapping[str, Tensor], system: str, published: Callable[[str], str] = lambda name: name
) -> None:
    """Load a checkpoint; only entries of the entropy bottleneck may be missing, and running statistics if all are.

    published: from our name of an entry to the one that errors have.

    Raises LoraCompError for a missing or unexpected entry, or a wrong shape.
    """
    own = module.state_dict()
    for name in sorted(state.keys() & own.keys()):
        check_shape(system, published(name), state[name], own[name].shape)
    missing, unexpected = module.load_state_dict(state, strict=False)
    statistics = any(".running_" in k for k in state)
    needed = {k for k in own if k in dict(module.named_parameters()) or (statistics and ".running_" in k)}
    missing = [k for k in missing if k in needed and "entropy_bottleneck" not in k]
    if missing or unexpected:
        what = "lacks" if missing else "has an unexpected entry"
        raise wrong(system, f"it {what} {published((missing or unexpected)[0])}")


def tic(state: Mapping[str, Tensor], system: str = "tic", published: Callable[[str], str] = lambda name: name) -> TIC:
    """system, published: of errors, see `load`."""
    codec = build("tic")
    state = {k: v for k, v in state.items() if not k.endswith(".prompt_embeddings")}  # that LoRA_comp's has and ignores
    load(codec, state, system, published)
    return codec


def tic_svdlora(state: Mapping[str, Tensor]) -> nn.Module:
    """LoRA_comp: TIC with an adapter on every attention layer."""
    published = re.compile(r"\.w_lora_([USV])$")
    tensors = {published.sub(r".\1", k): v for k, v in state.items() if published.search(k)}
    codec = tic({k: v for k, v in state.items() if not published.search(k)})
    expected = {f"{name}.{k}" for name in layers(codec) for k in "USV"}
    if expected != set(tensors):
        raise wrong("tic_svdlora", f"see {min(expected ^ set(tensors))}")
    return with_adapter(codec, Adapter(tensors, ALPHA / RANK, identity=b""))


TRANSTIC = {  # the beginnings of the published names of prompts, and ours
    "g_a0_prompt.classifier.0": "g_a.unet.last",
    "g_a0_prompt": "g_a.unet",
    "g_a0_prompt_layers": "g_a.layers.0",
    "g_a2_prompt": "g_a.between.0",
    "g_a2_prompt_layers": "g_a.layers.1",
}


def transtic(state: Mapping[str, Tensor]) -> nn.Module:
    """TransTIC: TIC with prompts for the first two stages of g_a and for stages of g_s."""

    def published(name: str) -> str:
        name = re.sub(r"^g_s\.tokens\.(\d)$", r"g_s.\1.prompt_embeddings", renamed(name, back))
        name = re.sub(r"^(g_a|g_s|h_a|h_s)\.(\d)\.", r"\1\2.", name)
        return re.sub(r"\.(blocks\.|prompt_embeddings$)", r".residual_group.\1", name)

    back = {ours: theirs for theirs, ours in TRANSTIC.items()}
    codec = tic({k: v for k, v in state.items() if "prompt" not in k}, "transtic", published)
    learned = {k: v for k, v in state.items() if k.endswith(".prompt_embeddings")}
    tokens = {re.sub(r"^g_s\.(\d)\.prompt_embeddings$", r"g_s.tokens.\1", k): v for k, v in learned.items()}
    count = next((v.shape[1] for v in tokens.values() if v.dim() == 3), 16)
    chosen = [int(name[-1]) for name in tokens if name.startswith("g_s.tokens.")]
    made = prompts.build(codec, 2, chosen, width=32, tokens=count, downsample=2, norm=True)
    own = {renamed(k, TRANSTIC): v for k, v in state.items() if "prompt" in k and k not in learned}
    load(nn.ModuleDict({side: module for side, (_, module) in made.sides.items()}), own | tokens, "transtic", published)
    return prompts.make(Path("transtic"), made.tensors(), TRANSTIC_CARD, codec).of(codec)


def stf(state: Mapping[str, Tensor], system: str = "stf", published: Callable[[str], str] = lambda name: name) -> STF:
    """STF computed as published to the last bit: a latent midway between two integers that is rounded the other way
    changes all that later slices predict.

    system, published: of errors, see `load`; `published` takes a name that already begins as in STF.
    """
    codec, names = build("stf"), stf_names()
    back = {ours: theirs for theirs, ours in names.items()}
    load(codec, {renamed(k, names): v for k, v in state.items()}, system, lambda name: published(renamed(name, back)))
    for module in codec.modules():
        if isinstance(module, SwinBlock):
            module.kernels = False
    return codec


def alice(state: Mapping[str, Tensor], system: str = "alice") -> nn.Module:
    """ALICE, and CALICE at its lowest rate: STF with LoRA, alpha (x A) B, on fc1 and fc2 of the stages that have it."""
    entry = re.compile(r"(?P<layer>.+\.mlp\.fc[12])\.(?:linear\.(?P<own>weight|bias)|lora\.W_(?P<factor>[ab]))")
    found = [(match, value) for key, value in state.items() if (match := entry.fullmatch(key))]
    adapted = dict.fromkeys(match["layer"] for match, _ in found)
    if not adapted:
        raise wrong(system, "it has no entry with lora.W_a")

    def published(name: str) -> str:
        layer, _, last = name.rpartition(".")
        return f"{layer}.linear.{last}" if layer in adapted else name

    base = {key: value for key, value in state.items() if not entry.fullmatch(key)}
    base |= {f"{match['layer']}.{match['own']}": value for match, value in found if match["own"]}
    codec, factors = stf(base, system, published), {m[0]: value for m, value in found if m["factor"]}
    return with_adapter(codec, Adapter(alice_tensors(codec, adapted, factors, system), 1.0, identity=b""))


def alice_tensors(codec: STF, adapted: Iterable[str], factors: Mapping[str, Tensor], system: str) -> dict[str, Tensor]:
    """U, S and V of the adapted layers from A (in, r) and B (r, out). The layers go by their published names."""
    names, known = stf_names(), layers(codec, MLP)
    tensors: dict[str, Tensor] = {}
    for layer in adapted:
        ours, a, b = renamed(layer, names), f"{layer}.lora.W_a", f"{layer}.lora.W_b"
        if ours not in known:
            raise wrong(system, f"it has an unexpected layer {layer}")
        for name in (a, b):
            if name not in factors:
                raise wrong(system, f"it lacks {name}")
        rank = factors[a].shape[-1]
        check_shape(system, a, factors[a], (known[ours].in_features, rank))
        check_shape(system, b, factors[b], (rank, known[ours].out_features))
        s = torch.full((rank,), float(ALICE_ALPHA))
        tensors |= {f"{ours}.U": factors[b].T, f"{ours}.S": s, f"{ours}.V": factors[a]}
    return tensors


class System(NamedTuple):
    """A published system.

    load: a module from a state dict under our names.
    codec: the name in `codecs.CODECS` of what it holds.
    adapter: method and other entries of the card (`methods.adapter_files`) of the adapter that it holds too.
    """

    load: Callable[[Mapping[str, Tensor]], nn.Module]
    codec: str
    adapter: Mapping[str, Any] = MappingProxyType({})


SYSTEMS = {
    "tic": System(tic, "tic"),
    "tic_svdlora": System(tic_svdlora, "tic", {"method": "svd_lora", "alpha": ALPHA}),
    "transtic": System(transtic, "tic", {"method": "transtic", **TRANSTIC_CARD}),
    "stf": System(stf, "stf"),
    "alice": System(alice, "stf", {"method": "alice", **OF_ALICE}),
    "calice": System(partial(alice, system="calice"), "stf", {"method": "calice", **OF_ALICE, **Range((1, 6)).card}),
}


def system_of(name: str) -> System:
    """The entry of a published system. Raises LoraCompError for an unknown one."""
    if name not in SYSTEMS:
        raise LoraCompError(f"unknown published system {name!r}; available are {', '.join(SYSTEMS)}")
    return SYSTEMS[name]


def from_reference(system: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Load a published checkpoint as a frozen module in evaluation mode.

    Called with x, float32 (B, 3, H, W) in [0, 1] with sides that are multiples of 64, the module returns a dict with
    x_hat, y_hat, z_hat and likelihoods {y, z}.

    Args:
        system: "tic", "tic_svdlora", "transtic", "stf", "alice" or "calice".
        state_dict: tensors by their published names.
    Raises:
        LoraCompError: an unknown system, or a state dict of another one.
    """
    load = system_of(system).load
    named = {our_name(k): v for k, v in state_dict.items()}
    state = {k: v.to(torch.float32) for k, v in named.items() if not UNUSED.search(k)}
    return load(state).eval().requires_grad_(False)
