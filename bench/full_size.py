"""The full-size configuration with random weights: reports per second, where the time goes, how near the floor.

    python -m bench.full_size [--size full|middle|tiny] [--batches 1 8 32] [--caches growing static compiled]

LLaVA 1.5's shapes (CLIP ViT-L/14 at 336, Llama of 7 billion weights) and SAM ViT-H in bfloat16, saved once in a folder
in their own formats and read by the code that reads the real ones. `middle` has the same parts, of which two cores
compute a study in about a second, and `tiny` runs in no time. Studies are generated, of five phrases; the vocabulary
is trained on generated reports, and what random weights answer is noise, so answers are cut after a fixed number of
tokens.

Floors: each step of an answer must read the language model's weights and its cache once; reading a prompt takes two
operations for each weight and token. The two ceilings, of copying and of multiplying, are measured on the same device.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, SamConfig, SamModel, logging

from bench.model import studies_of_five_phrases
from grounding.checkpoint import save_checkpoint
from grounding.config import KnowMVGConfig
from grounding.knowledge import load_bank
from grounding.network.model import KnowMVG
from grounding.network.shared_reading import SharedReading, StaticReading
from grounding.phantoms.study import make_study
from grounding.predictor import Predictor
from grounding.tokens import GroundingTokenizer
from grounding.types import Image, ModelIdentity, ReportText

SIZES: dict[str, dict[str, Any]] = {
    "full": {
        "dtype": "bfloat16", "canvas": 1024, "seen": 336, "decoder": {"width": 256, "mlp_width": 2048},
        "text": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
        "tower": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
        "sam": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16, "mlp_dim": 5120,
                "global_attn_indexes": [7, 15, 23, 31], "window_size": 14},
    },
    "middle": {
        "dtype": "float32", "canvas": 384, "seen": 224, "decoder": {"width": 256, "mlp_width": 1024},
        "text": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6, "num_attention_heads": 8},
        "tower": {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4},
        "sam": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "mlp_dim": 1024,
                "global_attn_indexes": [1, 3, 5], "window_size": 8},
    },
    "tiny": {
        "dtype": "float32", "canvas": 64, "seen": 28, "decoder": {"width": 32, "mlp_width": 64, "heads": 4},
        "text": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2},
        "tower": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
        "sam": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 24,
                "global_attn_indexes": [1], "window_size": 2},
    },
}  # fmt: skip
"""Shapes of each size."""

VOCABULARY = 32_064
ANSWER_TOKENS = 24
"""What an answer is cut after: more than a sentence of a generated report needs."""

STAGES = ("encode", "prefill", "decode", "reread", "boxes")


def save_folders(root: Path, size: dict[str, Any], device: torch.device) -> tuple[Path, Path]:
    """Write an image-text model and a SAM with random weights; returns their folders."""
    reports = (make_study(seed, 64).report.text for seed in range(400))
    tokens = GroundingTokenizer.train(reports, 4000)
    tokens.fast.add_tokens(["<image>"], special_tokens=True)
    folder, sam = root / "image-text", root / "sam"
    tokens.fast.save_pretrained(str(folder))
    tower = {"model_type": "clip_vision_model", "image_size": size["seen"], "patch_size": 14, **size["tower"]}
    text = {"model_type": "llama", "vocab_size": VOCABULARY, "max_position_embeddings": 4096, **size["text"]}
    llava = LlavaConfig(
        vision_config=tower, text_config=text, image_token_index=tokens.fast.convert_tokens_to_ids("<image>")
    )
    square = {"height": size["seen"], "width": size["seen"]}
    CLIPImageProcessorPil(size={"shortest_edge": size["seen"]}, crop_size=square).save_pretrained(str(folder))
    canvas = {"image_size": size["canvas"], "patch_size": 16}
    width = size["decoder"]["width"]
    encoder = {**size["sam"], **canvas, "output_channels": width, "num_pos_feats": width // 2}
    segmenter = SamConfig(
        vision_config=encoder, prompt_encoder_config={"hidden_size": width, **canvas},
        mask_decoder_config={"hidden_size": width, "num_attention_heads": size["decoder"].get("heads", 8)},
    )  # fmt: skip
    for build, place in ((lambda: LlavaForConditionalGeneration(llava), folder), (lambda: SamModel(segmenter), sam)):
        with _random(getattr(torch, size["dtype"]), device):
            model: Any = build()
        model.save_pretrained(str(place))
        del model
    return folder, sam


@contextmanager
def _random(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Weights that are built here are random, of this type, on this device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(folder: Path, sam: Path, size: dict[str, Any], cache: str, device: torch.device) -> Predictor:
    """Load the network on the two folders, with random weights of its own."""
    network, tokens = make_network(folder, sam, size, cache)
    return Predictor(network.to(device), tokens, load_bank(), ModelIdentity("full size", "0", "0" * 64))


def save_model(root: Path, size: dict[str, Any], device: torch.device) -> Path:
    """Write a model folder of random weights, and beside it those that it names; return it.

    Its boxes are noise, but there are some of every phrase, so that results are written as those of a real one.
    """
    network, tokens = make_network(*save_folders(root, size, device), size, "growing", assume_shown=True)
    save_checkpoint(root / "model", network, tokens, load_bank())
    return root / "model"


def make_network(
    folder: Path, sam: Path, size: dict[str, Any], cache: str, *, assume_shown: bool = False
) -> tuple[KnowMVG, GroundingTokenizer]:
    """Return the network on the two folders, with random weights of its own, and its tokenizer."""
    tokens = GroundingTokenizer.pretrained(folder)
    config = KnowMVGConfig.model_validate(
        {
            "name": "full size", "version": "0", "frame": {"canvas": size["canvas"]},
            "vision": {"model_type": "sam", "pretrained": str(sam), "dtype": size["dtype"]},
            "language_model": {"pretrained": str(folder), "dtype": size["dtype"], "cache": cache},
            "language": {"max_answer_tokens": ANSWER_TOKENS}, "decoder": size["decoder"],
            "decision": {"assume_shown": assume_shown},
        }
    )  # fmt: skip
    torch.manual_seed(1)
    return KnowMVG(config, load_bank(), tokens), tokens


class Clock:
    """Seconds by stage, each measured to the end of its work on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def now(self) -> float:
        """Return the time when all that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def timed(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `work` so that its time counts for `stage`."""

        def run(*given: Any, **named: Any) -> Any:
            began = self.now()
            try:
                return work(*given, **named)
            finally:
                self.seconds[stage] += self.now() - began
                self.calls[stage] += 1

        return run

    @contextmanager
    def on(self, predictor: Predictor) -> Iterator[None]:
        """Time the stages of `predictor`."""
        network: Any = predictor._network
        places = [
            (network, "encode_images", "encode"), (network, "decode", "boxes"),
            (network.language, "forward", "reread"), (SharedReading, "__init__", "prefill"),
            (SharedReading, "feed", "decode"), (StaticReading, "feed", "decode"),
        ]  # fmt: skip
        patches = [
            mock.patch.object(owner, name, self.timed(stage, getattr(owner, name))) for owner, name, stage in places[:3]
        ]
        patches += [
            mock.patch.object(owner, name, _method(self, stage, getattr(owner, name)))
            for owner, name, stage in places[3:]
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


def _method(clock: Clock, stage: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a class, timed: a plain function, so that it is bound to its object."""
    timed = clock.timed(stage, plain)

    def method(self: Any, *given: Any, **named: Any) -> Any:
        return timed(self, *given, **named)

    return method


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes per second of a large copy (read and written), and operations per second of a large matrix product."""
    clock = Clock(device)
    side = 8192 if device.type == "cuda" else 1024
    a = torch.randn(side, side, device=device).to(dtype)
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def fastest(work: Callable[[], object]) -> float:
        work()
        taken = []
        for _ in range(10):
            began = clock.now()
            work()
            taken.append(clock.now() - began)
        return min(taken)

    return 2 * source.numel() / fastest(lambda: target.copy_(source)), 2 * side**3 / fastest(lambda: a @ a)


def floors(predictor: Predictor, readings: list[tuple[int, int, int]], steps: int) -> tuple[float, float]:
    """Operations that prompts take at least, and bytes that the steps of answers must read at least.

    `readings` are (tokens read, rows, tokens of a row in the cache) of each batch of texts.
    """
    language: Any = predictor._network.language
    layers = language.lm.model.language_model
    weights = sum(p.numel() for p in layers.layers.parameters())
    config, size = language.lm.config.get_text_config(), language.lm.dtype.itemsize
    head = config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * size
    operations = sum(2.0 * weights * read for read, _, _ in readings)
    moved = sum(steps / len(readings) * (weights * size + rows * length * per_token) for _, rows, length in readings)
    return operations, moved


def measure(
    predictor: Predictor, studies: list[tuple[list[Image], ReportText]], batch: int, ceiling: tuple[float, float]
) -> str:
    """Ground the studies in batches, and return one row of the table."""
    device = predictor.device
    batches = [studies[first : first + batch] for first in range(0, len(studies), batch)]
    for some in batches:  # so that every size of cache is there, and compiled
        predictor.ground_many(some)
    clock = Clock(device)
    began = clock.now()
    for some in batches:
        predictor.ground_many(some)
    whole = clock.now() - began
    readings: list[tuple[int, int, int]] = []
    clock = Clock(device)
    with clock.on(predictor), _noting(readings):
        began = clock.now()
        for some in batches:
            predictor.ground_many(some)
        staged = clock.now() - began
    operations, moved = floors(predictor, readings, clock.calls["decode"])
    shares = [f"{1000 * clock.seconds[stage] / len(studies):.1f}" for stage in STAGES]
    rest = 1000 * (staged - sum(clock.seconds.values())) / len(studies)
    prefill = operations / ceiling[1] / clock.seconds["prefill"]
    decode = moved / ceiling[0] / clock.seconds["decode"]
    return (
        f"| {batch} | {len(studies) / whole:.2f} | {' | '.join(shares)} | {rest:.1f} | {100 * prefill:.0f} % | "
        f"{100 * decode:.0f} % |"
    )


@contextmanager
def _noting(readings: list[tuple[int, int, int]]) -> Iterator[None]:
    """Note of each batch of texts what was read of it, its rows, and the length of a row."""
    begin = SharedReading.__init__

    def noted(self: SharedReading, language: Any, image_tokens: torch.Tensor, *given: Any) -> None:
        begin(self, language, image_tokens, *given)
        rows, length = self.text.shape
        prefix = self.seen.shape[1]
        readings.append((len(image_tokens) * prefix + rows * length, rows, prefix + length))

    with mock.patch.object(SharedReading, "__init__", noted):
        yield


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--caches", nargs="+", default=["growing", "static", "compiled"])
    parser.add_argument("--studies", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1, help="of each row; the last is printed")
    parser.add_argument("--folder", type=Path, help="where the random weights are kept (15 GB); else a temporary one")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = SIZES[arguments.size]
    ceiling = ceilings(device, getattr(torch, size["dtype"]))
    reached = f"copies {ceiling[0] / 1e9:.0f} GB/s, multiplies {ceiling[1] / 1e12:.1f} T operations/s"
    print(f"{device}, {size['dtype']}: {reached}")
    made = itertools.islice(studies_of_five_phrases(), arguments.studies)
    studies = [([study.image], study.report) for study in made]
    sentences = statistics.mean(len(report.sentences) for _, report in studies)
    print(f"{len(studies)} studies, {sentences:.1f} sentences each (mean), answers of at most {ANSWER_TOKENS} tokens")
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        folder, sam = root / "image-text", root / "sam"
        if not folder.is_dir():
            folder, sam = save_folders(root, size, device)
        for cache in arguments.caches:
            began = time.perf_counter()
            predictor = build(folder, sam, size, cache, device)
            print(f"\n{cache} cache; loaded in {time.perf_counter() - began:.1f} s\n")
            stages = " | ".join(f"{stage}, ms" for stage in STAGES)
            print(f"| batch | reports/s | {stages} | rest, ms | prefill, of the ceiling | decode, of the ceiling |")
            print("|---" * (5 + len(STAGES)) + "|")
            for batch in arguments.batches:
                for _ in range(arguments.rounds):
                    row = measure(predictor, studies, batch, ceiling)
                print(row, flush=True)
            del predictor


if __name__ == "__main__":
    main()
