"""The commands of `lora-comp`, a module each: a dataclass of settings, and a function that takes it."""
