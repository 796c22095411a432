"""A method in one file: the decoder sharpens its output. No test-time fitting, nothing transmitted."""

import copy
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from lora_comp.errors import BitstreamError, LoraCompError
from lora_comp.methods import Spec


class Adapted:
    def __init__(self, codec, images):
        self.codec, self.images, self.latents = codec, images, codec.latents

    def fit(self, objective, settings, on_step=None):
        """No test-time fitting."""

    def bits(self):
        return torch.zeros(self.images)

    def payloads(self):
        return [None] * self.images


class Sharpen:
    name, identity, guarded, target = "sharpen", None, False, None

    def __init__(self, amount):
        self.settings = {"amount": amount}

    def prepare(self, codec, x, settings):
        return Adapted(self.restore(codec, None), len(x))

    def restore(self, codec, payload):
        if payload is not None:
            raise BitstreamError("the file has a payload, but its method takes none")
        made, amount = copy.copy(codec), self.settings["amount"]

        def synthesize(y_hat):
            output = codec.synthesize(y_hat)
            return output + amount * (output - F.avg_pool2d(output, 3, 1, 1, count_include_pad=False))

        made.synthesize = synthesize
        return made


@dataclass
class Options:
    amount: float = 0.25  # of the unsharp mask, 0 to 1


def load(codec, task=None, amount=0.25):
    if not 0 <= amount <= 1:
        raise LoraCompError(f"amount must be 0 to 1, not {amount}")
    return Sharpen(amount)


SPEC = Spec(load, lambda codec, identity, adapter: Sharpen(0.25), Options)  # METHODS["sharpen"] = sharpen.SPEC
