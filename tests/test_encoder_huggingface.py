"""``hf/...``: models saved by transformers, against transformers, and everything that can be wrong with a source."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from encoder_helpers import difference, images, randomised

from medprobe.encoders import huggingface, processor
from medprobe.encoders.base import LoadOptions
from medprobe.encoders.cache import noted_revision
from medprobe.encoders.hub import hub_file, hub_folder
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, MedprobeError, UsageError

transformers = pytest.importorskip("transformers")

VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = {**VIT, "vocab_size": 60, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
PROCESSOR = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_std": [0.2583, 0.2583, 0.2583],
}


def build(kind: str) -> Any:
    t = transformers
    stages = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
    models = {
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**VIT)),
        "registers": lambda: t.Dinov2WithRegistersModel(t.Dinov2WithRegistersConfig(**VIT)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**VIT)),
        "clip": lambda: t.CLIPModel(t.CLIPConfig(vision_config=VIT, text_config=TEXT, projection_dim=24)),
        "siglip": lambda: t.SiglipModel(t.SiglipConfig(vision_config=VIT, text_config=TEXT)),
        "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(**stages)),
        "resnet": lambda: t.ResNetModel(t.ResNetConfig(embedding_size=8, **stages)),
        "swin": lambda: t.SwinModel(
            t.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
        ),
    }
    return randomised(models[kind]())


def written(model: Any, folder: Path, **changes: Any) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changes}))
    return folder


def pair(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return torch.cat([first, second], dim=1)


@pytest.mark.parametrize("kind", ["dinov2", "registers", "vit"])
@pytest.mark.parity("hf", "Hugging Face's", "transformers")
def test_transformers_with_a_class_token(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    encoder = load_encoder(f"hf/{written(model, tmp_path)}")
    pixels = images(64)
    n_prefix = 5 if kind == "registers" else 1
    with torch.inference_mode():
        out = model(pixel_values=pixels, output_hidden_states=True)
    tokens = out.last_hidden_state
    normed = [model.layernorm(x) for x in out.hidden_states[1:]]
    expected = {
        "cls": tokens[:, 0],
        "mean": tokens[:, n_prefix:].mean(dim=1),
        "cls+mean": pair(tokens[:, 0], tokens[:, n_prefix:].mean(dim=1)),
        "blocks": torch.cat([pair(x[:, 0], x[:, n_prefix:].mean(dim=1)) for x in normed], dim=1),
    }
    if kind == "vit":
        expected["pooled"] = out.pooler_output
    ours = encoder.encode(pixels)
    assert encoder.default_view == "cls"
    assert ours.keys() == expected.keys()
    for view in expected:
        assert difference(ours[view], expected[view]) < 1e-4, view


@pytest.mark.parity("hf", "Hugging Face's (CLIP)", "transformers")
def test_clip_gives_its_projection_and_drops_the_text_tower(tmp_path: Path) -> None:
    model = build("clip")
    encoder = load_encoder(f"hf/{written(model, tmp_path)}")
    pixels = images(64)
    vision = model.vision_model
    with torch.inference_mode():
        out = vision(pixel_values=pixels, output_hidden_states=True)
        projected = model.visual_projection(out.pooler_output)
        tokens = vision.post_layernorm(out.last_hidden_state)
        blocks = [vision.post_layernorm(x) for x in out.hidden_states[1:]]
    ours = encoder.encode(pixels)
    assert encoder.default_view == "projected"
    assert list(ours) == ["cls", "mean", "cls+mean", "blocks", "projected"]
    assert difference(ours["projected"], projected) < 1e-4
    assert difference(ours["cls"], out.pooler_output) < 1e-4
    assert difference(ours["mean"], tokens[:, 1:].mean(dim=1)) < 1e-4
    assert difference(ours["blocks"], torch.cat([pair(x[:, 0], x[:, 1:].mean(dim=1)) for x in blocks], 1)) < 1e-4
    assert not [name for name, _ in encoder.module.named_parameters() if "text" in name]


@pytest.mark.parity("hf", "Hugging Face's (SigLIP)", "transformers")
def test_siglip_gives_its_attention_pool(tmp_path: Path) -> None:
    model = build("siglip")
    encoder = load_encoder(f"hf/{written(model, tmp_path)}")
    pixels = images(64)
    with torch.inference_mode():
        out = model.vision_model(pixel_values=pixels)
    ours = encoder.encode(pixels)
    assert encoder.default_view == "pooled"
    assert list(ours) == ["mean", "blocks", "pooled"]
    assert difference(ours["pooled"], out.pooler_output) < 1e-4
    assert difference(ours["mean"], out.last_hidden_state.mean(dim=1)) < 1e-4


@pytest.mark.parametrize("kind", ["convnext", "resnet", "swin"])
@pytest.mark.parity("hf", "Hugging Face's (ConvNeXt, ResNet, Swin)", "transformers")
def test_pyramids_give_what_they_pool(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    encoder = load_encoder(f"hf/{written(model, tmp_path)}")
    pixels = images(64)
    with torch.inference_mode():
        expected = model(pixel_values=pixels).pooler_output.flatten(1)
    assert encoder.default_view == "pooled"
    assert difference(encoder.encode(pixels)["pooled"], expected) < 1e-4


@pytest.mark.parametrize("kind", ["dinov2", "vit", "clip"])
@pytest.mark.parity("hf", "Hugging Face's, at another size", "transformers")
def test_other_size(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    encoder = load_encoder(f"hf/{written(model, tmp_path)}", LoadOptions(image_size=96))
    assert encoder.preprocess.geometry.size == (96, 96)
    assert encoder.preprocess.geometry.resize == 96
    pixels = images(96)
    options = {} if kind == "dinov2" else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        out = getattr(model, "vision_model", model)(pixel_values=pixels, **options)
    expected = out.pooler_output if kind == "clip" else out.last_hidden_state[:, 0]
    assert difference(encoder.encode(pixels)["cls"], expected) < 1e-4


def test_a_pooler_without_weights_is_no_view(tmp_path: Path) -> None:
    model = randomised(transformers.ViTModel(transformers.ViTConfig(**VIT), add_pooling_layer=False))
    encoder = load_encoder(f"hf/{written(model, tmp_path)}")
    assert "pooled" not in encoder.views


def test_weights_file_or_folder(tmp_path: Path) -> None:
    model = build("dinov2")
    folder = written(model, tmp_path / "saved")
    pixels = images(64)
    by_name = load_encoder(f"hf/{folder}").encode(pixels)["cls"]
    for weights in (folder, folder / "model.safetensors"):
        encoder = load_encoder("hf/rad-dino", LoadOptions(weights=str(weights)))
        assert torch.equal(encoder.encode(pixels)["cls"], by_name)
        assert "chest X-rays" in encoder.card.training_data
    with pytest.raises(UsageError, match=r"config\.json"):
        load_encoder("hf/rad-dino", LoadOptions(weights=str(tmp_path / "model.safetensors")))


def test_missing_weights_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = written(build("dinov2"), tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.norm1.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"1 weights are not in its file .*layer\.1\.norm1"):
        load_encoder(f"hf/{folder}")


def test_remote_code_is_never_run(tmp_path: Path) -> None:
    folder = written(build("dinov2"), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config.update(model_type="mine", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    (folder / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (folder / "code.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    with pytest.raises(UsageError, match="code of its own"):
        load_encoder(f"hf/{folder}")
    assert not marker.exists()


def test_a_pickled_object_is_not_run(tmp_path: Path) -> None:
    """A folder whose only weights are a pickle that runs something."""
    marker = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (open, (str(marker), "w"))

    folder = written(build("dinov2"), tmp_path / "saved")
    (folder / "model.safetensors").unlink()
    torch.save({"x": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(MedprobeError):
        load_encoder(f"hf/{folder}")
    assert not marker.exists()


def test_random_masking_is_refused(tmp_path: Path) -> None:
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**VIT))
    with pytest.raises(UsageError, match="mae/vitb16"):
        load_encoder(f"hf/{written(model, tmp_path)}")


@pytest.mark.parametrize(
    ("changes", "size", "resize", "crop"),
    [
        ({}, (64, 64), 64, "center"),
        ({"size": {"shortest_edge": 72}}, (64, 64), 72, "center"),
        ({"size": {"height": 64, "width": 80}, "do_center_crop": False}, (64, 80), (64, 80), "none"),
        ({"size": {"height": 72, "width": 72}}, (64, 64), (72, 72), "center"),
        ({"size": 64, "do_center_crop": False}, (64, 64), 64, "center"),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "do_center_crop": None}, (224, 224), 256, "center"),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875, "do_center_crop": None}, (384, 384), (384, 384), "none"),
    ],
)
def test_processor_geometry(changes: Any, size: Any, resize: Any, crop: str) -> None:
    geometry = processor.from_config({**PROCESSOR, **changes}, "hf/x", LoadOptions()).geometry
    assert (geometry.size, geometry.resize, geometry.crop, geometry.interpolation) == (size, resize, crop, "bicubic")


def test_processor_numbers() -> None:
    preprocess = processor.from_config(PROCESSOR, "hf/x", LoadOptions())
    assert preprocess.mean == (0.5307,) * 3
    assert preprocess.std == (0.2583,) * 3
    plain = processor.from_config({**PROCESSOR, "do_normalize": False}, "hf/x", LoadOptions())
    assert (plain.mean, plain.std) == ((0.0,) * 3, (1.0,) * 3)
    larger = processor.from_config({**PROCESSOR, "size": {"shortest_edge": 72}}, "hf/x", LoadOptions(image_size=128))
    assert (larger.geometry.size, larger.geometry.resize) == ((128, 128), 144)


@pytest.mark.parametrize(
    "changes", [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"size": {"longest_edge": 64}}, {"resample": 4}]
)
def test_processor_that_cannot_be_followed(changes: Any) -> None:
    with pytest.raises(UsageError, match="its processor"):
        processor.from_config({**PROCESSOR, **changes}, "hf/x", LoadOptions())


def test_no_processor(tmp_path: Path) -> None:
    build("dinov2").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"no preprocessor_config\.json"):
        load_encoder(f"hf/{tmp_path}")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """No connection can be opened; what was tried is in the list."""
    tried: list[Any] = []

    def refuse(*args: Any, **_kwargs: Any) -> Any:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDPROBE_CACHE", str(tmp_path / "medprobe"))
    return tried


@pytest.mark.parametrize(
    ("model", "page"),
    [
        ("hf/rad-dino", "https://huggingface.co/microsoft/rad-dino"),
        ("hf/medsiglip", "https://huggingface.co/google/medsiglip-448"),
        ("hf/someone/something@abc", "https://huggingface.co/someone/something"),
        ("openclip/ViT-B-16@laion2b_s34b_b88k", "https://huggingface.co/laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
        ("openclip/biomedclip", "https://huggingface.co/microsoft/BiomedCLIP"),
        ("imagenet/deit-s", "https://huggingface.co/timm/deit_small_patch16_224.fb_in1k"),
        ("timm/resnet18@a1_in1k", "https://huggingface.co/timm/resnet18.a1_in1k"),
        ("dinov3/vits16", "https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m"),
        ("mae/retfound-cfp", "https://huggingface.co/YukunZhou/RETFound_mae_natureCFP"),
    ],
)
def test_offline_says_at_once_which_page_and_which_flag(model: str, page: str, offline: list[Any]) -> None:
    start = time.monotonic()
    with pytest.raises(UsageError) as error:
        load_encoder(model)
    assert time.monotonic() - start < 20  # the hub's client on its own takes over half a minute
    assert page in str(error.value)
    assert "--weights" in str(error.value)
    assert len(offline) <= 2


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: list[Any]) -> dict[str, Any]:
    """A hub whose main branch can move, and the revisions that it was asked for."""
    import huggingface_hub

    state: dict[str, Any] = {"main": "a" * 40, "asked": []}

    def folder(revision: str | None) -> Path:
        commit = revision or state["main"]
        path = tmp_path / "hub" / "models--lab--net" / "snapshots" / commit
        if not path.exists():
            build("dinov2").save_pretrained(path)
            (path / "preprocessor_config.json").write_text("{}")
        return path

    def download(_repo: str, filename: str, revision: str | None = None) -> str:
        state["asked"].append(revision)
        return str(folder(revision) / filename)

    def snapshot(_repo: str, revision: str | None = None, local_files_only: bool = False, **_kwargs: Any) -> str:
        if local_files_only:
            raise FileNotFoundError
        state["asked"].append(revision)
        return str(folder(revision))

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=lambda *_a, **_k: None))
    return state


@pytest.mark.parametrize("whole_folder", [True, False])
def test_the_first_revision_is_kept_when_the_repository_moves_on(hub: dict[str, Any], whole_folder: bool) -> None:
    def get(revision: str | None = None) -> Path:
        if whole_folder:
            return hub_folder("hf/lab/net", "lab/net", revision) / "model.safetensors"
        return hub_file("hf/lab/net", "lab/net", "model.safetensors", revision)

    first = get()
    assert noted_revision("lab/net") == "a" * 40
    hub["main"] = "b" * 40
    assert get() == first
    assert get("b" * 40).parent.name == "b" * 40  # asked for, it is had
    assert get() == first
    assert hub["asked"] == [None, "a" * 40, "b" * 40, "a" * 40]


def test_an_explicit_revision_is_not_noted(hub: dict[str, Any]) -> None:
    hub_file("hf/lab/net", "lab/net", "model.safetensors", "b" * 40)
    assert noted_revision("lab/net") is None


def hub_response(kind: str) -> Exception:
    from huggingface_hub import errors

    return getattr(errors, kind)("refused", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("GatedRepoError", "Ask for access at https://huggingface.co/google/medsiglip-448"),
        ("RepositoryNotFoundError", "there is no repository"),
        ("RevisionNotFoundError", "no such revision"),
        ("RemoteEntryNotFoundError", "has no file"),
    ],
)
def test_what_the_hub_answers(kind: str, message: str, monkeypatch: pytest.MonkeyPatch, offline: list[Any]) -> None:
    import huggingface_hub

    class Session:
        def head(self, *_args: Any, **_kwargs: Any) -> None: ...

    def refuse(*_args: Any, local_files_only: bool = False, **_kwargs: Any) -> str:
        raise FileNotFoundError if local_files_only else hub_response(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr("huggingface_hub.get_session", Session)
    with pytest.raises(UsageError, match=message):
        load_encoder("hf/medsiglip")


def test_aliases_have_cards() -> None:
    for alias in huggingface.ALIASES.values():
        assert alias.card.citation
        assert alias.card.url.endswith(alias.repo)


def test_neither_folder_nor_repository() -> None:
    with pytest.raises(UsageError, match="neither a folder nor a repository"):
        load_encoder("hf/./nowhere/at/all")
