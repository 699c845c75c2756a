"""Production backbones: SAM and image-text models of three families, from folders in their own formats.

The weights are tiny and random, the code is the one that reads the large ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    Gemma3Processor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SamModel,
    logging,
)

from grounding.checkpoint import CONFIG, WEIGHTS, load_predictor, save_checkpoint
from grounding.knowledge import load_bank
from grounding.network.boxes import paired_iou
from grounding.network.model import KnowMVG
from grounding.network.sam import start_from_sam
from grounding.processor import Processor
from grounding.tokens import GroundingTokenizer
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import Example
from grounding.training.losses import LossWeights, losses
from grounding.types import ModelError, ReportText, Span
from tests.model.networks import TEXTS, make_examples, make_network, prompt, square_box, stir, tiny_image
from tests.model.pretrained import CANVAS, FAMILIES, production_config, save_family, save_sam

logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """One folder of each family, and SAM's."""
    root = tmp_path_factory.mktemp("pretrained")
    held = {family: save_family(root / family, family) for family in FAMILIES}
    torch.manual_seed(1)
    yield {**held, "sam": save_sam(root / "sam")}


def build(folders: dict[str, Path], family: str, **sections: Any) -> tuple[KnowMVG, GroundingTokenizer]:
    """A network on the folders, whose new weights are not at their start, where many have no say."""
    tokens = GroundingTokenizer.pretrained(folders[family])
    torch.manual_seed(5)
    network = KnowMVG(production_config(folders[family], folders["sam"], **sections), load_bank(), tokens)
    stir(network)
    with torch.no_grad():
        for name, weight in network.own_parameters():
            if "lora_" in name or "new_" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
    return network.eval(), tokens


def batch_of(tokens: GroundingTokenizer) -> TrainingBatch:
    return Batcher(tokens, load_bank(), slots=3, limit=60).collate(make_examples())


def backward(network: KnowMVG, batch: TrainingBatch) -> None:
    terms = losses(network(batch.pixels, batch.text), batch.text.labels, batch.targets, LossWeights())
    torch.stack(list(terms.values())).sum().backward()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_trains_what_is_ours_and_nothing_else(folders: dict[str, Path], family: str) -> None:
    network, tokens = build(folders, family)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW([p for _, p in network.own_parameters()], lr=1e-2)
    backward(network.train(), batch_of(tokens))
    still = {n for n, p in network.own_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)}
    # Behind heads that begin with zero weights, and in attention over a single prompt, nothing is learned at first.
    assert not {n for n in still if n.startswith(("language.", "box_query.", "backbone.", "decoder.transformer"))}
    optimizer.step()
    after, borrowed = network.state_dict(), network.borrowed()
    assert all(torch.equal(before[name], after[name]) for name in borrowed)
    assert all(not torch.equal(before[name], after[name]) for name in set(before) - borrowed - still)
    trained = {n for n in set(before) - borrowed if n.startswith("language.")}
    assert {n.rsplit(".", 3)[-3] for n in trained if "lora_" in n} == {"lora_A", "lora_B"}
    assert {n for n in trained if "lora_" not in n} == {"language.new_inputs", "language.new_outputs"}
    assert all(".language_model." in n and ("q_proj" in n or "v_proj" in n) for n in trained if "lora_" in n)


@pytest.mark.timeout(300)
def test_squares_are_learned_by_heart_on_a_frozen_sam_and_an_image_text_model(folders: dict[str, Path]) -> None:
    network, tokens = build(folders, "llava")
    examples = [
        Example(tiny_image(square, seed), (prompt("There is a nodule.", "nodule", square_box(square)),))
        for seed, square in enumerate([(6, 8, 30, 30), (34, 10, 60, 40), (8, 36, 26, 58)])
    ]
    batch = Batcher(tokens, load_bank(), slots=3, limit=60).collate(examples)
    optimizer = torch.optim.AdamW([p for _, p in network.own_parameters()], lr=4e-3)
    network.train()
    for step in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 250)
        optimizer.zero_grad()
        backward(network, batch)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    found = boxes.refined[torch.arange(3), boxes.presence_logits.argmax(1)]
    assert paired_iou(found, batch.targets.boxes[:, 0])[0].min() > 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_states_of_cached_generation_are_those_of_teacher_forcing(folders: dict[str, Path], family: str) -> None:
    network, tokens = build(folders, family)
    processor = Processor(network.config, tokens, load_bank())
    texts = [(text, processor.encode(text)) for text in (*TEXTS, "x", "Pleural, pleural; effusion: 3.5 cm (\u00e9).")]
    with torch.inference_mode():
        network.language.new_outputs[1] *= 3
        seen = network.encode_images(torch.rand(1, 1, CANVAS, CANVAS))
        answers, cached = network.language.generate(seen.tokens, [t for _, t in texts], tokens)
        batch = processor.forced_batch([(s, t, a) for (s, t), a in zip(texts, answers, strict=True)])
        states = network.language(seen.tokens[batch.image_of_text], batch.token_ids, batch.mask)
        forced = network.phrase_states(states, batch)
    assert sum(map(len, answers)) >= 3
    assert torch.allclose(cached.box, forced.box, atol=1e-3)
    assert torch.allclose(cached.phrase, forced.phrase, atol=1e-3)


