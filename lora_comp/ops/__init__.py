from lora_comp.ops.gdn import gdn
from lora_comp.ops.svd_lora import merge, svd_lora_linear
from lora_comp.ops.swin_block import Layer, Parts, swin_block
from lora_comp.ops.window_attention import window_attention

__all__ = ["Layer", "Parts", "gdn", "merge", "svd_lora_linear", "swin_block", "window_attention"]
