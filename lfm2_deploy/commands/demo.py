"""`lfm2-deploy demo`: the whole way, on a small model that comes with the package."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from lfm2_deploy.commands.completions import (
    decode_rate,
    describe_completion,
    summarize_speed,
)
from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    output,
    print_facts,
    print_json,
    print_title,
    printable,
    quote,
    show_progress,
    write_text,
)
from lfm2_deploy.commands.options import AsJson, Precision, Threads

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle
    from lfm2_deploy.compare.compare import Comparison
    from lfm2_deploy.completion import Completion
    from lfm2_deploy.generate import LanguageModel

_PROMPT = "My fellow Americans, the state of our Union is"
_SEED = 1
# A glance: `verify` takes its time.
_COMPARED_TOKENS, _GREEDY_TOKENS = 128, 16


@dataclass(slots=True)
class _Steps:
    """How long each step took, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started


def demo(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text to continue, in English.")
    ] = _PROMPT,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="DIR", help="The folder to make.", show_default="a cache"
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(metavar="NAME", help="fp32, fp16, int8 or int4.")
    ] = "int4",
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most tokens to generate.")
    ] = 80,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Export again, even if a good bundle is there.")
    ] = False,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Try everything on a small model that comes with this package, offline.

    It is exported, run and compared with torch; no network is needed. It knows
    speeches, the Bible and Jane Austen, and little of them: what it writes
    sounds right and means nothing.

    \b
    Examples:
      lfm2-deploy demo
      lfm2-deploy demo "In the beginning God" --precision int8
      lfm2-deploy demo --out ./demo-bundle

    \b
    See also:
      lfm2-deploy chat ./demo-bundle            talk with what --out made
      lfm2-deploy plan LiquidAI/LFM2-350M       will a real model fit here?
      lfm2-deploy doctor                        what else this computer can run
    """
    steps = _Steps()
    bundle, reused, why = _prepare(out, precision, fresh, steps)
    if not as_json:
        _print_model(bundle)
        _print_bundle(bundle, reused, why, steps)
    model = _load(bundle, threads, steps)
    completion = _generate(model, prompt, max_new_tokens, steps, quiet=as_json)
    comparison = _compare(bundle, threads, steps)
    if as_json:
        print_json(_describe(bundle, reused, model, completion, comparison, steps))
        return
    _print_results(bundle, completion, comparison, steps)


def _prepare(
    out: Path | None, precision: str, fresh: bool, steps: _Steps
) -> tuple[Bundle, bool, str]:
    """The bundle, whether it was there, and why one that was there is not used."""
    with show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy.commands.demo_bundle import find_demo_bundle, make_demo_bundle

        with steps.timed("look"):
            found, why = find_demo_bundle(out, precision, fresh)
        if found is not None:
            return found, True, why
        with steps.timed("export"):
            return make_demo_bundle(out, precision, fresh, progress), False, why


def _load(bundle: Bundle, threads: int | None, steps: _Steps) -> LanguageModel:
    from lfm2_deploy.api import load

    with steps.timed("load"):
        return load(bundle, threads=threads)


def _generate(
    model: LanguageModel, prompt: str, max_new_tokens: int, steps: _Steps, quiet: bool
) -> Completion:
    chunks = model.stream(prompt, max_new_tokens=max_new_tokens, seed=_SEED)
    if not quiet:
        output().print()
        print_title("Text", "the prompt, and how the model goes on")
        output().print(Text(printable(prompt), style="bold"), end="", soft_wrap=True)
    completion = None
    with steps.timed("generate"):
        for chunk in chunks:
            if not quiet:
                write_text(chunk.text)
            completion = chunk.completion or completion
    if not quiet:
        write_text("\n")
    assert completion is not None
    return completion


def _compare(bundle: Bundle, threads: int | None, steps: _Steps) -> Comparison | None:
    """A short comparison with the torch reference; None where torch is not there for it."""
    from lfm2_deploy.api import verify
    from lfm2_deploy.checkpoint import open_checkpoint
    from lfm2_deploy.commands.passage import choose_passage
    from lfm2_deploy.demo import DEMO_MODEL
    from lfm2_deploy.registry import RUNTIMES

    reference = RUNTIMES["reference"]
    if reference.missing() or reference.mismatched():
        return None
    with show_progress() as progress, steps.timed("compare"):
        progress("comparing", 0, 0)
        passage = choose_passage(bundle, None, _COMPARED_TOKENS, _GREEDY_TOKENS)
        return verify(
            bundle,
            open_checkpoint(str(DEMO_MODEL)),
            passage.rows,
            greedy_tokens=_GREEDY_TOKENS,
            threads=threads,
            progress=progress,
        )


def _print_model(bundle: Bundle) -> None:
    from lfm2_deploy.commands.model_report import describe_kind, list_model_facts

    kind = describe_kind(bundle.config)
    print_title("Model", f"a small LFM2 {kind}, of the family's true structure")
    facts = list_model_facts(bundle.config)
    shown = ("parameters", "layers", "", "experts")
    print_facts({label: facts[label] for label in shown if label in facts})


def _print_bundle(bundle: Bundle, reused: bool, why: str, steps: _Steps) -> None:
    from lfm2_deploy.demo import DEMO_MODEL

    before = (DEMO_MODEL / "model.safetensors").stat().st_size
    how = "made before" if reused else f"exported in {steps.seconds['export']:.1f} s"
    output().print()
    print_title("Its bundle", f"{how}: {why}" if why else how)
    precision = bundle.manifest.precision
    print_facts(
        {
            "folder": str(bundle.path),
            "size": f"{format_bytes(bundle.size_bytes)} in {precision}; "
            f"the checkpoint's weights are {format_bytes(before)}",
        }
    )


def _print_results(
    bundle: Bundle, completion: Completion, comparison: Comparison | None, steps: _Steps
) -> None:
    from lfm2_deploy.commands.verify import list_comparison_facts

    output().print()
    rate = decode_rate(completion)
    print_title("Speed", "" if rate is None else f"{rate:.0f} tokens a second")
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in steps.seconds.items())
    print_facts({"work": summarize_speed([completion]), "steps": times})
    output().print()
    if comparison is None:
        note(
            "not compared with the torch reference, which needs: "
            "pip install 'lfm2-deploy[export]' (in a clone: '.[export]')"
        )
    else:
        print_title("Exactness", f"{bundle.manifest.precision} against torch in float32")
        print_facts(list_comparison_facts(comparison))
    path = quote(bundle.path)
    note(f"\nnext: lfm2-deploy chat {path}\n      lfm2-deploy inspect {path}")


def _describe(
    bundle: Bundle,
    reused: bool,
    model: LanguageModel,
    completion: Completion,
    comparison: Comparison | None,
    steps: _Steps,
) -> dict[str, Any]:
    return {
        "path": str(bundle.path),
        "reused": reused,
        "precision": bundle.manifest.precision,
        "size_bytes": bundle.size_bytes,
        "completion": describe_completion(completion, model.tokenizer),
        "comparison": comparison and asdict(comparison),
        "steps_seconds": steps.seconds,
    }
