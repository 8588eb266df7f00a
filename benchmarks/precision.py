"""How close bfloat16 is to float32, for every family of encoders, on real images.

    python benchmarks/precision.py DATA                                  # untrained networks of every family
    python benchmarks/precision.py DATA --model dinov2/vits14 --weights FILE

DATA is what ``medprobe embed`` takes. Without weights the networks are as their library creates them (LayerScale at 1, as
its initial 1e-5 would switch the blocks off), which shows rounding and not what training makes of it: measure the file
that you use. Below 0.999, ``--precision auto`` computes in float32.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from medprobe.embed.forward import to_pixels
from medprobe.embed.precision import MIN_COSINE, autocast
from medprobe.encoders.base import Encoder, LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.images.decode import decode
from medprobe.manifest import Manifest, read_manifest

sys.path.append(str(Path(__file__).parents[1] / "docs"))
from catalogue import untrained

FAMILIES = (
    "aimv2/large",
    "blip/base",
    "coca/vit-b-32",
    "dino/vits16",
    "dinov2/vits14",
    "dinov2/vits14-reg",
    "dinov3/vits16",
    "hf/pubmedclip",
    "imagenet/convnext-b",
    "imagenet/deit-s",
    "imagenet/efficientnet-lite0",
    "imagenet/resnet50",
    "imagenet/swin-b",
    "mae/vitb16",
    "openclip/ViT-B-16@laion2b_s34b_b88k",
    "sam/vit_b",
    "sam2/tiny",
    "seem/davit-d3",
    "seem/focal-t",
    "seem/samvit-b",
    "siglip2/base",
)


def initialised(name: str) -> Encoder:
    """Return an untrained encoder whose blocks all take part."""
    torch.manual_seed(0)
    encoder = untrained(name)
    module = encoder.module
    if hasattr(module, "init_weights"):
        module.init_weights()
    for key, parameter in module.named_parameters():
        if key.endswith(("gamma", "gamma_1", "gamma_2", "layer_scale")):
            torch.nn.init.ones_(parameter)
        elif not parameter.any() and key.endswith(("pos_embed", "cls_token", "reg_token")):
            torch.nn.init.trunc_normal_(parameter, std=0.02)
    return encoder.freeze()


def cosines(encoder: Encoder, manifest: Manifest, n: int) -> dict[str, np.ndarray]:
    """Return the cosine between both precisions for each view and image."""
    rows = np.linspace(0, len(manifest) - 1, n).round().astype(int)
    found: dict[str, list[float]] = {view: [] for view in encoder.views}
    for row in rows:
        images = decode([manifest.images.payload(int(row))], [encoder.preprocess.geometry]).pixels[0]
        if not len(images):
            continue
        pixels = to_pixels(encoder, torch.from_numpy(images))
        exact = encoder.encode(pixels)
        with autocast("bf16", encoder.device):
            fast = encoder.encode(pixels)
        for view in encoder.views:
            found[view].append(float(torch.nn.functional.cosine_similarity(exact[view], fast[view]).nan_to_num(-1)))
    return {view: np.array(values) for view, values in found.items()}


def main() -> None:
    """Print a line of a table for each encoder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--n", type=int, default=8, help="images, evenly spaced")
    parser.add_argument("--model", help="measure this one with its own weights")
    parser.add_argument("--weights", help="a file of weights for --model")
    parser.add_argument("--quick", action="store_true", help="two images")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.data)
    n = 2 if arguments.quick else arguments.n
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {n} images of {len(manifest)}")
    print(
        "\n| encoder | weights | view | lowest | median | lowest of all views | above 0.999 |\n|---|---|---|---|---|---|---|"
    )
    for name in [arguments.model] if arguments.model else FAMILIES:
        trained = bool(arguments.model) or name == "imagenet/efficientnet-lite0"
        encoder = load_encoder(name, LoadOptions(weights=arguments.weights)) if trained else initialised(name)
        found = cosines(encoder, manifest, n)
        own, lowest = found[encoder.default_view], min(values.min() for values in found.values())
        print(
            f"| {name} | {'trained' if trained else 'untrained'} | {encoder.default_view} | {own.min():.5f} | "
            f"{np.median(own):.5f} | {lowest:.5f} | {'yes' if lowest >= MIN_COSINE else 'no: auto takes fp32'} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
