"""Everything put together: settings and folders in, runners and runs out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload
from weakref import WeakSet

from agentkit import models
from agentkit.errors import InputError
from agentkit.retrieval.loaders import load_document
from agentkit.retrieval.playbook import load_playbook
from agentkit.retrieval.store import FileDocumentStore
from agentkit.settings import Settings
from agentkit.skill.folder import Skill
from agentkit.skill.names import split_version
from agentkit.skill.registry import Registry, default_folders
from agentkit.skill.release import ReleaseFile, Served, find, served
from agentkit.skill.store import SkillStore
from agentkit.types import Document, Json
from agentkit.workflow.spec import WorkflowSpec

if TYPE_CHECKING:
    from agentkit.engine.engine import Engine
    from agentkit.retrieval.rerank import Reranker
    from agentkit.retrieval.retriever import Retriever
    from agentkit.routing.controller import Controller, SkillText
    from agentkit.routing.encoder import SentenceEncoder
    from agentkit.routing.learning import Learnt
    from agentkit.step import Runner
    from agentkit.workflow.compile import CompiledWorkflow
    from agentkit.workflow.inputs import Reader
    from agentkit.workflow.store import RunStore


_logger = logging.getLogger(__name__)
_Value = TypeVar("_Value")


class _part(cached_property[_Value]):  # noqa: N801 -- used as a decorator
    """A part of a kit, made when it is first asked for: once, whichever threads ask."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> _Value: ...

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        with instance._making:
            return super().__get__(instance, owner)


