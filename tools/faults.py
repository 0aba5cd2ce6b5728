"""Kill trainings, break writes and inputs, spoil steps; print what was survived.

A training has survived a fault if what it left in the end equals, bit by bit but for times, what a
training left that nobody disturbed. A checkpoint has, if the error is told and the one before it
loads; a spoilt input, if it is read rightly or named; a lost data worker, if it is named in a
minute; a step, if nothing has changed on any rank. Several processes have, if the one that failed
is named and all end within a minute.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from tabulate import tabulate

from mtfixmatch.utils.errors import InputError
from tests.support.data_faults import break_inputs
from tests.support.faulty import (
    FAULTS,
    at_byte,
    bytes_of_a_save,
    raising,
    resumed,
    save,
)
from tests.support.faulty_steps import spoil_in_two_processes
from tests.support.kill_training import ANYWHERE, ASKED, INSIDE, Campaign, Tally
from tests.support.rank_faults import break_ranks

SHARES = {ANYWHERE: 0.5, INSIDE: 0.4, ASKED: 0.1}
OFFSETS, CUTS = 20, 50


def fails(folder: Path, offset: int, number: int) -> bool:
    """A save that fails there says so and why."""
    try:
        with at_byte(offset, raising(number)):
            save(folder, 2)
    except InputError as error:
        return os.strerror(number) in str(error)
    return False


def break_writes(folder: Path) -> dict[str, Tally]:
    """Errors of the system at offsets of a save, and the newest checkpoint cut off."""
    total = bytes_of_a_save(folder / "size")
    tallies = {}
    for name, number in FAULTS.items():
        run = folder / name
        run.mkdir()
        save(run, 1)
        good = [
            fails(run, total * i // OFFSETS, number) and resumed(run) == 1 for i in range(OFFSETS)
        ]
        tallies[f"{name} in a write"] = Tally(len(good), sum(good))
    logging.getLogger("mtfixmatch").setLevel(logging.ERROR)  # each cut would be warned of
    newest = folder / "size" / "model_0000002.pth"
    whole = newest.read_bytes()
    good = []
    for i in range(CUTS):
        newest.write_bytes(whole[: len(whole) * i // CUTS])
        good.append(resumed(folder / "size") == 1)
    tallies["newest checkpoint cut off"] = Tally(len(good), sum(good))
    return tallies


def spoil_steps(root: Path, output: Path) -> dict[str, Tally]:
    """Values that are not finite, at each place and on each of two ranks; skipped, and stopped."""
    output.mkdir()
    ranks = spoil_in_two_processes(root, output)
    tallies: dict[str, Tally] = {}
    for key in [key for key in ranks[0] if key != "end"]:
        place, _, policy = key
        tally = tallies.setdefault(f"not finite: {place}", Tally())
        tally.tries += 1
        errors = {found[key]["error"] for found in ranks}
        told = len(errors) == 1 and all(errors) == (policy == "stop")
        tally.survived += told and all(found[key]["unchanged"] for found in ranks)
    return tallies


def rows_of(tallies: dict[str, Tally]) -> list[list]:
    rows = []
    for kind, tally in sorted(tallies.items()):
        lost = f"{sum(tally.lost) / len(tally.lost):.1f} / {max(tally.lost)}" if tally.lost else ""
        rows.append([kind, tally.tries, tally.survived, lost])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=230, help="of trainings, a tenth by SIGTERM")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        campaign = Campaign(Path(name), args.seed)
        campaign.run(args.kills, SHARES)
        disks = Path(name) / "disks"
        disks.mkdir()
        tallies = campaign.tallies | break_writes(disks)
        tallies |= spoil_steps(campaign.root, Path(name) / "spoiled")
        tallies |= break_inputs(Path(name) / "inputs", args.seed)
        tallies |= break_ranks(Path(name), args.seed)
    headers = ["fault", "tries", "survived", "steps repeated, mean / most"]
    print(tabulate(rows_of(tallies), headers=headers, tablefmt="pipe"))
    wrong = [text for tally in tallies.values() for text in tally.wrong]
    if wrong or any(tally.survived < tally.tries for tally in tallies.values()):
        sys.exit("\n".join(["not all faults were survived", *wrong[:20]]))


if __name__ == "__main__":
    main()
