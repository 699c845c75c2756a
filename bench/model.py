"""How long the shipped model takes, once it is loaded, on two processor cores: five phrases, and each phrase more.

    python -m bench.model [--studies 20] [--threads 2]

Model time alone: image and report text in, boxes out. First generated studies whose reports assert five phrases; then
one picture with reports of one phrase to eight, in turn, which all share one encoding of the image.
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
from grounding.predictor import Predictor
from grounding.text import read_plain_report
from grounding.types import Image, ReportText

FIRST_SEED = 4_000_000_000
"""Far from the seeds of training."""

PHRASES, SIZE = 5, 1024
SENTENCES = (
    "There is a small left pleural effusion.",
    "Opacity in the right lower lung zone.",
    "The heart is enlarged.",
    "There is a nodule in the left upper lobe.",
    "Small right apical pneumothorax.",
    "Linear atelectasis at the left base.",
    "An endotracheal tube is in place.",
    "Consolidation in the right upper lobe.",
)


def studies_of_five_phrases() -> Iterator[PhantomStudy]:
    """Yield generated studies whose reports assert five phrases."""
    for seed in itertools.count(FIRST_SEED):
        if sum(not phrase.negated for phrase in make_study(seed, 64).phrases) == PHRASES:
            yield make_study(seed, SIZE)


def measure(predictor: Predictor, image: Image, report: ReportText) -> tuple[float, int]:
    """Return the seconds of one study, and how many phrases were read."""
    began = time.perf_counter()
    grounding = predictor.ground([image], report)
    return time.perf_counter() - began, len(grounding.findings)


def time_studies(predictor: Predictor, count: int) -> tuple[list[float], list[int]]:
    """Return seconds and phrases of `count` studies; one more before them warms the caches."""
    studies = itertools.islice(studies_of_five_phrases(), count + 1)
    first = next(studies)
    predictor.ground([first.image], first.report)
    pairs = [measure(predictor, study.image, study.report) for study in studies]
    return [seconds for seconds, _ in pairs], [phrases for _, phrases in pairs]


def time_phrases(predictor: Predictor, rounds: int) -> list[tuple[float, int]]:
    """Return the median seconds, and the phrases read, of reports of one sentence, two, and so on to eight."""
    image = make_study(FIRST_SEED, SIZE).image
    reports = [read_plain_report(" ".join(SENTENCES[: n + 1])) for n in range(len(SENTENCES))]
    for report in reports:
        predictor.ground([image], report)
    # Round by round, so that what else the machine does falls on all lengths alike.
    taken = [[measure(predictor, image, report) for report in reports] for _ in range(rounds)]
    return [(statistics.median(t[n][0] for t in taken), taken[0][n][1]) for n in range(len(reports))]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    predictor = load_predictor("default", "cpu")
    loaded = time.perf_counter() - began
    seconds, phrases = time_studies(predictor, arguments.studies)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{len(seconds)} studies of {SIZE} x {SIZE} pixels, {statistics.median(phrases):g} phrases in all (median), "
        f"{arguments.threads} threads: median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s; "
        f"loading {loaded:.1f} s, peak memory {peak:.0f} MB"
    )
    medians = time_phrases(predictor, max(5, arguments.studies))
    for (taken, read), before in zip(medians, [None, *(m for m, _ in medians)], strict=False):
        growth = "" if before is None else f", {100 * (taken / before - 1):+.0f} %"
        print(f"{read} phrases: {1000 * taken:.0f} ms{growth}")
    mean = (medians[-1][0] / medians[0][0]) ** (1 / (len(medians) - 1)) - 1
    print(f"each phrase more: {100 * mean:+.1f} % on average")


if __name__ == "__main__":
    main()
