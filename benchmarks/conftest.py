"""Settings of all benchmarks: one thread, and information about the machine in the JSON file.

A claim is one pytest-benchmark group, whose name includes sizes. Its tests have a parameter `kind`, "ours" first, then
peers by name ("torch", "CompressAI", "published"), each kind once; `python -m lora_comp.report bench` makes a table row
of it. Tests without `kind` are timed but not reported.

On a busy machine use `--benchmark-timer=time.process_time`: interruptions lengthen a peer's long rounds more than our
short ones, so wall-clock time favours us. GPU benchmarks (`-k cuda`) need wall-clock time.
"""

import torch

torch.set_num_threads(1)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
