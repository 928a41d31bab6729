"""Options that several commands take, and what they become.

An option left out is None, and then the model's own generation_config.json decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands.console import show_progress

if TYPE_CHECKING:
    from lfm2_deploy.generate import LanguageModel, Prompt

_DEFAULT_LENGTH = 512
_CHOOSING = "How to choose tokens"
_ENDING = "When to stop"

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The folder that `export` made.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Threads = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Threads to run on.", show_default="one a core"),
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
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="T", help="Higher is more varied; 0 is greedy.", rich_help_panel=_CHOOSING
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="K", help="Choose among the K likeliest; 0 is off.", rich_help_panel=_CHOOSING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Choose among the fewest that reach this probability; 1 is off.",
        rich_help_panel=_CHOOSING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="P",
        help="Leave out those less likely than P times the likeliest; 0 is off.",
        rich_help_panel=_CHOOSING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="F", help="Above 1 discourages repeating; 1 is off.", rich_help_panel=_CHOOSING
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="Makes random choices repeatable.", rich_help_panel=_CHOOSING),
]
Greedy = Annotated[
    bool,
    typer.Option(
        "--greedy",
        help="Always take the likeliest token; the same as --temperature 0.",
        rich_help_panel=_CHOOSING,
    ),
]


def gather_overrides(
    *, greedy: bool, temperature: float | None, stop: list[str] | None, **others: Any
) -> dict[str, Any]:
    """Overrides for `LanguageModel.generate`, checked before a model is loaded.

    Args:
        greedy: `--greedy`.
        temperature: `--temperature`.
        stop: `--stop`; an empty list is none.
        **others: options that are already named as `GenerationOptions` names them.

    Raises:
        typer.BadParameter: two options contradict each other.
        GenerationError: a value is out of range.
    """
    from lfm2_deploy.options import GenerationOptions

    if greedy and temperature:
        raise typer.BadParameter("--greedy and --temperature contradict each other: choose one")
    overrides = {
        "temperature": 0.0 if greedy else temperature,
        "stop": stop or None,
        **others,
    }
    GenerationOptions().with_overrides(**overrides)
    return overrides


def load_model(bundle: Path, threads: int | None) -> LanguageModel:
    """Load a bundle, with a sign of life while it takes long."""
    with show_progress() as progress:
        progress("loading", 0, 0)
        from lfm2_deploy.api import load

        return load(bundle, threads=threads)


def fit_length(model: LanguageModel, prompts: Sequence[Prompt], asked: int | None) -> int:
    """How many tokens to generate where the user may have left it open.

    Args:
        model: its generation_config.json comes before this package's own default.
        prompts: as `LanguageModel.encode_prompt` takes them.
        asked: `--max-new-tokens`, which is never changed: if it does not fit, generating
            says so.
    """
    if asked is not None:
        return asked
    longest = max(len(model.encode_prompt(prompt)) for prompt in prompts)
    room = model.runtime.context_length - longest
    return max(1, min(model.defaults.max_new_tokens or _DEFAULT_LENGTH, room))
