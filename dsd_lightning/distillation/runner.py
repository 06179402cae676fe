"""Runs the stages from captions to shards, partition by partition; finished partitions are not run again."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from dsd_lightning.distillation.records import PASSING, DistillationError, NothingKept, Outcome, Stage, Usage
from dsd_lightning.distillation.stages import captions
from dsd_lightning.distillation.stages.grids import Teacher
from dsd_lightning.distillation.stages.shards import write_shards
from dsd_lightning.distillation.store import Manifest, Store, digest_of
from dsd_lightning.distillation.yields import captions_wanted
from dsd_lightning.files.atomic import write_text

log = logging.getLogger(__name__)

STAGES = ("filter", "prompts", "grids", "split", "verify", "caption")
"""What every partition goes through, after the captions and before the shards."""

ALL = (captions.NAME, *STAGES, "shards")


class Worker:
    """One process's share of a stage: builds it when the first partition comes, and runs partitions.

    Args:
        config: the run's configuration, as plain containers, so that it can be sent to another process.
        stage: which stage.
    """

    def __init__(self, config: Mapping[str, Any], stage: str) -> None:
        self.config = OmegaConf.create(dict(config))
        self.name = stage
        self.store = Store(self.config.out)
        self._stage: Stage | None = None

    @property
    def stage(self) -> Stage:
        """Return the stage, built when it is first needed."""
        if self._stage is None:
            built: Stage = instantiate(self.config.stages[self.name])
            self._stage = built
        return self._stage

    def key(self, partition: int) -> str | None:
        """Return what the partition's manifest would be keyed by; None while what it is made from is missing."""
        before = self.store.manifest(ALL[ALL.index(self.name) - 1], partition)
        if before is None:
            return None
        return digest_of({"stage": self.name, "settings": self.stage.settings(), "from": before.digest})

    def finished(self, partition: int) -> Manifest | None:
        """Return the partition's manifest if it is up to date, and no failure in it is to be tried again."""
        manifest = self.store.manifest(self.name, partition)
        if manifest is None or manifest.key != self.key(partition):
            return None
        return None if self.config.retry_failed and PASSING & set(manifest.rejected) else manifest

    def run(self, partition: int) -> Manifest:
        """Run one partition, unless it is finished.

        Raises:
            DistillationError: the stage before has not done this partition.
            AgentFailure: one that ends the run.
        """
        if (done := self.finished(partition)) is not None:
            return done
        key = self.key(partition)
        if key is None:
            raise DistillationError(f"stage {self.name}: partition {partition} is missing from the stage before")
        began = time.monotonic()
        records = self.store.read(ALL[ALL.index(self.name) - 1], partition, self.stage.looks_at)
        outcome = self.stage.run(records)
        return self.store.write(self.name, partition, key, len(records), outcome, time.monotonic() - began)

    def close(self) -> None:
        """Give models and connections back."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None


@runtime_checkable
class Executor(Protocol):
    """Where partitions are run."""

    def mine(self, partitions: Sequence[int]) -> list[int]:
        """Return those of the partitions that this command is to run."""
        ...

    def map(self, config: Mapping[str, Any], stage: str, partitions: Sequence[int]) -> Iterator[Manifest]:
        """Run a stage's partitions, and yield each manifest as it is there.

        Raises:
            AgentFailure: one that ends the run.
        """
        ...

    def close(self) -> None:
        """Give back what the run took to run partitions."""
        ...


class Distillation:
    """A run in a folder.

    Args:
        config: `conf/distill.yaml`, composed.
        say: called with progress, a line at a time.
    """

    def __init__(self, config: DictConfig, say: Callable[[str], None] = log.info) -> None:
        if config.until is not None and config.until not in ALL:
            raise DistillationError(f"until={config.until}: choose one of {', '.join(ALL)}, or null for all")
        if config.partition_size < 1:
            raise DistillationError(f"partition_size={config.partition_size}: must be at least 1 caption")
        OmegaConf.resolve(config)
        plain = OmegaConf.to_container(config)
        assert isinstance(plain, dict)
        self.config, self.plain = config, {str(name): value for name, value in plain.items()}
        self.store = Store(config.out)
        self.say = say

    def run(self) -> dict[str, int]:
        """Do what is left to do, up to the stage `until`; return the samples of each set of shards, none before the end.

        Raises:
            AgentFailure: one that ends the run; the same command goes on.
            DistillationError: a setting that makes no sense, or no pair is left.
            NothingKept: a stage kept no record of all partitions.
        """
        wanted = ALL[: ALL.index(self.config.until) + 1] if self.config.until else ALL
        if "prompts" in wanted:  # refuses its settings before the filter's calls are paid for
            instantiate(self.config.stages.prompts).close()
        self.store.root.mkdir(parents=True, exist_ok=True)
        self.store.sweep()
        write_text(self.store.root / "config.yaml", OmegaConf.to_yaml(self.config))
        partitions = self._plan()
        executor: Executor = instantiate(self.config.executor)
        mine = executor.mine(partitions)
        try:
            for stage in STAGES:
                if stage in wanted:
                    kept = self._run_stage(executor, stage, mine)
                    if not kept and partitions and mine == partitions:
                        raise self._nothing_kept(stage, partitions)
        finally:
            executor.close()
        return self._write_shards(partitions) if "shards" in wanted and mine == partitions else {}

    def _plan(self) -> list[int]:
        """Draw the captions, unless that was done, and return the numbers of the partitions."""
        source: captions.CaptionSource = instantiate(self.config.captions)
        size, count, seed = self.config.partition_size, captions_wanted(self.config), self.config.seed
        key = digest_of({"source": source.settings(), "count": count, "seed": seed, "partition_size": size})
        manifests = self.store.manifests(captions.NAME)
        if manifests and all(manifest.key == key for manifest in manifests) and self._is_complete(manifests):
            return [manifest.partition for manifest in manifests]
        began = time.monotonic()
        records = captions.sample(source, count, seed)
        if len(records) < count:
            log.warning("the source holds %d captions of the %d that are wanted", len(records), count)
        parts = [records[start : start + size] for start in range(0, len(records), size)]
        for partition in range(len(parts), (manifests[-1].partition if manifests else -1) + 1):
            for stage in ALL[:-1]:
                shutil.rmtree(self.store.folder(stage, partition), ignore_errors=True)
        for partition, part in enumerate(parts):
            self.store.write(captions.NAME, partition, key, len(part), Outcome(part), time.monotonic() - began)
        write_text(self.store.root / captions.NAME / "partitions", f"{len(parts)}\n")
        self.say(f"captions: {len(records)} in {len(parts)} partitions")
        return list(range(len(parts)))

    def _is_complete(self, manifests: Sequence[Manifest]) -> bool:
        note = self.store.root / captions.NAME / "partitions"
        return note.exists() and note.read_text().strip() == str(len(manifests))

    def _run_stage(self, executor: Executor, stage: str, partitions: Sequence[int]) -> int:
        """Run a stage's partitions; return how many records it kept."""
        taken = dict.fromkeys(partitions, 0)
        before = ALL[ALL.index(stage) - 1]
        for partition in partitions:
            manifest = self.store.manifest(before, partition)
            taken[partition] = manifest.kept if manifest is not None else 0
        usage, kept, seen = Usage(), 0, 0
        with tqdm(total=sum(taken.values()), desc=f"{stage:8}", unit="record", disable=not sys.stderr.isatty()) as bar:
            for manifest in executor.map(self.plain, stage, partitions):
                usage, kept, seen = usage + manifest.usage, kept + manifest.kept, seen + manifest.taken
                bar.set_postfix_str(f"kept {kept}" + (f", {usage.usd:.2f} USD" if usage.calls else ""))
                bar.update(manifest.taken)
        priced = f", {usage.calls} calls, {usage.usd:.4f} USD" if usage.calls else ""
        self.say(f"{stage}: {seen} records in, {kept} out{priced}")
        return kept

    def _nothing_kept(self, stage: str, partitions: Sequence[int]) -> NothingKept:
        """Return the failure of a run in which a stage rejected everything: reasons by number, and the first one's words."""
        rejected = [each for partition in partitions for each in self.store.read_rejected(stage, partition)]
        reasons = Counter(each.reason for each in rejected)
        numbers = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common())
        retried = "retry_failed=true asks again; " if PASSING & set(reasons) else ""
        first = f"\nThe first: {rejected[0].detail}" if rejected else ""
        return NothingKept(
            f"stage {stage} kept none of {len(rejected)} records ({numbers}), so that there is nothing to go on with; "
            f"{retried}all of them: {self.store.root / stage}/part-*/rejected.jsonl{first}"
        )

    def _write_shards(self, partitions: Sequence[int]) -> dict[str, int]:
        manifests = [self.store.manifest(STAGES[-1], partition) for partition in partitions]
        rejections: Counter[str] = Counter()
        for stage in STAGES:
            for partition in partitions:
                done = self.store.manifest(stage, partition)
                for reason, number in done.rejected.items() if done is not None else ():
                    rejections[f"{stage}:{reason}"] += number
        teacher: Teacher = instantiate(self.config.stages.grids.teacher)
        existing = [each for each in manifests if each is not None]
        return write_shards(self.store, existing, rejections, instantiate(self.config.shards), teacher.licence())
