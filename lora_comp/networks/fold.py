"""Batch norms folded into the convolutions before them: the same function in evaluation mode, in fewer operations."""

from collections import Counter
from collections.abc import Collection

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(model: nn.Module, keep: Collection[nn.Module] = ()) -> None:
    """Fold each batch norm that is the only reader of a convolution into it. A model that torch.fx cannot trace stays
    as it is. keep: modules to leave alone, because hooks read their outputs."""
    try:
        calls = [node for node in fx.symbolic_trace(model).graph.nodes if node.op == "call_module"]
    except Exception:  # whatever the model's own code raises on a proxy
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
            and not (conv in keep or norm in keep)
        ):
            model.set_submodule(source.target, fuse_conv_bn_eval(conv, norm))
            model.set_submodule(node.target, nn.Identity())
