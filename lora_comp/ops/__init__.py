from lora_comp.ops.svd_lora import merge, svd_lora_linear

__all__ = ["merge", "svd_lora_linear"]
