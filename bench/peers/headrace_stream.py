# SPDX-License-Identifier: Apache-2.0
"""headrace: weights streamed past the page cache, both prompts in one pass. HEADRACE_RAM: its `ram`."""
import os

import headrace

import peer


def load(model, work):
    return headrace.Model(model, ram=os.environ.get("HEADRACE_RAM"))


def forward(model, latents, prompt_emb):
    return model.forward(latents, prompt_emb, peer.TIMESTEP, progress=False)


def guided(model, latents, prompts):
    return model.forward_many([headrace.Inputs(latents, p) for p in prompts], peer.TIMESTEP, progress=False)


peer.measure(load, forward, guided)
