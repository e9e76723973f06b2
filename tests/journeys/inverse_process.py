"""One process of a reconstruction over several: ``python inverse_process.py FOLDER [fail]``."""

import os
import sys
from pathlib import Path

import torch

from lowdim.inverse import DCDP, GMMPrior, reconstruct

RANK = int(os.environ.get("RANK", "0"))


class Logged:
    """DCDP that writes down which images it was given; it may fail in the second process."""

    def __init__(self, prior, log, fails):
        self.solver, self.log, self.fails = DCDP(prior, steps=5), log, fails
        self.settings = self.solver.settings

    def __call__(self, y, *args, seed, **options):
        if self.fails and RANK == 1:
            raise ValueError("a disk is full")
        with open(self.log / f"log-{RANK}", "a", encoding="utf-8") as file:
            file.writelines(f"{one % 1000}\n" for one in seed)
        return self.solver(y, *args, seed=seed, **options)


def main():
    folder, fails = Path(sys.argv[1]), "fail" in sys.argv
    x = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    prior = GMMPrior.fit(2 * x - 1, components=2, regularization=1e-1)
    result = reconstruct(
        x[:7],
        operator={"name": "sr", "factor": 2},
        sigma=0.02,
        prior=prior,
        solvers={"dcdp": Logged(prior, folder, fails)},
        output=folder / "run",
        batch=2,
        resume="resume" in sys.argv,
    )
    torch.save([*result.images["dcdp"]], folder / f"images-{RANK}.pt")


if __name__ == "__main__":
    main()
