"""Options that several commands take, and what they become.

An option left out is None, and then the model's own generation_config.json decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lfm2_deploy.commands import completers
from lfm2_deploy.commands.console import note, show_progress
from lfm2_deploy.commands.grammars import read_grammar
from lfm2_deploy.errors import Lfm2DeployError

if TYPE_CHECKING:
    from lfm2_deploy.contracts import Progress
    from lfm2_deploy.generate import LanguageModel
    from lfm2_deploy.prompt_cache import PromptCache

_DEFAULT_LENGTH = 512
# As far as ONNX Runtime's sessions can take back; fewer are tried where more do not pay.
_LOOK_AHEAD = 15
_CHOOSING = "How to choose tokens"
_WHERE = "Where it runs"
_ENDING = "When to stop"
_MODELS = "the model's"
_FOLLOWING = "What the answer must follow"

# As `exporters.quantize.plan` has it, which `--help` must not wait for.
Precision = Literal["fp32", "fp16", "int8", "int4"]


def find_bundle(text: str) -> Path:
    """The folder of what a user calls a bundle: a path, or a name in the store."""
    from lfm2_deploy.store.resolve import resolve

    return resolve(text)


BundlePath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE",
        parser=find_bundle,
        help="The folder that `export` made, or the name of a model in the store.",
        autocompletion=completers.complete_bundles,
    ),
]
Record = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Keep the figures with the bundle, and show them in its model card (README.md).",
    ),
]
Part = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="NAME",
        help="Of a vision or audio model: text, which is the only part there is.",
        autocompletion=completers.complete_parts,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Threads to run on.",
        show_default="one a core",
        rich_help_panel=_WHERE,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Run on npu, gpu or cpu, or on one of several GPUs (gpu.1, dml.1, nvidia; webgpu: "
        "low-power), or with another runtime (genai, genai:cuda), and nowhere else.",
        show_default="where the bundle was made for",
        autocompletion=completers.complete_devices,
        rich_help_panel=_WHERE,
    ),
]
Canary = Annotated[
    Literal["auto", "always", "off"] | None,
    typer.Option(
        metavar="WHEN",
        case_sensitive=False,
        help="Check that the device computes what it must: auto (once for each driver), always, "
        "off.",
        show_default="LFM2_DEPLOY_CANARY, or auto",
        rich_help_panel=_WHERE,
    ),
]
MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Most tokens to generate.",
        show_default="512, or what fits",
        rich_help_panel=_ENDING,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT",
        help="End before this text; may be given several times.",
        rich_help_panel=_ENDING,
    ),
]
IgnoreEos = Annotated[
    bool,
    typer.Option("--ignore-eos", help="Go on after end-of-turn tokens.", rich_help_panel=_ENDING),
]
ShowSpecialTokens = Annotated[
    bool,
    typer.Option(
        "--show-special-tokens",
        help="Keep tokens such as <|tool_call_start|> in the text.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T",
        help="Higher is more varied; 0 is greedy.",
        show_default=_MODELS,
        rich_help_panel=_CHOOSING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        help="Choose among the K likeliest; 0 is off.",
        show_default=_MODELS,
        rich_help_panel=_CHOOSING,
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Choose among the fewest that reach this probability; 1 is off.",
        show_default=_MODELS,
        rich_help_panel=_CHOOSING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Leave out those less likely than P times the likeliest; 0 is off.",
        show_default=_MODELS,
        rich_help_panel=_CHOOSING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        help="Above 1 discourages repeating; 1 is off.",
        show_default=_MODELS,
        rich_help_panel=_CHOOSING,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="Above 0 (to 2) discourages what the answer has already; 0 is off.",
        rich_help_panel=_CHOOSING,
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="The same, for each time that the answer has it; 0 is off.",
        rich_help_panel=_CHOOSING,
    ),
]
Schema = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Answer with JSON that this JSON schema describes. Say in the prompt, too, what is "
        "wanted.",
        rich_help_panel=_FOLLOWING,
    ),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        metavar="FILE",
        help="Answer with a text of this Lark grammar, whose first rule is start.",
        rich_help_panel=_FOLLOWING,
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='Answer with a text that this expression matches as a whole: "yes|no".',
        rich_help_panel=_FOLLOWING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Makes random choices repeatable.",
        show_default="another each time",
        rich_help_panel=_CHOOSING,
    ),
]
Greedy = Annotated[
    bool,
    typer.Option(
        "--greedy",
        help="Always take the likeliest token; the same as --temperature 0.",
        rich_help_panel=_CHOOSING,
    ),
]


Speculate = Annotated[
    bool,
    typer.Option(
        "--speculate",
        help="Look ahead where text repeats what came before; the answer is the same.",
    ),
]
PromptCacheFolder = Annotated[
    Path | None,
    typer.Option(
        "--prompt-cache",
        metavar="DIR",
        help="Keep what was computed for prompts in DIR, and begin with it next time.",
    ),
]


def gather_overrides(
    *,
    max_new_tokens: MaxNewTokens = None,
    stop: Stop = None,
    ignore_eos: IgnoreEos = False,
    show_special_tokens: ShowSpecialTokens = False,
    greedy: Greedy = False,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    seed: Seed = None,
    schema: Schema = None,
    grammar: GrammarFile = None,
    regex: Regex = None,
    speculate: Speculate = False,
) -> dict[str, Any]:
    """Overrides for `LanguageModel.generate`, checked before a model is loaded.

    Raises:
        typer.BadParameter: two options contradict each other.
        GenerationError: a value is out of range, or a grammar is none.
    """
    from lfm2_deploy.options import GenerationOptions

    if greedy and temperature:
        raise typer.BadParameter("--greedy and --temperature contradict each other: choose one")
    overrides = {
        "max_new_tokens": max_new_tokens,
        "stop": stop or None,
        "ignore_eos": ignore_eos or None,
        "skip_special_tokens": False if show_special_tokens else None,
        "temperature": 0.0 if greedy else temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "grammar": read_grammar(schema, grammar, regex),
        "prompt_lookup_num_tokens": _LOOK_AHEAD if speculate else None,
    }
    GenerationOptions().with_overrides(**overrides)
    return overrides


def takes_generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `gather_overrides`, and what they become as `overrides`.

    Args:
        command: has a parameter `overrides`, in whose place its help lists the options.
    """
    shared = signature(gather_overrides, eval_str=True).parameters
    parameters: list[Parameter] = []
    for parameter in signature(command, eval_str=True).parameters.values():
        parameters += shared.values() if parameter.name == "overrides" else [parameter]

    @wraps(command)
    def run(**given: Any) -> None:
        overrides = gather_overrides(**{name: given.pop(name) for name in shared})
        command(**given, overrides=overrides)

    # typer learns from a signature which options there are.
    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    return run


