"""What tests have WebGPU do, in a process of its own: values that JSON knows enter and leave.

A provider's library is loaded once a process and may crash it while it is unloaded.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lfm2_deploy.bundle import open_bundle
from lfm2_deploy.contracts import FloatArray
from lfm2_deploy.registry import find_runtime
from runtimes import gpu_capture, gpu_session, gpu_shapes
from runtimes.gpu_model import GpuRuntime
from runtimes.gpu_provider import list_assignments

# Tokens whose logits are compared in every way.
_COMPARED = 24


def examine(folder: str, prompt: list[int], count: int, every_way: bool) -> dict[str, Any]:
    """Everything that is asked of a bundle, in one go: loading takes longest.

    Args:
        folder: a bundle for target `webgpu`.
        prompt: tokens.
        count: of greedy tokens.
        every_way: whether to append in every way, too.

    Returns:
        `device`, `captures`, `placed` (provider -> its nodes), `operators`; greedy `tokens`,
        `replayed` and those of the same graph `on_cpu`; `errors` of what is done otherwise: the
        largest difference as a share of the largest logit, or the median position's.
    """
    bundle = open_bundle(folder)
    gpu: GpuRuntime = find_runtime("webgpu")(bundle)
    cpu: GpuRuntime = find_runtime("webgpu")(bundle, device="cpu")
    parts = list_assignments(gpu.graph(1, 1).session)
    captures, tokens = gpu.captures, {}
    for name, runtime, replays in (
        ("tokens", gpu, False),
        ("replayed", gpu, captures),
        ("on_cpu", cpu, False),
    ):
        runtime.captures = replays
        tokens[name] = generate(runtime, prompt, count)
    return {
        "device": gpu.info.device,
        "captures": captures,
        "prompt_chunk": gpu.prompt_chunk,
        "placed": Counter(part.ep_name for part in parts for _ in part.get_nodes()),
        "operators": sorted({node.op_type for part in parts for node in part.get_nodes()}),
        **tokens,
        "errors": compare(gpu, cpu, (prompt + tokens["tokens"])[:_COMPARED], captures, every_way),
    }


def generate(runtime: GpuRuntime, prompt: list[int], count: int) -> list[int]:
    session = runtime.open(1, len(prompt) + count)
    logits, tokens = session.prefill([prompt]), []
    for _ in range(count):
        tokens.append(int(logits[0].argmax()))
        logits = session.decode([tokens[-1]])
    return tokens


def compare(
    gpu: GpuRuntime, cpu: GpuRuntime, row: list[int], captures: bool, every_way: bool
) -> dict[str, list[float]]:
    """Each way to append, against the CPU's logits or WebGPU's own; [median, largest]."""
    gpu.captures = cpu.captures = False
    size, half = len(row), len(row) // 2
    expected, every = cpu.open(1, size).score([row])[0], gpu.open(1, size).score([row])[0]
    found = {"against the CPU": differ(every, expected)}
    if captures:
        gpu.captures = True
        replayed = step(gpu, row)
        gpu.captures = False
        found["replayed"] = differ(replayed, step(gpu, row))
    if not every_way:
        gpu.captures = captures
        return found
    found["one by one"] = differ(step(gpu, row), every)
    gpu_session.PREFILL_CHUNK, chunk = 7, gpu_session.PREFILL_CHUNK
    found["in pieces"] = differ(gpu.open(1, size).score([row])[0], every)
    gpu_session.PREFILL_CHUNK = chunk
    found["appended"] = differ(append(gpu, row, half), every[half:])
    gpu.captures = captures
    gpu_shapes._FIRST_ROOM, room = 8, gpu_shapes._FIRST_ROOM
    found["in growing buffers"] = differ(step(gpu, row), every)
    gpu_shapes._FIRST_ROOM = room
    found["after going back"] = differ(*go_back(gpu, row, half))
    found["in another session"] = differ(*take_over(gpu, row, half))
    return found


def step(runtime: GpuRuntime, row: list[int]) -> FloatArray:
    session = runtime.open(1, len(row))
    return np.concatenate([session.decode([token]) for token in row])


def append(runtime: GpuRuntime, row: list[int], half: int) -> FloatArray:
    session = runtime.open(1, len(row))
    session.prefill([row[:half]])
    return session.score([row[half:]])[0]


def go_back(runtime: GpuRuntime, row: list[int], half: int) -> tuple[FloatArray, FloatArray]:
    session = runtime.open(1, len(row))
    session.prefill([row[:half]])
    mark = session.mark()
    before = [session.decode([token]) for token in row[half : half + 5]]
    session.prefill([[9, 10, 11]])
    session.rewind(mark)
    after = [session.decode([token]) for token in row[half : half + 5]]
    return np.concatenate(after), np.concatenate(before)


def take_over(runtime: GpuRuntime, row: list[int], half: int) -> tuple[FloatArray, FloatArray]:
    first, second = (runtime.open(1, len(row)) for _ in range(2))
    second.prefill([row[3:9]])
    first.prefill([row[:half]])
    second.restore(first.snapshot())
    # Two sessions of one runtime take turns.
    steps = [(second.decode([t]), first.decode([t])) for t in row[half : half + 5]]
    after, before = zip(*steps, strict=True)
    first.reset()
    return np.concatenate(after), np.concatenate(before)


def differ(actual: FloatArray, expected: FloatArray) -> list[float]:
    errors = np.abs(actual - expected).max(-1) / np.abs(expected).max()
    return [float(np.median(errors)), float(errors.max())]


def replay_far(folder: str, held: int, count: int) -> list[float]:
    """Tokens far into a row, replayed and by plain calls: [median, largest difference]."""
    runtime: GpuRuntime = find_runtime("webgpu")(open_bundle(folder))
    assert runtime.captures
    rows = []
    for captures in (True, False):
        runtime.captures = captures
        session = runtime.open(1, held + count)
        session.prefill([[8 + n % 500 for n in range(held)]])
        rows.append(np.concatenate([session.decode([8 + n]) for n in range(count)]))
    return differ(*rows)


def load_wrong_replay(folder: str) -> bool:
    """Whether recordings are kept that always replay the first call's length."""
    run = gpu_capture.CapturedToken.run

    def forget(self: Any, turn: int, token: int, held: int) -> FloatArray:
        return run(self, turn, token, held if held < 2 else 1)

    gpu_capture.CapturedToken.run = forget  # type: ignore[method-assign]
    runtime: GpuRuntime = find_runtime("webgpu")(open_bundle(folder))
    return runtime.captures


def load_other_graph(folder: str, graph: str) -> str:
    """What loading says of a bundle whose graph is another one; "" where it loads."""
    bundle = open_bundle(folder)
    bundle.graph.write_bytes(Path(graph).read_bytes())
    try:
        find_runtime("webgpu")(bundle)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def use_closed(folder: str) -> list[str]:
    """What a closed runtime says, to a session that has replayed before."""
    runtime: GpuRuntime = find_runtime("webgpu")(open_bundle(folder))
    session = runtime.open(1, 32)
    for token in range(8, 14):
        session.decode([token])
    runtime.close()
    said = []
    for use in (lambda: session.decode([14]), lambda: session.prefill([[8, 9]]), runtime.open):
        try:
            use()
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


def name_devices(folder: str, asked: list[str]) -> list[str]:
    """What loading on each device that is asked for says."""
    said = []
    for name in asked:
        try:
            said.append(find_runtime("webgpu")(open_bundle(folder), device=name).info.device)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    return said
