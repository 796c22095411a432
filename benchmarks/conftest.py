"""What all benchmarks share: one thread of torch, and a file that tells the machine.

A claim is one pytest-benchmark group, named as a reader would say it, sizes included. Each of its tests has a parameter
`kind`, "ours" first and then peers by name ("torch", "CompressAI", "published"), each kind once;
`python -m lora_comp.report bench` makes a row of it. What has no `kind` is timed, but claims nothing.

Beside other processes take `--benchmark-timer=time.process_time`: a peer's long rounds are interrupted more often than
short ones of ours, so a clock flatters us. What runs on a GPU (`-k cuda`) is timed by the clock.
"""

import torch

torch.set_num_threads(1)


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