def answered(network: KnowMVG, tokens: GroundingTokenizer, images: int = 3) -> tuple[Any, Any]:
    """Answers to texts on several images at once, twice over: a fixed cache is used again the second time."""
    prompts = [tokens.encode(text, 60) for text in (*TEXTS, "x", TEXTS[0])]
    torch.manual_seed(2)
    with torch.inference_mode():
        network.language.new_outputs[1] *= 3
        seen = network.encode_images(torch.rand(images, 1, CANVAS, CANVAS)).tokens
        where = [i % images for i in range(len(prompts))]
        first = network.language.generate(seen, prompts, tokens, where)
        again = network.language.generate(seen, prompts, tokens, where)
    assert first[0] == again[0] and torch.equal(first[1].box, again[1].box)
    return first


@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch itself, when it compiles
@pytest.mark.parametrize(("family", "cache"), [*((family, "static") for family in FAMILIES), ("llava", "compiled")])
def test_a_cache_of_fixed_size_gives_the_answers_of_one_that_grows(
    folders: dict[str, Path], family: str, cache: str
) -> None:
    growing, states = answered(*build(folders, family))
    fixed, kept = answered(*build(folders, family, language_model={"cache": cache}))
    assert sum(map(len, growing)) >= 3
    assert fixed == growing
    assert torch.allclose(kept.box, states.box, atol=1e-3)
    assert torch.allclose(kept.phrase, states.phrase, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_on_several_images_are_read_as_on_each_alone(folders: dict[str, Path], family: str) -> None:
    network, tokens = build(folders, family)
    prompts = [tokens.encode(text, 60) for text in TEXTS]
    with torch.inference_mode():
        network.language.new_outputs[1] *= 3
        seen = network.encode_images(torch.rand(2, 1, CANVAS, CANVAS)).tokens
        together, states = network.language.generate(
            seen, [*prompts, *prompts], tokens, [0] * len(TEXTS) + [1] * len(TEXTS)
        )
        alone = [network.language.generate(one[None], prompts, tokens) for one in seen]
    assert together == [answer for answers, _ in alone for answer in answers]
    assert torch.allclose(states.box, torch.cat([found.box for _, found in alone]), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_is_what_the_model_itself_reads(folders: dict[str, Path], family: str) -> None:
    """Image tokens, their positions and their attention are the model's own: compared with its plain forward."""
    network, tokens = build(folders, family, language_model={"lora": None})
    language: Any = network.language
    pixels = torch.rand(2, 1, CANVAS, CANVAS)
    text = torch.tensor([tokens.encode(TEXTS[0], 60).ids] * 2)
    with torch.inference_mode():
        seen = network.encode_images(pixels).tokens
        ours = language(seen, text, torch.ones_like(text, dtype=torch.bool))
        middle = [int(language.lm.config.image_token_id)] * seen.shape[1]
        ids = torch.tensor([[*language.before, *middle, *language.after]] * 2)
        kinds = (ids == language.lm.config.image_token_id).long()
        whole, types = torch.cat([ids, text], 1), torch.cat([kinds, torch.zeros_like(text)], 1)
        named = {"llava": {}, "qwen": {"mm_token_type_ids": types}, "gemma": {"token_type_ids": types}}[family]
        plain: Any = AutoModelForImageTextToText
        model = plain.from_pretrained(folders[family], local_files_only=True).eval()
        inputs = language._prepared(pixels)
        theirs = model.model(input_ids=whole, attention_mask=torch.ones_like(whole), **inputs, **named)
    assert torch.allclose(ours, theirs.last_hidden_state[:, ids.shape[1] :], atol=1e-4)


def test_the_image_stands_in_the_text_as_the_processor_sets_it(folders: dict[str, Path]) -> None:
    for family, build_processor in (("llava", llava_processor), ("gemma", gemma_processor)):
        network, tokens = build(folders, family)
        language: Any = network.language
        processor = build_processor(folders[family])
        mark = processor.image_token
        picture = np.zeros((CANVAS, CANVAS, 3), np.uint8)
        theirs = processor(images=[picture], text=[mark], return_tensors="pt")["input_ids"][0].tolist()
        count = language.look(torch.zeros(1, 1, CANVAS, CANVAS), None).shape[1]
        settings: Any = network.config.image_text
        instruction = tokens.plain_ids(settings.instruction)
        ours = [*language.before, *[int(language.lm.config.image_token_id)] * count, *language.after]
        assert ours == [*tokens.opening, *[i for i in theirs if i != tokens.bos], *instruction]


def llava_processor(folder: Path) -> Any:
    return LlavaProcessor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), PreTrainedTokenizerFast.from_pretrained(folder),
        patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip


def gemma_processor(folder: Path) -> Any:
    return Gemma3Processor(
        AutoImageProcessor.from_pretrained(folder, backend="pil"), PreTrainedTokenizerFast.from_pretrained(folder),
        image_seq_length=4,
    )  # fmt: skip


@pytest.fixture
def saved(folders: dict[str, Path], tmp_path: Path) -> Path:
    network, tokens = build(folders, "llava")
    with torch.no_grad():
        for value in network.own_state().values():
            if value.is_floating_point():
                value.copy_(value.half().float())
    save_checkpoint(tmp_path / "model", network, tokens, load_bank())
    return tmp_path / "model"


def boxes_of(predictor: Any) -> Any:
    return [f.boxes for f in predictor.ground_phrases(tiny_image(), ["left pleural effusion", "heart is enlarged"])]


def test_a_saved_model_holds_what_was_trained_and_gives_the_same_boxes(folders: dict[str, Path], saved: Path) -> None:
    network, tokens = build(folders, "llava")
    loaded = load_predictor(saved)
    held = load_file(saved / WEIGHTS)
    assert set(held) == set(network.own_state())
    assert not any("vision_tower" in name or "embed_tokens" in name or "encoder" in name for name in held)
    network.load_own_state({name: value.float() for name, value in held.items()})
    found = loaded._network
    batch = batch_of(tokens)
    with torch.inference_mode():
        ours, theirs = (n.eval()(batch.pixels, batch.text).boxes for n in (network, found))
    assert torch.equal(ours.refined, theirs.refined)
    again = load_predictor(saved)
    assert boxes_of(loaded) == boxes_of(again)
    report = ReportText(TEXTS[2], (Span(0, len(TEXTS[2])),))
    grounding = loaded.ground([tiny_image(), tiny_image(seed=1)], report)
    assert grounding.findings and grounding == again.ground([tiny_image(), tiny_image(seed=1)], report)
    named = json.loads((saved / CONFIG).read_text())
    assert len(named["vision"]["sha256"]) == len(named["language_model"]["sha256"]) == 64


def changed(saved: Path, part: str, **keys: Any) -> Path:
    content = json.loads((saved / CONFIG).read_text())
    content[part].update(keys)
    (saved / CONFIG).write_text(json.dumps(content))
    return saved


@pytest.mark.parametrize("part", ["vision", "language_model"])
def test_a_pretrained_folder_that_is_missing_or_another_is_named(saved: Path, tmp_path: Path, part: str) -> None:
    other = {"vision": lambda f: save_sam(f), "language_model": lambda f: save_family(f, "llava", seed=9)}[part]
    changed(saved, part, pretrained=str(other(tmp_path / "other")))
    with pytest.raises(ModelError, match=rf"other is not the pretrained folder .*{part}\.pretrained"):
        load_predictor(saved)
    changed(saved, part, pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(ModelError, match="nowhere is missing; put it there"):
        load_predictor(saved)


def test_pickle_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_bytes((folders["sam"] / "config.json").read_bytes())
    torch.save({}, folder / "pytorch_model.bin")
    torch.save({}, tmp_path / "sam_vit_b.pth")
    tokens = GroundingTokenizer.pretrained(folders["llava"])
    for place in (folder, tmp_path / "sam_vit_b.pth"):
        with pytest.raises(ModelError, match="pickle, which is refused: convert"):
            KnowMVG(production_config(folders["llava"], place), load_bank(), tokens)


def test_a_folder_of_another_kind_or_that_lacks_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tokens = GroundingTokenizer.pretrained(folders["llava"])
    with pytest.raises(ModelError, match="llava is not a SAM model"):
        KnowMVG(production_config(folders["llava"], folders["llava"]), load_bank(), tokens)
    deeper = save_sam(tmp_path / "deeper")
    content = json.loads((deeper / "config.json").read_text())
    content["vision_config"]["num_hidden_layers"] = 3
    (deeper / "config.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"deeper lacks the weight vision_encoder\.layers\.2"):
        KnowMVG(production_config(folders["llava"], deeper), load_bank(), tokens)


def test_a_folder_without_a_fast_tokenizer_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"sam has no tokenizer\.json"):
        GroundingTokenizer.pretrained(folders["sam"])


def test_an_encoder_that_is_not_frozen_is_trained_and_kept_with_the_model(folders: dict[str, Path]) -> None:
    network, tokens = build(folders, "llava", vision={"frozen": False, "dtype": "bfloat16"})
    backward(network.train(), batch_of(tokens))
    encoder = {n: p for n, p in network.named_parameters() if n.startswith("backbone.encoder.")}
    assert encoder and set(encoder) <= set(network.own_state())
    assert all(p.dtype == torch.float32 and p.grad is not None for p in encoder.values())


def test_gradient_checkpointing_gives_the_same_gradients(folders: dict[str, Path]) -> None:
    lora = {"r": 2, "dropout": 0.0}
    sections: dict[str, Any] = {
        "vision": {"lora": {**lora, "targets": ["qkv"]}},
        "language_model": {"lora": {**lora, "targets": ["q_proj", "v_proj"]}},
    }
    found = []
    for checkpointing in (False, True):
        network, tokens = build(folders, "llava", **sections)
        if checkpointing:
            network.checkpoint_gradients()
        backward(network.train(), batch_of(tokens))
        found.append({n: p.grad for n, p in network.own_parameters() if p.grad is not None})
    assert any("encoder" in name for name in found[0]) and set(found[0]) == set(found[1])
    assert all(torch.allclose(found[0][name], found[1][name], atol=1e-5) for name in found[0])
    assert all(layer.gradient_checkpointing for layer in network.language.lm.model.language_model.layers)


def test_half_precision_runs_and_what_is_trained_stays_whole(folders: dict[str, Path]) -> None:
    half = {"dtype": "bfloat16"}
    network, tokens = build(folders, "gemma", vision=half, language_model=half)
    with torch.autocast("cpu", torch.bfloat16):
        backward(network.train(), batch_of(tokens))
    assert {p.dtype for _, p in network.own_parameters()} == {torch.float32}
    state = network.state_dict()
    assert {state[n].dtype for n in network.borrowed() if state[n].is_floating_point()} == {torch.bfloat16}
    grads = [p.grad for _, p in network.own_parameters() if p.grad is not None]
    assert grads and all(bool(torch.isfinite(grad).all()) for grad in grads)


def test_sam_sees_pixels_as_it_was_trained_on_and_is_not_trained(folders: dict[str, Path]) -> None:
    sam = SamModel.from_pretrained(folders["sam"]).eval()
    pixels = torch.rand(2, 1, CANVAS, CANVAS)
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    with torch.inference_mode():
        as_sam = sam.get_image_embeddings(
            (pixels * 255 - mean) / deviation
        ) + sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        plain = sam.get_image_embeddings(pixels.expand(-1, 3, -1, -1)) + sam.prompt_encoder.no_mask_embed.weight.view(
            1, -1, 1, 1
        )
    for kind, expected in (("sam", as_sam), ("unit", plain)):
        network, _ = build(folders, "llava", vision={"pixels": kind})
        features = network.encode_images(pixels)
        assert torch.allclose(features.coarse, expected, atol=1e-4)
        assert features.fine.shape == (2, 32, 8, 8) and features.coarse.shape == (2, 32, 4, 4)
        assert not any(p.requires_grad for n, p in network.named_parameters() if ".encoder." in n)
        assert features.coarse.requires_grad  # through what SAM adds where no mask is given


def test_the_box_decoder_begins_with_the_one_of_sam(folders: dict[str, Path], tmp_path: Path) -> None:
    decoder: Any = make_network().decoder
    taken = start_from_sam(decoder, folders["sam"])
    theirs = SamModel.from_pretrained(folders["sam"]).mask_decoder
    transformer = theirs.transformer.state_dict()
    assert taken > len(transformer)
    assert all(torch.equal(transformer[name], value) for name, value in decoder.transformer.state_dict().items())
    assert torch.equal(decoder.mask_head.up1.weight, theirs.upscale_conv1.weight)
    before = {name: value.clone() for name, value in decoder.state_dict().items()}
    assert start_from_sam(decoder, save_sam(tmp_path / "wider", width=64)) == 0
    assert all(torch.equal(before[name], value) for name, value in decoder.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pretrained_tokenizer_knows_places_and_words(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    tokens = GroundingTokenizer.pretrained(folders[family])
    text = "Small left pleural effusion <BOX> <image> \u00e9."
    encoded = tokens.encode(text, 200)
    assert not {tokens.box, tokens.neg, tokens.ground, tokens.eos} & set(encoded.ids)
    first, last = encoded.span_tokens(6, 27)
    assert text[encoded.offsets[first][0] : encoded.offsets[last - 1][1]] == "left pleural effusion"
    assert encoded.word_starts[first] and encoded.word_starts[last]
    assert tokens.prompt_ids(encoded) == [*encoded.ids, tokens.ground]
    tokens.save(tmp_path)
    again = GroundingTokenizer.load(tmp_path)
    assert again.encode(text, 200) == encoded
    assert (again.box, again.neg, again.ground, again.opening) == (
        tokens.box,
        tokens.neg,
        tokens.ground,
        tokens.opening,
    )