@contextmanager
def name_own_option() -> Iterator[None]:
    """Let a refusal speak of `--canary off`, which not every command has."""
    from lfm2_deploy.canary.check import OVERRIDE

    try:
        yield
    except Lfm2DeployError as error:
        if OVERRIDE not in str(error):
            raise
        raise type(error)(str(error).replace(OVERRIDE, "--canary off")) from error


def load_model(
    bundle: Path,
    threads: int | None,
    device: str | None = None,
    canary: str | None = None,
    *,
    has_option: bool = False,
) -> LanguageModel:
    """Load a bundle, with a sign of life while it takes long.

    Args:
        bundle: the folder.
        threads, device, canary: as `load` takes them.
        has_option: the command has `--canary`, and a refusal may speak of it.
    """
    with show_progress() as progress, warnings.catch_warnings():
        progress("loading", 0, 0)
        from lfm2_deploy.api import load
        from lfm2_deploy.canary.check import CanaryWarning

        # Said below, in this program's words.
        warnings.simplefilter("ignore", CanaryWarning)
        with name_own_option() if has_option else nullcontext():
            model = load(
                bundle, threads=threads, device=device, canary=canary, progress=_quieten(progress)
            )
    for remark in (*model.runtime.info.notes, *model.remarks):
        note(remark)
    return model


def _quieten(progress: Progress) -> Progress:
    """What tells of hashing alone, which may take long; of other stages a line has been said."""

    def tell(what: str, done: int, total: int) -> None:
        if total:
            progress(what, done, total)

    return tell


def warn_of_speculation(model: LanguageModel, overrides: Mapping[str, Any]) -> None:
    """Say so where --speculate can do nothing."""
    info = model.runtime.info
    if overrides.get("prompt_lookup_num_tokens") and not info.capabilities.max_proposal:
        note(f"runtime {info.runtime} cannot take tokens back one by one: --speculate does nothing")


def open_cache(model: LanguageModel, bundle: Path, folder: Path | None) -> PromptCache:
    """An empty prompt cache, over a folder of stored prefixes where one is given."""
    from lfm2_deploy.bundle import open_bundle
    from lfm2_deploy.prefix_store import PrefixStore
    from lfm2_deploy.prompt_cache import PromptCache

    store = None if folder is None else PrefixStore(folder.expanduser(), open_bundle(bundle))
    return PromptCache(model.runtime, store=store)


def fit_length(model: LanguageModel, rows: Sequence[Sequence[int]], asked: int | None) -> int:
    """How many tokens to generate where the user may have left it open.

    Args:
        model: its generation_config.json comes before this package's own default.
        rows: token ids of each prompt.
        asked: `--max-new-tokens`, which is never changed: if it does not fit, generating
            says so.
    """
    if asked is not None:
        return asked
    room = model.runtime.context_length - max(map(len, rows))
    return max(1, min(model.defaults.max_new_tokens or _DEFAULT_LENGTH, room))
