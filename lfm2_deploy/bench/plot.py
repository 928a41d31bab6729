"""Measured bundles -> a picture: rates over context, and what memory allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lfm2_deploy.errors import RuntimeUnavailableError

_SIZE_INCHES = (9.0, 4.2)
_DOTS_PER_INCH = 150


def draw(results: Mapping[str, Mapping[str, Any]], file: Path) -> None:
    """Write a picture, in the form its name ends with (.png, .svg, .pdf).

    Args:
        results: name -> what `worker.run` gave.
        file: where to write.

    Raises:
        RuntimeUnavailableError: matplotlib is not installed.
        ValueError: it knows no such form.
    """
    figure_class = _find_matplotlib()
    figure = figure_class(figsize=_SIZE_INCHES, layout="constrained")
    prefill, decode = figure.subplots(1, 2)
    for name, result in results.items():
        speeds = result["speeds"]
        contexts = [speed["context"] for speed in speeds]
        prefill.plot(contexts, [speed["prefill"] for speed in speeds], marker="o", label=name)
        (line,) = decode.plot(
            contexts, [speed["decode"] for speed in speeds], marker="o", label=name
        )
        bounds = [speed["bound"] for speed in speeds]
        if None in bounds:
            continue
        decode.plot(contexts, bounds, "--", color=line.get_color(), label="memory's bound")
    for axes, title in ((prefill, "Prefill"), (decode, "Decode")):
        axes.set(title=title, xlabel="context, tokens", ylabel="tokens a second")
        axes.set_xscale("log", base=2)
        contexts = sorted({s["context"] for r in results.values() for s in r["speeds"]})
        axes.set_xticks(contexts, [f"{context:,}" for context in contexts])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(file, dpi=_DOTS_PER_INCH)


def _find_matplotlib() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeUnavailableError(
            "--plot needs matplotlib, which is not installed: "
            "pip install 'lfm2-deploy[bench]' (in a clone: '.[bench]')"
        ) from error
    return Figure
