"""One frozen image codec, adapted to each image and to whatever will look at it."""

import os
from importlib import import_module
from importlib.metadata import distributions
from pathlib import Path

__version__ = "0.1.0"

# How often a waiting thread of OpenMP looks again before it sleeps. At libgomp's 300,000, threads that wait for one
# which another process has displaced take the core that it needs (docs/speed.md). It is read when torch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# In a checkout's root, `python -m lora_comp.run` finds this folder before the installed package. The compiled _C is
# then missing unless the install is editable, and tasks/ stands beside the package instead of inside it. So a
# checkout's package looks for lora_comp.tasks in the checkout's root, and for _C in the installed package.
_here = Path(__file__).resolve().parent
if (_here.parent / "csrc" / "bindings.cpp").is_file():
    __path__.append(str(_here.parent))
    _installed = (Path(str(d.locate_file("lora_comp"))) for d in distributions(name="lora_comp"))
    __path__.extend(str(folder) for folder in _installed if any(folder.glob("_C.*.so")) and folder != _here)

_EXPORTS = {
    "load_codec": "codecs",
    "load_task": "tasks",
    "load_data": "data",
    "load_method": "methods",
    "encode": "api",
    "encode_batch": "api",
    "decode": "api",
    "bit_map": "api",
    "info": "bitstream",
    "from_reference": "reference",
    "LoraCompError": "errors",
    "BitstreamError": "errors",
    "ImageError": "errors",
    "LoraCompWarning": "errors",
}
_MODULES = ("ops", "rans", "bitstream", "zoo")
__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str):
    """The public names, imported when they are first used: `lora-comp info` need not wait for torch."""
    if name in _EXPORTS:
        return getattr(import_module(f"lora_comp.{_EXPORTS[name]}"), name)
    if name in _MODULES:
        return import_module(f"lora_comp.{name}")
    raise AttributeError(f"module 'lora_comp' has no attribute {name!r}")
