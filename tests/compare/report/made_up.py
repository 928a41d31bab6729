"""Reports with made-up numbers: of subjects from exact to broken, or with hostile texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lfm2_deploy.compare.result import (
    Candidate,
    Cost,
    Divergence,
    ErrorStart,
    Estimate,
    GreedyRun,
    Protocol,
    ReferenceInfo,
    Report,
    Scores,
    StateError,
    StateErrors,
    StateRow,
    SubjectInfo,
    SubjectResult,
    Verdict,
    WorstPosition,
)
from lfm2_deploy.quantization_record import LayerError

LAYERS = tuple("full_attention" if i in (2, 5, 8, 10, 12, 14) else "conv" for i in range(16))
CONTEXT = (
    " must be in want of a wife.\n\nHowever little known the feelings or views of such a man may "
    "be on his first entering a neighbourhood, this truth is so well fixed in the minds of the"
)


def make_report(kinds: tuple[str, ...] = ("int8", "int4", "npu", "broken")) -> Report:
    """A report of some of "fp32", "int8", "int4", "npu", "broken" and "failed"."""
    subjects = tuple(make_subject(kind, number) for number, kind in enumerate(kinds))
    over = [s for s in subjects if s.failure or (s.scores and s.scores.divergence.mean.value > 0.1)]
    return Report(
        reference=ReferenceInfo(
            "LiquidAI/LFM2-350M",
            "torch",
            "torch 2.13.0, float32, layer by layer",
            Estimate(18.4213, 0.31),
            0.0,
            True,
        ),
        protocol=Protocol("wiki.test.raw", 64, 512, 256, 16_320, 1, "windows", ()),
        subjects=subjects,
        verdict=Verdict(
            not over,
            "KL divergence at most 0.1 nats",
            tuple(f"{s.info.name}: {s.failure or 'KL divergence is over 0.1'}" for s in over),
            most_kld=0.1,
            failed=tuple(s.info.name for s in over),
        ),
        layer_types=LAYERS,
        machine={
            "system": "Linux 6.8.0, x86_64",
            "cpu": "Intel(R) Core(TM) Ultra 7 258V",
            "memory": "33.6 GB",
        },
        versions={"lfm2-deploy": "0.1.0", "onnxruntime": "1.32.0", "openvino": "2026.4.1"},
        created="2026-11-26T05:44:41+00:00",
        command="lfm2-deploy compare ./LFM2-350M-cpu-int8 ./LFM2-350M-cpu-int4 --max-kld 0.1",
    )


SCALES = {"fp32": 1e-9, "int8": 8e-4, "int4": 0.021, "npu": 0.048, "broken": 2.6, "failed": 1.0}
PLACES = {
    "npu": ("npu", "openvino", "Intel(R) AI Boost, NPU 4000"),
    "broken": ("directml", "ort", "GPU"),
}


def make_subject(kind: str, number: int) -> SubjectResult:
    """One subject, whose numbers follow from its kind."""
    target, runtime, device = PLACES.get(kind, ("cpu", "ort", "CPU"))
    precision = kind if kind in ("fp32", "int8", "int4") else "int4"
    name = f"{target}-{precision}" if kind != "failed" else "webgpu-int4"
    size = {"fp32": 1_420_000_000, "int8": 372_000_000}.get(kind, 214_000_000 + number * 9_000_000)
    notes = ("weights are read from the disk cache",) if kind == "npu" else ()
    info = SubjectInfo(
        name,
        f"./LFM2-350M-{name}",
        "bundle",
        "LFM2-350M",
        precision,
        target,
        runtime,
        device,
        size,
        notes,
        "LiquidAI/LFM2-350M, revision 4f1c2d9",
        "32.0.100.4297" if kind in ("npu", "broken") else "",
    )
    if kind == "failed":
        return SubjectResult(
            info, "the device was lost while window 12 of 64 was read (D3D12: 0x887A0005)"
        )
    rng = np.random.default_rng(number)
    scale = SCALES[kind]
    return SubjectResult(
        info,
        scores=_make_scores(rng, scale),
        worst=tuple(_make_worst(rng, scale, i) for i in range(6)),
        greedy=(_make_greedy(kind, "It is a truth universally acknowledged, that a single man"),),
        states=_make_states(rng, kind, scale),
        cost=Cost(
            512,
            180.0 / (1 + number),
            47.3 / (1 + 0.3 * number),
            2700.0,
            0.42,
            310_000_000,
            498_000_000,
        ),
        remarks=("scored one position at a time: the device gives only the last logits",)
        if kind == "npu"
        else (),
        rounding=tuple(LayerError(i, 0.3 * scale**0.5 * (1 + 0.2 * i)) for i in range(16))
        if kind in ("int8", "int4")
        else (),
    )


def _make_scores(rng: np.random.Generator, scale: float) -> Scores:
    positions = scale * rng.lognormal(-1.2, 1.5, (64, 255)) * np.linspace(1.2, 0.9, 255)
    flat = np.sort(positions.ravel())
    mean, error = float(flat.mean()), float(positions.mean(1).std() / 8)
    divergence = Divergence(
        Estimate(mean, error),
        float(flat.std() / np.sqrt(flat.size)),
        *(float(v) for v in np.percentile(flat, (50, 99, 99.9, 100))),
        percentiles=tuple(np.percentile(flat, range(101)).tolist()),
        by_window=tuple(positions.mean(1).tolist()),
        by_position=tuple(positions.mean(0).tolist()),
    )
    same = 1 / (1 + 1.6 * scale**0.55)
    return Scores(
        divergence,
        Estimate(same, 0.0011),
        Estimate(same**0.8, 0.0009),
        Estimate(18.4213 * (1 + scale), 0.33),
        Estimate(1 + scale, 0.0021 * min(1, scale * 20)),
        0.4 * scale**0.5,
    )


def _make_worst(rng: np.random.Generator, scale: float, index: int) -> WorstPosition:
    words = (" world", " people", " family", " country", " neighbours", " house", " surrounding")
    chosen = [str(word) for word in rng.permutation(words)]

    def rank(order: list[str]) -> tuple[Candidate, ...]:
        shares = np.sort(rng.dirichlet([2.0] * 8))[::-1]
        return tuple(
            Candidate(words.index(t), t, float(p)) for t, p in zip(order, shares, strict=False)
        )[:4]

    return WorstPosition(
        int(rng.integers(64)),
        int(rng.integers(256, 511)),
        float(scale * (40 - 5 * index)),
        CONTEXT,
        Candidate(6, " surrounding", 0.18),
        0.021,
        rank(chosen),
        rank(chosen[2:] + chosen[:2]),
    )


def _make_greedy(kind: str, prompt: str) -> GreedyRun:
    if kind in ("fp32", "int8"):
        common = (
            " in possession of a good fortune, must be in want of a wife.\n\n“My dear Mr. Bennet,”"
        )
        return GreedyRun(prompt, 32, 32, common, "", None, None, None, 1.0)
    garbage = kind == "broken"
    return GreedyRun(
        prompt,
        32,
        2 if garbage else 9,
        " in" if garbage else " in possession of a good fortune, must be",
        " the the the the of of of the the the of the the the of"
        if garbage
        else " looking for a wife, and that",
        Candidate(12, " possession" if garbage else " in", 0.61 if garbage else 0.34),
        Candidate(3, " the" if garbage else " looking", 0.004 if garbage else 0.31),
        5.03 if garbage else 0.092,
        0.19 if garbage else 0.91,
    )


def _make_states(rng: np.random.Generator, kind: str, scale: float) -> StateErrors:
    if kind == "npu":
        return StateErrors((), None, "the npu runtime keeps its states on the device")
    start = None
    rows = []
    for tokens in (8, 511):
        errors = []
        for layer, layer_kind in enumerate(LAYERS):
            base = 0.02 * scale**0.5 * (1 + 0.35 * layer) * (1.3 if tokens > 8 else 1)
            if kind == "broken":
                base = 0.002 if layer < 5 else 0.45 + 0.02 * layer
            names = ("conv",) if layer_kind == "conv" else ("key", "value")
            errors += [StateError(layer, k, base * float(rng.uniform(0.8, 1.25))) for k in names]
        rows.append(StateRow(tokens, tuple(errors)))
    if kind == "broken":
        start = ErrorStart(
            5,
            "key",
            0.55,
            0.0023,
            "look at the keys of layer 5: rotary embedding, head norm, the row they are written to",
        )
    return StateErrors(tuple(rows), start)


def make_hostile(text: str) -> Report:
    """A report in which every text that comes from outside is this one."""
    report = make_report(("int4",))
    subject = report.subjects[0]
    token = Candidate(1, text, 0.5)
    worst = replace(
        subject.worst[0], context=text, next_token=token, reference=(token,), subject=(token,)
    )
    run = GreedyRun(text, 3, 1, text, text, token, token, 0.1, 0.3)
    info = replace(subject.info, name=text, given=text, model=text, device=text, notes=(text,))
    subject = replace(subject, info=info, worst=(worst,), greedy=(run,), remarks=(text,))
    return replace(
        report,
        subjects=(subject, replace(subject, failure=text)),
        reference=replace(report.reference, name=text, detail=text),
        protocol=replace(report.protocol, text=text, remarks=(text,)),
        verdict=Verdict(False, text, (text,)),
        machine={text: text},
        versions={text: text},
    )
