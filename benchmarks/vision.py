"""Training V here against the same net in PyTorch, in turns, on the same machine.

    uv run --with torch --with-editable . python benchmarks/vision.py [--json FILE]

torch is no dependency of the project; a CPU build is enough. PyTorch is timed in both of its memory
formats. All take the same uint8 batches and do a whole step: loss, gradients, Adam.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from training.vision import VisionConfig, make_train_step, new_state  # noqa: E402
from wm_env.speed import matmul_rate  # noqa: E402


class TorchVAE(nn.Module):
    """The paper's V (Ha & Schmidhuber 2018, A.1), as in wm_env/vae.py."""

    def __init__(self) -> None:
        super().__init__()
        down, up = (3, 32, 64, 128, 256), (1024, 128, 64, 32, 3)
        encoder = [(nn.Conv2d(a, b, 4, stride=2), nn.ReLU()) for a, b in itertools.pairwise(down)]
        self.encoder = nn.Sequential(*itertools.chain.from_iterable(encoder))
        self.to_posterior, self.from_latent = nn.Linear(1024, 64), nn.Linear(32, 1024)
        sizes = zip(itertools.pairwise(up), (5, 5, 6, 6), strict=True)
        decoder = [(nn.ConvTranspose2d(a, b, k, stride=2), nn.ReLU()) for (a, b), k in sizes]
        self.decoder = nn.Sequential(*[*itertools.chain.from_iterable(decoder)][:-1])

    def loss(self, images: torch.Tensor, beta: float) -> torch.Tensor:
        """Squared error + beta KL, mean over images [b, 3, 64, 64] in [0, 1]."""
        hidden = self.encoder(images).flatten(1)
        mu, log_sigma = self.to_posterior(hidden).chunk(2, dim=1)
        log_sigma = log_sigma.clamp(-8.0, 4.0)
        z = mu + log_sigma.exp() * torch.randn_like(mu)
        decoded = torch.sigmoid(self.decoder(self.from_latent(z)[:, :, None, None]))
        error = (decoded - images).square().sum((1, 2, 3))
        kl = 0.5 * (mu.square() + (2 * log_sigma).exp() - 2 * log_sigma - 1).sum(1)
        return (error + beta * kl).mean()


def torch_step(config: VisionConfig, memory_format: torch.memory_format) -> Callable[..., float]:
    """A training step of PyTorch on uint8 images [b, 64, 64, 3]."""
    vae = TorchVAE().to(memory_format=memory_format)
    optimizer = torch.optim.Adam(vae.parameters(), config.learning_rate)

    def step(images: np.ndarray) -> float:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(255.0)
        loss = vae.loss(batch.contiguous(memory_format=memory_format), config.beta)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def jax_step(config: VisionConfig) -> Callable[..., float]:
    """A training step of this project on the same images."""
    train_step, key = make_train_step(config), jax.random.key(0)
    state = new_state(config)

    def step(images: np.ndarray) -> float:
        nonlocal state
        state, metrics = train_step(state, images, key)
        return float(metrics["loss"])

    return step


def main() -> None:
    """Time them in turns and print images/s, the best of the rounds of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = VisionConfig(batch=options.batch)
    images = np.random.default_rng(0).integers(0, 256, (options.batch, 64, 64, 3), np.uint8)
    steps = {
        "wm_env": jax_step(config),
        "torch": torch_step(config, torch.contiguous_format),
        "torch, channels last": torch_step(config, torch.channels_last),
    }
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(images)
    for _, (name, step) in itertools.product(range(options.rounds), steps.items()):
        begin = time.perf_counter()
        for _ in range(options.steps):
            step(images)
        rates[name].append(options.steps * options.batch / (time.perf_counter() - begin))
    print(f"matmul of 4096, float32: {matmul_rate(4096)[0] / 1e9:.0f} GFLOP/s")
    for name, several in rates.items():
        print(
            f"{name:<22} {max(several):6.0f} images/s  ({', '.join(f'{r:.0f}' for r in several)})"
        )
    if options.json:
        options.json.write_text(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
