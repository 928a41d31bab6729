"""The face of the store: models by name, for programs."""

from __future__ import annotations

from pathlib import Path

from lfm2_deploy.contracts import Progress, ignore_progress
from lfm2_deploy.errors import UnknownModelError
from lfm2_deploy.store import resolve, shelf
from lfm2_deploy.store.place import find_store
from lfm2_deploy.store.pull import Wanted
from lfm2_deploy.store.pull import pull as pull_model
from lfm2_deploy.store.shelf import StoredModel


class ModelStore:
    """Models on this machine, by name.

        store = lfm2_deploy.ModelStore()
        model = store.pull("LiquidAI/LFM2-350M")
        answer = lfm2_deploy.load(model.name).generate("Once upon a time")

    Any number of threads and processes may use one store at once: a model that somebody reads is
    whole, and nobody removes it meanwhile.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        """Use a folder, which need not exist.

        Args:
            root: None for the user's: what LFM2_DEPLOY_STORE says, or among the user's data. Names
                of models in another one are not known to `load`: give it `model.path`.
        """
        self.root = find_store() if root is None else Path(root).expanduser().absolute()

    def pull(
        self,
        model: str,
        *,
        name: str | None = None,
        target: str | None = None,
        precision: str | None = None,
        revision: str | None = None,
        part: str | None = None,
        overwrite: bool = False,
        progress: Progress = ignore_progress,
    ) -> StoredModel:
        """Have a model in the store; one that an equal call has brought is not fetched again.

        A checkpoint is exported, which needs the extra `export`; a bundle is downloaded or copied.
        What an interrupted call has done is kept, and the same call goes on with it. Where another
        process pulls the same name, this one waits for it.

        Args:
            model: a Hub id, of a checkpoint or a bundle, the folder of either, "synthetic:NAME"
                for random weights, or "demo" for the model that comes with this package.
            name: what to call it; None for such as "LFM2-350M-cpu-int4".
            target, precision: as `export` takes them; None for "cpu" and "int4", or for those of
                a bundle.
            revision: branch, tag or commit of a Hub repository.
            part: "text" for the text part of a vision or audio model.
            overwrite: replace a model of that name.
            progress: told of each step.

        Raises:
            StoreError: the name is taken by another model, or the store cannot be used.
            SourceError: the model is not found or cannot be reached.
            DiskFullError: there is no room; what is done is kept.
            Lfm2DeployError: as `export` raises it.
        """
        wanted = Wanted(model, name, target, precision, revision, overwrite, part)
        return self.get(pull_model(self.root, wanted, progress)[0])

    def list(self) -> tuple[StoredModel, ...]:
        """All models, damaged ones too, by name.

        Raises:
            StoreError: the store cannot be read.
        """
        return tuple(shelf.describe(self.root, name) for name in shelf.list_names(self.root))

    def list_unfinished(self) -> tuple[str, ...]:
        """Names whose pulls were begun and have not ended.

        The same pull goes on; `remove` with `unfinished` discards what is there.
        """
        return tuple(shelf.list_unfinished(self.root))

    def get(self, name: str) -> StoredModel:
        """What is known of a model.

        Raises:
            UnknownModelError: there is none.
        """
        if not shelf.has_model(self.root, name):
            raise resolve.explain_unknown(name, self.root)
        return shelf.describe(self.root, name)

    def resolve(self, bundle: str | Path) -> Path:
        """The folder of a bundle that is named by its path or its name here.

        Raises:
            UnknownModelError: it is neither a folder nor a model.
        """
        return resolve.resolve(bundle, self.root)

    def check(self, name: str, progress: Progress = ignore_progress) -> StoredModel:
        """Hash all files of a model, whatever is remembered of them.

        Args:
            name: the model's.
            progress: told of the bytes done.

        Returns:
            What is known of it then; its `fault` is "" where all is as it was written.

        Raises:
            UnknownModelError: there is none.
        """
        self.get(name)
        return shelf.verify(self.root, name, progress)

    def remove(self, name: str, *, unfinished: bool = False) -> int:
        """Remove a model, and what an unfinished pull has of it.

        Args:
            name: the model's, or that of a pull that has not ended.
            unfinished: only what the pull has; a model of that name stays.

        Returns:
            Bytes of its files.

        Raises:
            UnknownModelError: there is none.
            StoreError: a process has it loaded or pulls it, or the store cannot be written; then
                all is as it was.
        """
        self.require_removable(name, unfinished=unfinished)
        return (shelf.discard if unfinished else shelf.remove)(self.root, name)

    def require_removable(self, name: str, *, unfinished: bool = False) -> None:
        """See that there is something for `remove` of these arguments.

        Raises:
            UnknownModelError: there is nothing.
        """
        if name in self.list_unfinished():
            return
        is_there = shelf.has_model(self.root, name)
        if unfinished and is_there:
            raise UnknownModelError(f"{name} has no unfinished pull: there is nothing to discard")
        if not is_there:
            raise resolve.explain_unknown(name, self.root, to_have=False)
