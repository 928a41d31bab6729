"""`lfm2-deploy bench`: how fast bundles are here, beside what memory allows."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import (
    format_bytes,
    format_seconds,
    note,
    print_facts,
    print_json,
    print_table,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import (
    AsJson,
    Canary,
    Device,
    Record,
    Threads,
    find_bundle,
    name_own_option,
)
from lfm2_deploy.errors import GenerationError

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle

_PICTURES = (".png", ".svg", ".pdf")
# Others' work on a core, above which timings are not worth much.
_QUIET = 0.25


def bench(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...",
            parser=find_bundle,
            help="Folders that `export` made, or names of models in the store.",
            autocompletion=completers.complete_bundles,
        ),
    ],
    contexts: Annotated[
        str, typer.Option(metavar="N,N", help="Prompt lengths to try, in tokens.")
    ] = "256,1024,4096",
    decode: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens to decode after each prompt.")
    ] = 64,
    rounds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often each is measured; medians are told.")
    ] = 3,
    threads: Threads = None,
    device: Device = None,
    canary: Canary = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a picture: .png, .svg or .pdf.")
    ] = None,
    record: Record = False,
    as_json: AsJson = False,
) -> None:
    """Measure loading, first token, prefill, decode and memory.

    Prefill is reading a prompt, decode writing an answer, both in tokens a second. Each
    bundle runs in a process of its own. Beside its decoding stands what this machine's
    memory allows: bandwidth over the bytes read for each token.

    \b
    Examples:
      lfm2-deploy bench ./LFM2-350M-cpu-int4
      lfm2-deploy bench ./a ./b --contexts 256,8192 --plot speed.png --json

    \b
    See also:
      lfm2-deploy plan MODEL          the same bound, before there is a bundle
      lfm2-deploy prepare BUNDLE      load faster, share memory
    """
    from lfm2_deploy.bundle import open_bundle

    lengths = _parse_contexts(contexts)
    if plot is not None and plot.suffix not in _PICTURES:
        raise typer.BadParameter(f"--plot {plot}: the name must end in {', '.join(_PICTURES)}")
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"--plot {plot}: there is no folder {plot.absolute().parent}")
    opened = {str(path): open_bundle(path) for path in bundles}
    fitting = {name: _fit(bundle, lengths, decode) for name, bundle in opened.items()}
    busy = _measure_load()
    for name in fitting:
        _check(name, threads, device, canary)
    results = {}
    for name, own in fitting.items():
        request = {"bundle": name, "contexts": own, "decode": decode, "rounds": rounds}
        results[name] = _run_worker({**request, "threads": threads, "device": device})
    if as_json:
        print_json({**_describe_setting(busy), "bundles": results})
    else:
        _print(results, opened)
    if busy is not None and busy > _QUIET:
        note(f"other programs kept {busy:.1f} cores busy when this began: figures may be low")
    if plot is not None:
        from lfm2_deploy.bench.plot import draw

        draw({Path(name).resolve().name: result for name, result in results.items()}, plot)
        note(f"picture: {plot}")
    if record:
        from lfm2_deploy.card.recording import of_bench
        from lfm2_deploy.commands.card import keep

        for name, result in results.items():
            keep(opened[name], [of_bench(opened[name], result, busy)])


def _parse_contexts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--contexts {text!r}: write numbers of tokens, as 256,1024")
    return sorted({int(part) for part in parts})


def _fit(bundle: Bundle, contexts: list[int], decode: int) -> list[int]:
    """Those lengths that a bundle has room for."""
    room = bundle.manifest.context_length - decode
    fitting = [context for context in contexts if context <= room]
    if not fitting:
        raise GenerationError(
            f"{bundle.path} holds {bundle.manifest.context_length:,} tokens, {decode} of them to "
            f"decode: --contexts must have one of at most {room}"
        )
    if len(fitting) < len(contexts):
        note(f"{bundle.path}: contexts above {room:,} are left out, it has no room for them")
    return fitting


def _measure_load() -> float | None:
    """Cores that were busy over the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _check(bundle: str, threads: int | None, device: str | None, canary: str | None) -> None:
    """Refuse a device that does not compute the model, before anything is measured."""
    request = {"bundle": bundle, "threads": threads, "device": device, "canary": canary}
    with name_own_option():
        remark = _run_worker(request)["remark"]
    if remark:
        note(remark)


def _run_worker(request: dict[str, Any]) -> dict[str, Any]:
    from lfm2_deploy.bench.process import run_worker

    with show_progress() as progress:
        return run_worker(request, lambda what: progress(what, 0, 0))


def _describe_setting(busy: float | None) -> dict[str, Any]:
    from dataclasses import asdict

    from lfm2_deploy.machine import describe_machine

    packages = ("lfm2-deploy", "onnxruntime", "openvino", "numpy")
    return {
        "machine": asdict(describe_machine()),
        "versions": {name: version(name) for name in packages if _is_installed(name)},
        "load_before": busy,
    }


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _print(results: dict[str, dict[str, Any]], opened: dict[str, Bundle]) -> None:
    for name, result in results.items():
        manifest = opened[name].manifest
        print_title(name, f"{manifest.model}, {manifest.precision}, {result['threads']} threads")
        print_facts({"device": result["device"], **_list_facts(result)})
        columns = (">context", ">prefill tok/s", ">decode tok/s", ">at best", ">of it")
        print_table(columns, [_tabulate(speed) for speed in result["speeds"]])
    if len(results) > 1:
        _print_ratios(results)


def _list_facts(result: dict[str, Any]) -> dict[str, str]:
    cold = "files not in memory" if result["page_cache_dropped"] else "files perhaps in memory"
    first = result["speeds"][0]
    facts = {
        "load": f"{format_seconds(result['load_cold_s'])} ({cold}), "
        f"then {format_seconds(result['load_warm_s'])}",
        "first token": f"{format_seconds(result['first_token_cold_ms'] / 1000)} after loading, "
        f"then {format_seconds(first['first_token_ms'] / 1000)} (prompt of {first['context']:,})",
        "bandwidth": f"{result['bandwidth_bytes_per_second'] / 1e9:.1f} GB/s",
    }
    if result["peak_bytes"] is not None and result["resident_loaded_bytes"] is not None:
        facts["memory"] = (
            f"{format_bytes(result['resident_loaded_bytes'])} loaded, "
            f"{format_bytes(result['peak_bytes'])} at most"
        )
    return facts


def _tabulate(speed: dict[str, Any]) -> tuple[str, ...]:
    slow, fast = speed["decode_range"]
    return (
        f"{speed['context']:,}",
        f"{speed['prefill']:,.0f}",
        f"{speed['decode']:.1f} ({slow:.1f}-{fast:.1f})",
        # Of an imported graph it may not be known what a token reads.
        "-" if speed["bound"] is None else f"{speed['bound']:.1f}",
        "-" if speed["bound"] is None else f"{speed['share_of_bound']:.0%}",
    )


def _print_ratios(results: dict[str, dict[str, Any]]) -> None:
    """Every bundle's rates as parts of the first's."""
    (base_name, base), *others = results.items()
    before = {speed["context"]: speed for speed in base["speeds"]}
    rows = [
        (name, f"{speed['context']:,}", *(
            f"{speed[kind] / before[speed['context']][kind]:.2f}" for kind in ("prefill", "decode")
        ))
        for name, result in others
        for speed in result["speeds"]
        if speed["context"] in before
    ]  # fmt: skip
    print_title("ratios", f"to {base_name}")
    print_table(("bundle", ">context", ">prefill", ">decode"), rows)
