"""Published checkpoints in our modules: the names of their entries, and what differs at run time.

`from_reference` takes a state dict as published code saves it; entries that hold no learned value may be absent.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_comp.codecs import build
from lora_comp.codecs.tic import TIC
from lora_comp.errors import LoraCompError
from lora_comp.methods.low_rank import Adapter, layers
from lora_comp.methods.svd_lora import with_adapter

RANK, ALPHA = 4, 8  # of LoRA_comp's checkpoints
# Made anew by our modules, or parts of the published systems that these models do not use.
UNUSED = re.compile(
    r"relative_position_index|attn_mask|^gaussian_conditional|prompt_embeddings"
    r"|entropy_bottleneck\.(_offset|_quantized_cdf|_cdf_length|target|likelihood_lower_bound)"
)


def our_name(key: str) -> str:
    """`g_a1.residual_group.blocks.0.attn.qkv.weight` to `g_a.1.blocks.0.attn.qkv.weight`, and the like."""
    key = re.sub(r"^(g_a|g_s|h_a|h_s)(\d)\.", r"\1.\2.", key.removeprefix("module.")).replace("residual_group.", "")
    return re.sub(
        r"^entropy_bottleneck\._(matrix|bias|factor)(\d)$",
        lambda m: (
            "entropy_bottleneck." + {"matrix": "matrices", "bias": "biases", "factor": "factors"}[m[1]] + f".{m[2]}"
        ),
        key,
    )


def load(module: nn.Module, state: Mapping[str, Tensor], system: str) -> None:
    """Load what a checkpoint holds; the entropy bottleneck alone may lack entries."""
    own = module.state_dict()
    for name in state.keys() & own.keys():
        if state[name].shape != own[name].shape:
            raise LoraCompError(
                f"this is not a checkpoint of {system}: {name} is {tuple(state[name].shape)}, "
                f"not {tuple(own[name].shape)}"
            )
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [k for k in missing if k in dict(module.named_parameters()) and "entropy_bottleneck" not in k]
    if missing or unexpected:
        wrong = f"lacks {missing[0]}" if missing else f"has {unexpected[0]}, which is no part of it"
        raise LoraCompError(f"this is not a checkpoint of {system}: it {wrong}")


def tic(state: Mapping[str, Tensor]) -> TIC:
    codec = build("tic")
    load(codec, state, "tic")
    return codec


def tic_svdlora(state: Mapping[str, Tensor]) -> nn.Module:
    """LoRA_comp: the codec, with its adapter on every attention layer."""
    published = re.compile(r"\.w_lora_([USV])$")
    tensors = {published.sub(r".\1", k): v for k, v in state.items() if published.search(k)}
    codec = tic({k: v for k, v in state.items() if not published.search(k)})
    wanted = {f"{name}.{k}" for name in layers(codec) for k in "USV"}
    if wanted != set(tensors):
        raise LoraCompError(f"this is not a checkpoint of tic_svdlora: see {min(wanted ^ set(tensors))}")
    return with_adapter(codec, Adapter(tensors, RANK, ALPHA, identity=b""))


SYSTEMS = {"tic": tic, "tic_svdlora": tic_svdlora}


def from_reference(system: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """A published checkpoint as a module in evaluation mode, frozen.

    Called with x, float32 (B, 3, H, W) with sides that are multiples of 64, it returns a dict with x_hat, y_hat,
    z_hat and likelihoods {y, z}.

    Args:
        system: "tic" or "tic_svdlora".
        state_dict: tensors under the published names.
    Raises:
        LoraCompError: an unknown system, or a state dict that is not of it.
    """
    if system not in SYSTEMS:
        raise LoraCompError(f"there is no published system {system!r} here; known are {', '.join(SYSTEMS)}")
    state = {our_name(k): v.to(torch.float32) for k, v in state_dict.items() if not UNUSED.search(k)}
    return SYSTEMS[system](state).eval().requires_grad_(False)
