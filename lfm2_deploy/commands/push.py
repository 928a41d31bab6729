"""`lfm2-deploy push`: a bundle goes up to the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lfm2_deploy.commands.console import (
    format_bytes,
    note,
    output,
    print_json,
    print_table,
    print_title,
    show_progress,
)
from lfm2_deploy.commands.options import AsJson, BundlePath

if TYPE_CHECKING:
    from lfm2_deploy.publish.push import Pushed


def push(
    bundle: BundlePath,
    repository: Annotated[
        str, typer.Argument(metavar="USER/REPO", help="Where to; made where it is not there.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private, where it is made.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            metavar="BRANCH",
            help="Upload to this branch; made where it is not there.",
            show_default="the default one",
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="The commit's message.", show_default="model and precision"
        ),
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="As a pull request, for the owner to merge.")
    ] = False,
    beside_others: Annotated[
        bool,
        typer.Option(
            "--beside-others", help="Into a repository that holds other files; they stay."
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only list what would go up; needs no network and no token."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a bundle to the Hugging Face Hub, with its model card.

    Every file is hashed first, and all go up in one commit: nobody sees half a bundle.
    When an upload breaks off, the same command goes on, and what was sent is not sent
    again. Whoever runs `pull USER/REPO` gets the very same bytes. A token that may
    write is needed: `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      lfm2-deploy push ./LFM2-350M-cpu-int4 somebody/LFM2-350M-cpu-int4 --dry-run
      lfm2-deploy push ./LFM2-350M-cpu-int4 somebody/LFM2-350M-cpu-int4 --private

    \b
    See also:
      lfm2-deploy card BUNDLE         the model card that goes up
      lfm2-deploy pull USER/REPO      get it elsewhere
    """
    with show_progress() as progress:
        progress("starting", 0, 0)
        from lfm2_deploy.publish.push import push as run

        pushed = run(
            bundle,
            repository,
            private=private,
            revision=revision,
            message=message,
            create_pr=create_pr,
            beside_others=beside_others,
            dry_run=dry_run,
            progress=progress,
        )
    if as_json:
        print_json(_describe(pushed))
    else:
        _print(pushed)
        for warning in pushed.plan.warnings:
            note(f"note: {warning}")
    if not as_json and dry_run:
        note("nothing was uploaded: leave --dry-run out")


def _describe(pushed: Pushed) -> dict[str, Any]:
    plan = pushed.plan
    return {
        "repository": plan.repository,
        "url": pushed.url,
        "size_bytes": plan.size_bytes,
        "files": {file.name: file.size_bytes for file in plan.files},
        "warnings": list(plan.warnings),
    }


def _print(pushed: Pushed) -> None:
    plan = pushed.plan
    done = "pushed" if pushed.url else "would be pushed"
    print_title(
        plan.repository, f"{done}: {len(plan.files)} files, {format_bytes(plan.size_bytes)}"
    )
    print_table(
        ("file", ">size"), [(file.name, format_bytes(file.size_bytes)) for file in plan.files]
    )
    if pushed.url:
        output().print(pushed.url, soft_wrap=True)
