"""`lfm2-deploy serve`: a model behind OpenAI-compatible endpoints, with a page to chat in."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lfm2_deploy.commands import completers, options
from lfm2_deploy.commands.console import note, show_progress
from lfm2_deploy.commands.sizes import parse_size
from lfm2_deploy.errors import Lfm2DeployError

if TYPE_CHECKING:
    from lfm2_deploy.bundle import Bundle
    from lfm2_deploy.server.host import Host
    from lfm2_deploy.server.hub import Hub
    from lfm2_deploy.server.settings import Settings
    from lfm2_deploy.serving.engine import Engine, EngineLimits

KEY_VARIABLE = "LFM2_DEPLOY_API_KEY"
_WHO = "Who may come in"
_HOW_MUCH = "How much"


def serve(
    bundle: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE",
            help="The folder that `export` made, or the name of a model in the store; with "
            "--target, also a model to export: a Hub id, a checkpoint's folder, synthetic:NAME.",
            autocompletion=completers.complete_bundles,
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="auto: what this computer runs. A model is exported for it into the store, once; "
            "a bundle must be for it.",
            show_default="the bundle's",
            autocompletion=completers.complete_targets_or_auto,
        ),
    ] = None,
    precision: Annotated[
        options.Precision | None,
        typer.Option(metavar="NAME", help="Of a model that is exported.", show_default="int4"),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; others need a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, metavar="N", help="0 for any that is free.")
    ] = 8080,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What requests call the model; several times for several.",
            show_default="the model's own",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Keys that let clients in, one a line; or the variable {KEY_VARIABLE}.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY",
            help="A key, for trying out: every program here can read command lines.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    without_key: Annotated[
        bool,
        typer.Option(
            "--without-key",
            help="Let everybody in who reaches an address that is not loopback.",
            rich_help_panel=_WHO,
        ),
    ] = False,
    origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Web pages that may call, such as http://localhost:3000; * for all.",
            rich_help_panel=_WHO,
        ),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            metavar="NAME",
            help="A name that this computer is reached by; * for any.",
            show_default="loopback's names",
            rich_help_panel=_WHO,
        ),
    ] = None,
    max_running: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Answers at once.", rich_help_panel=_HOW_MUCH),
    ] = 4,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Answers that wait; further ones are refused.",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = 32,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Most tokens of an answer.",
            show_default="what fits the context",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = None,
    max_body: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Largest request.", rich_help_panel=_HOW_MUCH),
    ] = "2MB",
    timeout: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="Longest time for an answer, waiting included.",
            show_default="no limit",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = None,
    grace: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="For running answers when the server is to end.",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = 30.0,
    kept: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Conversations that are kept in memory for what follows them.",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = 4,
    exact_rows: Annotated[
        bool,
        typer.Option(
            "--exact-rows",
            help="Compute answers that run at once one after the other: slower, and none changes "
            "another one's last bits.",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = False,
    idle_unload: Annotated[
        float | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            help="Free the model's memory after so long without a request.",
            show_default="never",
            rich_help_panel=_HOW_MUCH,
        ),
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Serve the chat page.")] = True,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the chat page in a browser.")
    ] = False,
    log: Annotated[
        Literal["text", "json", "off"],
        typer.Option(
            metavar="STYLE", help="A line a request on stderr, without contents: text, json, off."
        ),
    ] = "text",
    threads: options.Threads = None,
    device: options.Device = None,
    canary: options.Canary = None,
) -> None:
    """Serve a model to other programs, as OpenAI's API.

    The first line on stdout is the address. Ctrl-C lets running answers end, a second
    Ctrl-C does not.

    \b
    Examples:
      lfm2-deploy serve ./LFM2-350M-cpu-int4 --open
      lfm2-deploy serve LiquidAI/LFM2-350M --target auto
      lfm2-deploy serve ./LFM2-350M-cpu-int4 --host 0.0.0.0 --api-key-file keys.txt

    \b
    See also:
      lfm2-deploy pull MODEL          bring a model into the store
      lfm2-deploy chat BUNDLE         talk with it in the terminal
      lfm2-deploy generate BUNDLE     one answer, for scripts
    """
    from lfm2_deploy.commands.served_bundle import find_served
    from lfm2_deploy.registry import SERVER

    SERVER.require()  # at once, and not after a long export
    keys = read_keys(api_key_file, api_key)
    check_reach(host, keys, without_key)
    found = find_served(bundle, target, precision)
    from lfm2_deploy.server.settings import Settings
    from lfm2_deploy.serving.engine import EngineLimits

    settings = Settings(
        names=tuple(names or list_names(bundle, found)),
        host=host,
        api_keys=keys,
        origins=tuple(origins or ()),
        hosts=tuple(hosts or ()),
        max_body_bytes=parse_size(max_body, "2MB"),
        max_tokens=max_tokens,
        request_seconds=timeout,
        serves_page=page,
        access_log=log,
    )
    limits = EngineLimits(
        running=max_running,
        waiting=max_waiting,
        kept=kept,
        idle_seconds=idle_unload,
        exact_rows=exact_rows,
    )
    loading = {"device": device, "threads": threads, "canary": canary}
    _run(found, settings, limits, loading, port, grace, open_page)


def read_keys(file: Path | None, given: Sequence[str] | None) -> tuple[str, ...]:
    """All keys: of the file, of the environment, of the command line.

    Raises:
        Lfm2DeployError: the file holds none, or one that no header can carry.
    """
    keys = [*(given or ())]
    if given:
        note("a key on the command line can be read by every program here: use --api-key-file")
    if os.environ.get(KEY_VARIABLE):
        keys.append(os.environ[KEY_VARIABLE])
    if file is not None:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
        of_file = [line for line in lines if line and not line.startswith("#")]
        if not of_file:
            raise Lfm2DeployError(f"{file} holds no key: write one a line")
        keys += of_file
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or not key:
            raise Lfm2DeployError(
                "a key holds spaces or characters outside of ASCII, which no header can carry: "
                "choose another"
            )
    return tuple(dict.fromkeys(keys))


def check_reach(host: str, keys: Sequence[str], without_key: bool) -> None:
    """Refuse to let everybody in by accident.

    Raises:
        Lfm2DeployError: other computers could come in, and nobody asks them for a key.
    """
    from lfm2_deploy.server.security import is_loopback

    if not is_loopback(host) and not keys and not without_key:
        raise Lfm2DeployError(
            f"at {host} other computers may come in, and there is no key: add --api-key-file "
            "FILE, or --without-key to let everybody in"
        )


def list_names(given: str, bundle: Bundle) -> list[str]:
    """What a model is called: as it calls itself, by its folder, and as it was asked for."""
    from lfm2_deploy.store.resolve import list_asked

    told = [] if Path(given).expanduser().exists() else [given]
    names = [bundle.manifest.model, bundle.path.name, *told, *list_asked(bundle.path)]
    return list(dict.fromkeys(name for name in names if name))


def _run(
    bundle: Bundle,
    settings: Settings,
    limits: EngineLimits,
    loading: dict[str, Any],
    port: int,
    grace: float,
    opens_page: bool,
) -> None:
    from lfm2_deploy.server.app import make_app
    from lfm2_deploy.server.host import Host, listen, make_url
    from lfm2_deploy.store.locks import hold_model

    hold = hold_model(bundle.path)  # while it is unloaded, too: it could not be loaded again
    listener = listen(settings.host, port)
    app = make_app(None, settings)
    host = Host(app, grace_seconds=grace, at_signal=lambda count: _tell_end(count, grace))
    url = make_url(settings.host, listener)
    loader = _Loader(bundle, limits, loading, app.state.hub, host)
    loader.at_ready = lambda: _tell_ready(url, settings, opens_page)
    try:
        host.run_on(listener, lambda _: loader.start())
    finally:
        if host.was_forced:
            # Threads may be in the middle of a long prompt, and Python would wait for them.
            sys.stdout.flush()
            os._exit(0)
        loader.close()
        hold.release()
    if loader.error is not None:
        raise loader.error


def _tell_end(count: int, grace: float) -> None:
    """Say what a first Ctrl-C waits for."""
    if count:
        run = "1 answer runs" if count == 1 else f"{count} answers run"
        note(f"ending: {run}, up to {grace:g} s; Ctrl-C again ends at once")


def _tell_ready(url: str, settings: Settings, opens_page: bool) -> None:
    from lfm2_deploy.server.host import find_lan_address
    from lfm2_deploy.server.page import has_page

    shows_page = settings.serves_page and has_page()
    page = f"chat at {url}/, " if shows_page else ""
    print(f"ready: {page}API at {url}/v1 (model {settings.names[0]})", flush=True)
    address = find_lan_address() if settings.host == "0.0.0.0" else ""
    if address:
        there = f"http://{address}:{url.rpartition(':')[2]}"
        by_name = "" if settings.hosts else ", and by a name only with --allow-host NAME"
        note(f"other computers reach it at {there}{by_name}")
    if opens_page and shows_page:
        webbrowser.open(url)


class _Loader:
    """Loads the model beside the server, which tells meanwhile that it does."""

    def __init__(
        self, bundle: Bundle, limits: EngineLimits, loading: dict[str, Any], hub: Hub, host: Host
    ) -> None:
        self._bundle, self._limits, self._loading = bundle, limits, loading
        self._hub, self._host = hub, host
        self._engine: Engine | None = None
        self.error: Exception | None = None
        self.at_ready: Callable[[], None] = lambda: None

    def start(self) -> None:
        threading.Thread(target=self._load, name="lfm2-load", daemon=True).start()

    def _load(self) -> None:
        try:
            self._engine = self._make()
            self._hub.open(self._engine, self._bundle.manifest.precision)
            for remark in self._hub.facts.notes:
                note(remark)
            self.at_ready()
        except Exception as error:
            self.error = error
            self._host.stop()

    def _make(self) -> Engine:
        from lfm2_deploy.serving.engine import Engine

        with show_progress() as progress, options.name_own_option():
            return Engine.load(
                self._bundle,
                limits=self._limits,
                progress=lambda at: progress(at.stage, at.done, at.total) if at.total else None,
                **self._loading,
            )

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
