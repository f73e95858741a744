"""What the engine's loop does at each step: read a little, then one forward for all rows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence

import torch
from torch import Tensor

from agentkit.adapters.heads import SpanLabelHead
from agentkit.engine.activation import Slots
from agentkit.engine.answers import Scoring, chosen, labelled, probed
from agentkit.engine.backbone import Backbone
from agentkit.engine.forward import hidden_states, logits
from agentkit.engine.generation import Writing, writing
from agentkit.engine.job import Job, as_ours
from agentkit.engine.pending import Entry, Opening, Wanted
from agentkit.engine.prefix import PrefixCache, PrefixStates
from agentkit.engine.reading import CHUNK, WHOLE, Reader, scope
from agentkit.engine.scheduler import TreeKey
from agentkit.engine.tree import Stem, Tree
from agentkit.errors import AgentkitError, EngineError
from agentkit.types import Reading

_BRIEF = 128
"""Tokens up to which a stem is computed together with its first question. By itself it would take
a forward of its own, over a copy of all that the prefix holds: longer than it saves when the next
document's questions need it again."""


class Runner:
    """Stateful: owns the activation, the prefix cache and the rows; for the engine's loop alone.

    Rows of any skills are written together: each step is one forward over the next token of each,
    and over all tokens of those that join.
    """

    def __init__(
        self,
        backbone: Backbone,
        slots: Slots,
        prefixes: PrefixCache,
        stopping: Callable[[], bool],
        lowest_layers: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self._backbone = backbone
        self._slots = slots
        self._prefixes = prefixes
        self._reader = Reader(backbone, slots, prefixes, lowest_layers)
        self._stopping = stopping
        self._trees: dict[TreeKey, Tree] = {}
        self._openings: list[Opening] = []
        self._ready: list[Entry] = []
        self._writing: list[Writing] = []

    @property
    def idle(self) -> bool:
        """Whether no job is being computed."""
        return not (self._writing or self._openings)

    @property
    def rows(self) -> int:
        """Jobs that are being written, or will be once their prefix is read."""
        opening = (job for opening in self._openings for job in opening.jobs)
        return len(self._writing) + sum(not job.waiting.brief for job in opening)

    @property
    def opened(self) -> frozenset[TreeKey]:
        """Trees that rows may join at once."""
        return frozenset(self._trees)

    @property
    def reading(self) -> bool:
        """Whether a prefix is being read."""
        return bool(self._openings)

    def uses(self, slot: int) -> bool:
        """Whether a job that is being computed needs a slot."""
        jobs = [row.job for row in self._writing]
        jobs += [job for opening in self._openings for job in opening.jobs]
        return any(job.slot == slot for job in jobs)

    def admit(self, jobs: Iterable[Job]) -> None:
        """Take jobs in; the futures of all will be settled by the steps that follow."""
        groups: dict[TreeKey, list[Job]] = defaultdict(list)
        for job in jobs:
            groups[job.key].append(job)
        for group in groups.values():
            self._openings.append(Opening(group, self._open(group)))

    def step(self) -> None:
        """Read one chunk of a prefix, if one is wanted, and write one token of each row."""
        with torch.inference_mode():
            try:
                for opening in list(self._openings):
                    self._advance(opening)
                self._read_heads()
                self._write()
                self._tidy()
            except BaseException as error:  # noqa: BLE001 -- nothing may wait for what will not come
                self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        """Fail all that is being computed, and begin anew with what comes next."""
        jobs = [job for opening in self._openings for job in opening.jobs]
        jobs += [row.job for row in self._writing] + [entry.job for entry in self._ready]
        for opening in self._openings:
            opening.work.close()
        self._trees, self._openings, self._ready, self._writing = {}, [], [], []
        for job in jobs:
            if not job.future.done():
                job.fail(as_ours(error))

    def _tidy(self) -> None:
        """Compact the trees that are in use; of the others keep the last one whose prefix is kept.

        Its next question then takes no copy of the prefix, and finds nothing else there: what it
        is answered depends on none before it, to the last bit.
        """
        idle = [tree for tree in self._trees.values() if not tree.rows]
        for tree in idle:
            if tree is idle[-1] and not self._openings and self._prefixes.holds(tree.root):
                tree.clear()
            else:
                del self._trees[tree.key]
        for tree in self._trees.values():
            tree.packed.compact()

    # ------------------------------------------------------------ prefixes

    def _advance(self, opening: Opening) -> None:
        try:
            if self._stopping():
                raise EngineError("the engine was closed while it was answering")
            if not all(job.withdrawn for job in opening.jobs):
                next(opening.work)
                return
            opening.work.close()
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 -- it is raised where the futures are waited for
            for job in opening.jobs:
                if not job.future.done():
                    job.fail(as_ours(error))
        self._openings.remove(opening)

    def _open(self, jobs: Sequence[Job]) -> Generator[None, None, None]:
        """Read what the jobs of one tree share; then they are ready, or done if that was all."""
        labels = [job for job in jobs if job.kind == "read" and _labels(job)]
        if labels:
            first = labels[0]
            prefix, hit = yield from self._prefix(first, keys_values=False)
            for index, job in enumerate(labels):
                cached = len(job.key.prefix) if hit or index else 0
                job.finish(labelled(job, _hidden(prefix, self._backbone), cached))
        rows = [job for job in jobs if job not in labels]
        if not rows:
            return
        known = True
        tree = self._trees.get(rows[0].key)
        if tree is None:
            root, known = yield from self._prefix(rows[0])
            room = sum(job.waiting.tokens + job.stem + job.max_tokens for job in rows)
            tree = self._trees[rows[0].key] = Tree(rows[0].key, root, room)
        tree.rows += len(rows)
        left = len(rows)
        try:
            for index, job in enumerate(rows):
                cached = len(job.key.prefix) if known or index else 0
                cached += yield from self._stem(job, tree)
                self._ready.append(Entry(job, tree, cached))
                left -= 1
        finally:
            tree.rows -= left

    @property
    def _chunk(self) -> int:
        return CHUNK if self._writing else WHOLE

    def _prefix(
        self, job: Job, *, keys_values: bool = True
    ) -> Generator[None, None, tuple[PrefixStates | None, bool]]:
        """The states of a job's prefix, and whether they were there."""
        ids = job.key.prefix
        if not ids:
            return self._reader.virtual(job.skill), True
        states = self._reader.known(job.skill, ids, keys_values=keys_values)
        if states is not None:
            return states, True
        states = yield from self._reader.read(
            job.skill, ids, keys_values=keys_values, chunk=self._chunk
        )
        return states, False

    def _stem(self, job: Job, tree: Tree) -> Generator[None, None, int]:
        """Bring a job's stem into its tree; how many of its tokens were computed before."""
        if not job.stem:
            return 0
        stem = _stem_of(job)
        if tree.expects(stem):
            return job.stem
        ids, start = stem[1], len(job.key.prefix)
        states = self._reader.known(job.skill, ids, start=start)
        known = states is not None
        if states is None:
            if job.stem <= _BRIEF and job.branch_length and job.kind != "read":
                tree.expect(stem)
                return 0
            states = yield from self._reader.read(
                job.skill, ids, start=start, parent=tree.root, chunk=self._chunk
            )
        if tree.failed is not None:  # while the stem was read
            raise tree.failed
        tree.adopt(stem, states)
        return job.stem if known else 0

    def _fork(self, entry: Entry) -> int:
        job = entry.job
        return entry.tree.fork(_stem_of(job), None if scope(job.skill) is None else job.slot)

    # ------------------------------------------------------------ task heads

    def _read_heads(self) -> None:
        groups: dict[TreeKey, list[Entry]] = defaultdict(list)
        for entry in self._ready:
            if entry.job.kind == "read":
                groups[entry.job.key].append(entry)
        self._ready = [entry for entry in self._ready if entry.job.kind != "read"]
        for entries in groups.values():
            tree = entries[0].tree
            try:
                self._read_tree(tree, entries)
            except BaseException as error:  # noqa: BLE001 -- it is raised where the futures are waited for
                self._fail(tree, error, [entry.job for entry in entries])

    def _read_tree(self, tree: Tree, entries: Sequence[Entry]) -> None:
        document = _hidden(tree.root, self._backbone)
        ends = []
        rows = []
        for entry in entries:
            rows.append(self._fork(entry))
            # A question without words of its own is read where the stem ends.
            asked = entry.job.branch_length
            ends.append(tree.packed.append(rows[-1], *entry.job.branch) if asked else -1)
        grown = document
        probes = {entry.job.probe.reads for entry in entries if entry.job.probe}
        with self._backbone.keeping(probes) as below:
            if tree.packed.ids:
                grown = hidden_states(self._backbone, self._slots, tree.packed)
        for entry, row, end in zip(entries, rows, ends, strict=True):
            own = slice(end - entry.job.branch_length + 1, end + 1)
            if entry.job.probe:
                lower = below[entry.job.probe.reads][own]
                completion = probed(entry.job, lower, entry.cached)
            else:
                question = grown[own] if entry.job.branch_length else self._last_state(entry)
                completion = chosen(entry.job, document, question, entry.cached)
            if entry.job.narrowed is None:
                entry.job.finish(completion)
            else:
                self._begin_chosen(entry, row, completion.reading)
            if entry.job.future.done():
                tree.packed.end(row)
                tree.rows -= 1

    def _begin_chosen(self, entry: Entry, row: int, reading: Reading | None) -> None:
        """Have a job written in the row that it was read in, now that its head has chosen."""
        job = entry.job
        try:
            if job.narrowed is None or reading is None or reading.choices is None:
                raise EngineError("no head has chosen what is to be written")
            job.reading = reading
            job.constraint = job.narrowed(int(reading.choices.argmax()))
        except AgentkitError as error:
            job.fail(error)
            return
        one = writing(job, entry.tree, row, self._backbone, entry.cached)
        one.begin()
        if not job.future.done():
            self._writing.append(one)

    def _last_state(self, entry: Entry) -> Tensor:
        job = entry.job
        if not job.stem:
            return _hidden(entry.tree.root, self._backbone)[-1:]
        stem = self._reader.known(
            job.skill, job.request.prompt.ids[: job.stem_end], start=len(job.key.prefix)
        )
        if stem is None:
            raise EngineError(
                "a prompt without a question was dropped from the prefix cache",
                hint="raise prefix_cache_bytes",
            )
        return stem.hidden[-1:]

    # ------------------------------------------------------------ writing and scoring

    def _write(self) -> None:
        wanted: dict[Tree, Wanted] = defaultdict(Wanted)
        going: list[Writing] = []
        # Rows of one skill side by side are adapted by one product.
        for one in sorted(self._writing, key=lambda one: one.job.slot or 0):
            if self._interrupted(one.job):
                one.end()
                one.tree.rows -= 1
            else:
                going.append(one)
                at = [
                    one.tree.packed.append(row, (one.job.slot, tokens))
                    for row, tokens in one.waiting
                ]
                wanted[one.tree].add(at, one.take, one.job)
        for entry in self._ready:
            if self._interrupted(entry.job):
                entry.tree.rows -= 1
                continue
            number = self._fork(entry)
            if entry.job.kind == "score":
                scoring = Scoring(entry.job, entry.tree.packed, number, entry.cached)
                wanted[entry.tree].add(scoring.at, scoring.take, entry.job)
                entry.tree.rows -= 1
            else:
                one = writing(entry.job, entry.tree, number, self._backbone, entry.cached)
                going.append(one)
                begun = (entry.job.slot, one.begin())
                if entry.job.future.done():  # its schema leaves no choice at all
                    continue
                last = entry.tree.packed.append(number, *entry.job.branch, begun)
                wanted[entry.tree].add([last], one.take, entry.job)
        self._ready, self._writing = [], going
        reading = {opening.jobs[0].key for opening in self._openings}
        for tree in self._trees.values():
            # A stem that only an answer without a choice needed, in a tree that takes in another.
            if tree.packed.ids and tree not in wanted and tree.key in reading:
                wanted[tree].at.append(len(tree.packed.ids) - 1)
        if wanted:
            self._compute(wanted)
        for one in self._writing:
            if one.job.future.done():
                one.end()
                one.tree.rows -= 1
        self._writing = [one for one in self._writing if not one.job.future.done()]

    def _compute(self, wanted: dict[Tree, Wanted]) -> None:
        try:
            found = logits(
                self._backbone,
                self._slots,
                [tree.packed for tree in wanted],
                [one.at for one in wanted.values()],
            )
        except BaseException as error:  # noqa: BLE001 -- it is raised where the futures are waited for
            for tree, one in wanted.items():
                self._fail(tree, error, one.jobs)
            return
        for one, rows in zip(wanted.values(), found, strict=True):
            one.give(rows)

    def _interrupted(self, job: Job) -> bool:
        if self._stopping():
            job.fail(EngineError("the engine was closed while it was answering"))
        return job.future.done()

    def _fail(self, tree: Tree, error: BaseException, jobs: Sequence[Job]) -> None:
        """Fail what depends on a tree whose computation broke off, and give the tree up."""
        tree.failed = error
        rows = [row.job for row in self._writing if row.tree is tree]
        ready = [entry.job for entry in self._ready if entry.tree is tree]
        self._ready = [entry for entry in self._ready if entry.tree is not tree]
        for job in (*jobs, *rows, *ready):
            if not job.future.done():
                job.fail(as_ours(error))  # wrapped for each: who waits may note its own place
        if self._trees.get(tree.key) is tree:
            del self._trees[tree.key]


def _stem_of(job: Job) -> Stem:
    return scope(job.skill), job.request.prompt.ids[: job.stem_end] if job.stem else ()


def _labels(job: Job) -> bool:
    return job.skill is not None and isinstance(job.skill.head, SpanLabelHead)


def _hidden(prefix: PrefixStates | None, backbone: Backbone) -> Tensor:
    if prefix is None:
        return torch.zeros(0, backbone.hidden, device=backbone.device, dtype=backbone.dtype)
    return prefix.hidden
