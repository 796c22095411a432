from lora_comp.ops.svd_lora import merge, svd_lora_linear
from lora_comp.ops.window_attention import window_attention

__all__ = ["merge", "svd_lora_linear", "window_attention"]
