"""Command line: `python -m tests.mutants`."""

import sys
from fnmatch import fnmatch
from typing import ClassVar

from pydantic import Field

from tests.mutants.entries import all_mutants
from tests.mutants.running import Outcome, run_mutants
from training.cli import EXIT_CLAIM_FAILED, EXIT_DONE, Command, Result, run

ENOUGH = 0.85  # share of the mutants that must be killed


class Mutants(Command):
    """Put known faults into a copy of the code, one at a time, and run the tests that must notice each.

    Exit code 1 if fewer than 85 % are noticed by an assertion, 2 if an entry no longer fits the code.

    Example: python -m tests.mutants --only 'training/*'
    """

    name: ClassVar[str] = "mutants"
    only: str = Field(default="*", description="names to run, with * and ?")
    jobs: int = Field(default=1, ge=1, description="mutants at a time; each needs a core and 2 GB of memory")

    def execute(self) -> Result:
        """Run and count."""
        chosen = [mutant for mutant in all_mutants() if fnmatch(mutant.name, self.only)]
        if not chosen:
            raise ValueError(f"--only: expected a pattern of names such as 'training/*', found none for {self.only!r}")
        outcomes = run_mutants(chosen, jobs=self.jobs, on_outcome=_say)
        killed = sum(outcome.verdict == "killed" for outcome in outcomes)
        share = killed / len(outcomes)
        rows = {
            outcome.mutant.name: {
                "verdict": outcome.verdict,
                "by": outcome.by,
                "seconds": outcome.seconds,
                "why": outcome.mutant.why,
                "survives": outcome.mutant.survives,
            }
            for outcome in outcomes
        }
        data = {"killed": killed, "total": len(outcomes), "share": round(share, 4), "mutants": rows}
        return Result(data, _text(outcomes, killed, share), EXIT_DONE if share >= ENOUGH else EXIT_CLAIM_FAILED)


def _say(outcome: Outcome) -> None:
    sys.stderr.write(f"{outcome.verdict:9} {outcome.mutant.name} ({outcome.seconds} s)\n")


def _text(outcomes: list[Outcome], killed: int, share: float) -> str:
    lines = [f"{killed} of {len(outcomes)} mutants killed by an assertion: {share:.0%}"]
    for outcome in outcomes:
        if outcome.verdict != "killed":
            reason = outcome.mutant.survives or f"no reason is known; {outcome.mutant.why}"
            lines.append(f"{outcome.verdict:9} {outcome.mutant.name}: {reason} [{outcome.by}]")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run([Mutants], prog="python -m tests.mutants", description="Do the tests notice faults?"))
