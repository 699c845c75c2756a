"""What micro-batches gain: studies grounded one by one against as many at once as a worker takes, by the same model.

    python -m bench.batching [--device cpu] [--batches 2 4 8 16] [--studies 32] [--pairs 5] [--threads 2]

Generated studies of one picture each, in pairs of runs over the same studies that follow each other, in turn one by one
first and in batches first. Two figures: the model alone (studies prepared before), and with reading the pixels to the
model's canvas, which one by one comes before each study and in batches runs in other threads, as in a worker. Last,
whether both said the same. The targets are 1.2 times one by one on a processor and 3 times on a GPU (--device cuda).
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from bench.model import FIRST_SEED
from grounding.checkpoint import load_predictor
from grounding.phantoms.study import make_study
from grounding.predictor import Predictor, Study
from grounding.types import Grounding, Image, ReportText
from workers.batches import PREPARING

TARGETS = {"cpu": 1.2, "cuda": 3.0}

Given = tuple[Sequence[Image], ReportText]


def in_parts(items: Sequence[Study], size: int) -> list[Sequence[Study]]:
    """Return the studies in batches."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def ground(predictor: Predictor, prepared: Sequence[Study], size: int) -> list[Grounding]:
    """Ground studies that are prepared, so many at once."""
    return [found for part in in_parts(prepared, size) for found in predictor.ground_prepared(part)]


def read_and_ground(predictor: Predictor, given: Sequence[Given], size: int) -> list[Grounding]:
    """Ground studies that are not: one by one in turn, in batches with those of the next batch read meanwhile."""
    if size == 1:
        return [predictor.ground(images, report) for images, report in given]
    found = []
    with ThreadPoolExecutor(PREPARING) as threads:
        parts = [given[first : first + size] for first in range(0, len(given), size)]
        held = [threads.submit(predictor.prepare, *study) for study in parts[0]]
        for following in [*parts[1:], ()]:
            part = [one.result() for one in held]
            held = [threads.submit(predictor.prepare, *study) for study in following]
            found += predictor.ground_prepared(part)
    return found


def measure(runs: dict[int, Callable[[], object]], pairs: int) -> dict[int, float]:
    """Return the median of seconds one by one over those of each batch size, of runs that follow each other."""
    ratios: dict[int, list[float]] = {size: [] for size in runs if size != 1}
    for pair, size in itertools.product(range(pairs), ratios):
        taken = {one: timed(runs[one]) for one in ((1, size) if pair % 2 == 0 else (size, 1))}
        ratios[size].append(taken[1] / taken[size])
    return {size: statistics.median(values) for size, values in ratios.items()}


def timed(run: Callable[[], object]) -> float:
    """Return how long a run takes."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def greatest_difference(one: Sequence[Grounding], other: Sequence[Grounding]) -> tuple[int, float]:
    """Return in how many studies both say the same, and by how many pixels corners differ at most."""
    same = sum(a == b for a, b in zip(one, other, strict=True))
    boxes = [[box.box.xyxy for found in said for f in found.findings for box in f.boxes] for said in (one, other)]
    assert len(boxes[0]) == len(boxes[1]), "other boxes were found"
    corners = zip(itertools.chain(*boxes[0]), itertools.chain(*boxes[1]), strict=True)
    return same, max((abs(a - b) for a, b in corners), default=0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0 …")
    parser.add_argument("--model", default="default", help="the shipped checkpoint, or a model folder")
    parser.add_argument("--batches", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--studies", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    predictor = load_predictor(arguments.model, arguments.device)
    studies = [make_study(FIRST_SEED + number, arguments.size) for number in range(arguments.studies)]
    given: list[Given] = [([study.image], study.report) for study in studies]
    prepared = [predictor.prepare(*study) for study in given]
    sizes = [1, *arguments.batches]
    told = {size: ground(predictor, prepared, size) for size in sizes}  # warms up, too
    alone = statistics.median(timed(lambda: ground(predictor, prepared, 1)) for _ in range(3)) / len(prepared)
    kind = predictor.device.type
    where = torch.cuda.get_device_name(predictor.device) if kind == "cuda" else platform.machine()
    print(
        f"{len(studies)} studies of {arguments.size} x {arguments.size} pixels on {kind} ({where}, {arguments.threads} "
        f"threads), medians of {arguments.pairs} pairs; one by one {1000 * alone:.1f} ms a study (model alone)"
    )
    for size in arguments.batches:
        pair = (1, size)
        model = measure({one: lambda one=one: ground(predictor, prepared, one) for one in pair}, arguments.pairs)
        whole = measure({one: lambda one=one: read_and_ground(predictor, given, one) for one in pair}, arguments.pairs)
        same, pixels = greatest_difference(told[1], told[size])
        print(
            f"batches of {size}: model {model[size]:.2f} x one by one, with reading {whole[size]:.2f} x; "
            f"{same} of {len(studies)} studies are told the same, corners differ by {pixels:.3f} pixels at most",
            flush=True,
        )
    print(f"target on {kind}: {TARGETS.get(kind, 1.0)} x")


if __name__ == "__main__":
    main()