class Kit:
    """Stateful: one backbone, one encoder and the skill folders, for as long as it is open.

    The parts are made when they are first needed. Safe for threads.

    ```python
    with Kit() as kit:
        outcome = kit.compile(spec).run({"document": Path("contract.pdf")})
    ```
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        skills: Sequence[Path] = (),
        watch: bool = False,
        progress: models.Progress | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.documents = FileDocumentStore(self.settings.documents_dir)
        self._skill_folders = default_folders(skills)
        self._watch = watch
        self._progress = progress
        self._making = threading.RLock()
        self._runners: WeakSet[Runner] = WeakSet()

    def __enter__(self) -> Kit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine's and the registry's threads and close the run database."""
        with self._making:
            parts = [self.__dict__.pop(name, None) for name in ("engine", "registry", "runs")]
        for part in parts:
            if part is not None:
                part.close()

    def cancel(self) -> None:
        """End the runs under way, from any thread or a signal handler.

        Steps end with `CancelledError`, of which nothing is recorded, so the runs can be resumed.
        Workflows that were compiled before take no calls from then on.
        """
        for runner in tuple(self._runners):
            runner.cancel()

    # ------------------------------------------------------------ parts

    @_part
    def store(self) -> SkillStore:
        """Content-addressed copies: what is served."""
        return SkillStore(self.settings.store_dir)

    @_part
    def registry(self) -> Registry:
        """The skill folders; followed while the kit is open if it was made with `watch`."""
        from agentkit.adapters.weights import check_adapter

        registry = Registry(self._skill_folders, self.store, check=check_adapter)
        if self._watch:
            registry.watch()
        return registry

    @_part
    def encoder(self) -> SentenceEncoder:
        """The encoder that routing and retrieval share; fetched if need be."""
        from agentkit.routing.encoder import SentenceEncoder

        folder = models.resolve(self.settings.encoder, self.settings, "encoder", self._progress)
        return SentenceEncoder(folder, kept=self.settings.vectors_db)

    @_part
    def engine(self) -> Engine:
        """The backbone with its loop; fetched if need be."""
        from agentkit.engine.engine import Engine

        return Engine.open(self.settings, self._progress)

    @_part
    def retriever(self) -> Retriever:
        """Search in documents and standing indexes."""
        from agentkit.retrieval.retriever import Retriever

        return Retriever(
            self.encoder, self.settings, self.documents, reranker=self._skill_reranker()
        )

    def _skill_reranker(self) -> Reranker | None:
        """The skill that the settings name as the reranker, if they name one."""
        from agentkit.retrieval.rerankers import SKILL

        if not self.settings.reranker.startswith(SKILL):
            return None
        from agentkit.engine.rerank import SkillReranker

        name = self.settings.reranker.removeprefix(SKILL)
        if name not in self.skills:
            raise InputError(
                f"there is no skill {name!r} to rerank with",
                where="reranker",
                hint=f"installed: {', '.join(sorted(self.skills)) or 'none'}",
            )
        return SkillReranker(self.engine, self.skills[name])

    @_part
    def runs(self) -> RunStore:
        """The database of runs."""
        from agentkit.workflow.store import RunStore

        self.settings.runs_db.parent.mkdir(parents=True, exist_ok=True)
        return RunStore(self.settings.runs_db)

    # ------------------------------------------------------------ skills

    @property
    def skills(self) -> Mapping[str, Skill]:
        """The skills served now, by name: of each the version that is stable."""
        return served(self.registry.snapshot, self.releases.read()).skills

    @property
    def releases(self) -> ReleaseFile:
        """Which version of a skill serves which share of the runs."""
        return ReleaseFile(self.settings.releases_file)

    def named(self, name: str) -> Skill:
        """The skill that is served as `NAME`, or the one in a folder `NAME@VERSION`.

        Raises `InputError` if there is none.
        """
        skills = self.skills
        if name in skills:
            return skills[name]
        if "@" in name:
            return self.find(name)
        raise InputError(f"there is no skill {name!r}", hint=f"installed: {', '.join(skills)}")

    def find(self, name: str) -> Skill:
        """The skill in a folder `NAME` (or, without one, what `NAME` is served by now) or
        `NAME@VERSION`. Raises `InputError` if there is none."""
        if name not in self.registry.snapshot.skills and name in (skills := self.skills):
            return skills[name]
        return find(self.registry.snapshot, name)

    def serve(self, run: str, inputs: Mapping[str, Json]) -> Served:
        """The skills of a run of that id over those (prepared) inputs, as the releases have it.

        Compile its workflow with their `digests`, and start it with these and their `versions`.
        """
        found = served(self.registry.snapshot, self.releases.read(), run=run, inputs=inputs)
        for note in found.notes:
            _logger.warning("%s", note)
        return found

    def skill_texts(self, skills: Mapping[str, Skill] | None = None) -> dict[str, SkillText]:
        """What the controller knows skills (those served now by default) by: each one's
        description and utterances, as its folder gives them."""
        return {
            name: (skill.manifest.description, skill.manifest.utterances)
            for name, skill in (self.skills if skills is None else skills).items()
        }

    @property
    def learnt(self) -> Learnt:
        """What people taught the controller. Raises `InputError` if its file is damaged."""
        from agentkit.routing.learning import load_learnt

        return load_learnt(self.settings.learnt_file)

    def controller(
        self, skills: Mapping[str, Skill] | None = None, *, as_of: str | None = None
    ) -> Controller:
        """A controller fitted to the given skills (those served now by default) and to what people
        taught it, or had taught it when the moment `as_of` (UTC, ISO 8601) came."""
        from agentkit.routing.learning import fit

        return fit(self.encoder, self.skill_texts(skills), self.learnt.until(as_of))

    def runner(
        self, digests: Mapping[str, str] | None = None, *, as_of: str | None = None
    ) -> Runner:
        """A runner with the skills served now, or (to resume) those of the given digests and the
        controller `as_of` the moment at which the run began.

        Raises `InputError` when a digest's copy is no longer there.
        """
        from agentkit.step import Runner

        skills = (
            dict(self.skills)
            if digests is None
            else {
                name: self.store.get(digest, split_version(name, name)[0])
                for name, digest in digests.items()
            }
        )
        runner = Runner(
            skills,
            engine=self.engine,
            controller=self.controller(skills, as_of=as_of),
            retriever=self.retriever,
            documents=self.documents,
            settings=self.settings,
        )
        self._runners.add(runner)
        return runner

    # ------------------------------------------------------------ workflows

    def compile(
        self,
        spec: WorkflowSpec,
        *,
        folder: Path | None = None,
        digests: Mapping[str, str] | None = None,
        as_of: str | None = None,
    ) -> CompiledWorkflow:
        """A workflow bound to this kit. Paths in its defaults count from `folder`.

        To resume a run, give its `skills` as `digests` and its `started` as `as_of`.

        Raises `WorkflowError` for a step that names a skill which is not there.
        """
        from agentkit.workflow.compile import compile_workflow
        from agentkit.workflow.program import validate

        validate(spec, tuple(self.skills if digests is None else digests))
        runner = self.runner(digests, as_of=as_of)
        return compile_workflow(
            spec,
            runner,
            self.documents,
            readers=self.readers(folder),
            skills={name: skill.digest for name, skill in runner.skills.items()},
            backbone=self.engine.fingerprint,
            encoder=self.encoder.digest,
        )

    def readers(self, folder: Path | None = None) -> dict[str, Reader]:
        """What turns a path given for an input of a type (`document`, `playbook`) into its value.

        A relative path counts from here, or else from `folder`.
        """
        return {
            "document": lambda place: self._document(place, folder),
            "playbook": lambda place: self._playbook(place, folder),
        }

    def read(self, path: Path) -> Document:
        """The document in a file, kept in the document store. Raises `DocumentError`."""
        document = load_document(path, settings=self.settings)
        self.documents.put(document)
        return document

    def _document(self, place: str | Path, folder: Path | None) -> Document:
        return self.read(_found(place, folder))

    @staticmethod
    def _playbook(place: str | Path, folder: Path | None) -> Json:
        return load_playbook(_found(place, folder)).to_json()


def _found(place: str | Path, folder: Path | None) -> Path:
    """A path as given from here, or else beside the workflow (where its defaults lie)."""
    path = Path(place)
    try:
        if not path.is_absolute() and folder is not None and not path.exists():
            beside = folder / path
            return beside if beside.exists() else path
    except (OSError, ValueError) as error:
        raise InputError("not a path", where=str(place)[:200]) from error
    return path
