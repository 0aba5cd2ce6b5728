"""Trainings that are killed again and again, go on, and end as one that was left alone."""

import json
import random
import shutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tests.support.compare_runs import differences
from tests.support.lives import SAMPLERS, STEPS, Kill, Life, arguments, live, make_data

ANYWHERE, INSIDE, ASKED = "SIGKILL at any moment", "SIGKILL inside a write", "SIGTERM"


@dataclass
class Tally:
    """Kills of one kind: how many, how many the training survived, the steps it had to repeat."""

    tries: int = 0
    survived: int = 0
    lost: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


@dataclass
class Campaign:
    """Kills trainings in a folder, with random numbers of its own.

    Attributes:
        folder: for data, references and trainings.
        seed: of the moments.
    """

    folder: Path
    seed: int
    tallies: dict[str, Tally] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.rng = random.Random(self.seed)
        self.root = self.folder / "data"
        make_data(self.root)

    def reference(self, sampler: str) -> Path:
        """A training that nobody interrupts."""
        output = self.folder / f"reference_{sampler}"
        if not output.exists():
            log = self.folder / f"reference_{sampler}.log"
            life = live(arguments(self.root, output, sampler, 0), Kill(), log)
            assert life.status == 0, log.read_text()[-3000:]
        return output

    def moment(self, kind: str) -> Kill:
        """A random one."""
        if kind != INSIDE:
            number = signal.SIGTERM if kind == ASKED else signal.SIGKILL
            steps, delay = self.rng.randrange(4), self.rng.uniform(0, 0.5)
            return Kill(kind, steps=steps, delay=delay, number=number)
        if self.rng.random() < 0.3:
            name = self.rng.choice(("replace", "fsync", "remove"))
            return Kill(kind, call=(name, self.rng.randrange(3, 14)))
        sizes = [p.stat().st_size for p in self.reference("explicit").glob("model_0*.pth")]
        return Kill(kind, byte=self.rng.randrange(2 * min(sizes)))

    def train(self, sampler: str, workers: int, kills: Iterable[Kill], name: str) -> None:
        """One training through all the kills, then to its end, and what it left."""
        expected = self.reference(sampler)
        output, log = self.folder / name, self.folder / f"{name}.log"
        args = arguments(self.root, output, sampler, workers)
        met: list[tuple[str, int]] = []
        last, life = -1, Life()
        for kill in [*kills, Kill()]:
            life = live(args, kill, log)
            if met and life.start >= 0:
                met[-1] = (met[-1][0], max(last + 1 - life.start, 0))
            last = max(life.last, last if life.start < 0 else life.start - 1)
            if not life.interrupted:
                break
            met.append((f"{kill.kind}, {workers} workers", 0))
        wrong = differences(expected, output) if life.status == 0 else [log.read_text()[-2000:]]
        self._count(met, wrong)
        if not wrong:
            shutil.rmtree(output)

    def _count(self, met: list[tuple[str, int]], wrong: list[str]) -> None:
        for kind, lost in met:
            tally = self.tallies.setdefault(kind, Tally())
            tally.tries += 1
            tally.survived += not wrong
            tally.lost.append(lost)
            tally.wrong += wrong

    def run(self, kills: int, shares: dict[str, float], per_training: int = 8) -> None:
        """Kill so often, in each way its share, through all samplers and numbers of workers."""
        number = 0
        while (done := sum(t.tries for t in self.tallies.values())) < kills:
            sampler = SAMPLERS[number % 3]
            workers = (number // 3 + number) % 3
            count = min(per_training, kills - done)
            kinds = self.rng.choices(list(shares), list(shares.values()), k=count - 1)
            # The last one when the last checkpoint is there, but perhaps not the report.
            end = Kill(ANYWHERE, last=STEPS - 1, delay=self.rng.uniform(0, 1))
            moments = [*map(self.moment, kinds), end]
            self.train(sampler, workers, moments, f"training_{number}")
            number += 1


def main() -> None:
    """FOLDER KILLS SEED: print the tallies as JSON."""
    folder, kills, seed = sys.argv[1:]
    campaign = Campaign(Path(folder), int(seed))
    campaign.run(int(kills), {ANYWHERE: 0.6, INSIDE: 0.4})
    print(json.dumps({kind: vars(tally) for kind, tally in campaign.tallies.items()}))


if __name__ == "__main__":
    main()
