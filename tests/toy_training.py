"""A toy `TrainStep` with two optimisers; `toy_script.py` runs it in processes of its own."""

import sys
import time

import numpy as np
import torch
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from synthgen.core.rng import SampleKey, Stream
from synthgen.training.loop import LoopSettings


def toy_settings(steps):
    return LoopSettings(
        steps=steps, log_every=3, checkpoint_every=5, keep=2, seed=4, identity="toy"
    )


class ToyStep:
    def __init__(self, accelerator, batch_size=2, dropout=0.25, pause_s=0.0):
        generator, critic = nn.Linear(3, 2), nn.Linear(2, 1)
        for part, net in enumerate((generator, critic)):
            draws = SampleKey(0, part).torch(Stream.INIT)
            for parameter in net.parameters():
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=draws)
        self.ema = {"generator": EMAModel(generator.parameters(), decay=0.9, use_ema_warmup=True)}
        optimizers = {
            "generator": torch.optim.Adam(generator.parameters(), lr=0.05),
            "critic": torch.optim.Adam(critic.parameters(), lr=0.02, betas=(0.5, 0.99)),
        }
        self.schedulers = {
            "generator": get_scheduler(
                "cosine", optimizers["generator"], num_warmup_steps=2, num_training_steps=12
            )
        }
        self.models = {
            "generator": accelerator.prepare(generator), "critic": accelerator.prepare(critic)
        }  # fmt: skip
        self.optimizers = {k: accelerator.prepare(v) for k, v in optimizers.items()}
        self.optimizer_steps = dict.fromkeys(optimizers, 0)
        for name, optimizer in optimizers.items():
            optimizer.register_step_post_hook(lambda *_args, name=name: self._count(name))
        self.dropout = nn.Dropout(dropout)
        self.batch_size, self.pause_s = batch_size, pause_s
        self.micro_batches = 0
        self.extra = {"mean": 0.0}
        assert all(isinstance(o, AcceleratedOptimizer) for o in self.optimizers.values())

    def _count(self, name):
        self.optimizer_steps[name] += 1

    def step(self, accelerator, step):
        time.sleep(self.pause_s)
        losses = {}
        parts = accelerator.gradient_accumulation_steps
        draws = [SampleKey(1, step * 8 + i).torch(Stream.TRAIN) for i in range(8)]
        rows = torch.stack([torch.randn(3, generator=draw) for draw in draws])
        for part in range(parts):
            number = part * accelerator.num_processes + accelerator.process_index
            x = rows[number * self.batch_size : (number + 1) * self.batch_size]
            with accelerator.accumulate(*self.models.values()):
                out = self.models["generator"](self.dropout(x))
                losses["generator"] = (out - x[:, :2]).square().mean()
                self._update(accelerator, "generator", losses["generator"])
                losses["critic"] = (self.models["critic"](out.detach()) - 1).square().mean()
                self._update(accelerator, "critic", losses["critic"])
            self.micro_batches += 1
        self.schedulers["generator"].step()
        self.ema["generator"].step(self.models["generator"].parameters())
        self.extra["mean"] = 0.9 * self.extra["mean"] + 0.1 * float(losses["generator"].detach())
        return {k: v.detach() for k, v in losses.items()}

    def _update(self, accelerator, name, loss):
        accelerator.backward(loss)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()

    def sheet(self, step):
        sheet = np.zeros((1, 2, 3, 5), dtype=np.float32)
        sheet[:, :, 0, 4] = 1
        return sheet

    def state(self):
        return dict(self.extra)

    def load_state(self, state):
        self.extra = dict(state)


class Announcing(ToyStep):
    def step(self, accelerator, step):
        losses = super().step(accelerator, step)
        sys.stdout.write(f"step {step}\n")
        sys.stdout.flush()
        return losses
