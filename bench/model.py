"""How long the shipped model takes for a study of five phrases, once it is loaded, on two processor cores.

    python -m bench.model [--studies 20] [--threads 2]

Generated studies whose reports assert five phrases; model time alone: image and report text in, boxes out.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import time
from collections.abc import Iterator

import torch

from grounding.checkpoint import load_predictor
from grounding.phantoms.study import PhantomStudy, make_study

FIRST_SEED = 4_000_000_000
"""Far from the seeds of training."""

PHRASES, SIZE = 5, 1024


def studies_of_five_phrases() -> Iterator[PhantomStudy]:
    """Yield generated studies whose reports assert five phrases."""
    for seed in itertools.count(FIRST_SEED):
        if sum(not phrase.negated for phrase in make_study(seed, 64).phrases) == PHRASES:
            yield make_study(seed, SIZE)


def main() -> None:
    """Measure and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    predictor = load_predictor("default", "cpu")
    loaded = time.perf_counter() - began
    studies = itertools.islice(studies_of_five_phrases(), arguments.studies + 1)
    first = next(studies)
    predictor.ground([first.image], first.report)  # warms caches
    seconds, phrases = [], []
    for study in studies:
        began = time.perf_counter()
        grounding = predictor.ground([study.image], study.report)
        seconds.append(time.perf_counter() - began)
        phrases.append(len(grounding.findings))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(seconds)} studies of {SIZE} x {SIZE} pixels, {statistics.median(phrases):g} phrases in all (median), "
        f"{arguments.threads} threads: median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s; "
        f"loading {loaded:.1f} s, peak memory {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
