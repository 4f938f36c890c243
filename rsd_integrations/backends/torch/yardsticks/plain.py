"""The other ways: ``generate`` of the target alone, assisted generation, and the reference code's way.

On the CPU they run in threads of their own, for the helpers they leave would slow our engine down.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer
from transformers.utils import logging

from rsd_integrations.backends.torch.threads import apart
from rsd_integrations.backends.torch.yardsticks.bandwidth import model_bytes
from rsd_integrations.weighting import Weighting


@dataclass(frozen=True)
class Workload:
    """What every contender answers.

    Args:
        prompts: one user turn each.
        max_tokens: most tokens of an answer. Random weights never end one, so they write exactly so many.
        step_tokens: tokens of a step, where lengths are forced.
    """

    prompts: Sequence[str]
    max_tokens: int
    step_tokens: int


class PlainTrio:
    """Three transformers models without our engine.

    Args:
        models: (model, tokenizer) of "draft", "target" and "prm".
    """

    def __init__(self, models: dict[str, tuple[Any, Any]]) -> None:
        self._models = {role: model for role, (model, _) in models.items()}
        self._tokenizer = models["target"][1]

    @classmethod
    def load(cls, paths: Mapping[str, Any]) -> PlainTrio:
        """From folders, on the CPU."""
        kinds = {"prm": AutoModelForTokenClassification}

        def load(role: str, path: Any) -> tuple[Any, Any]:
            model = kinds.get(role, AutoModelForCausalLM).from_pretrained(path).eval()
            return model, AutoTokenizer.from_pretrained(path)

        return cls(apart("cpu", lambda: {role: load(role, path) for role, path in paths.items()}))

    @property
    def on_gpu(self) -> bool:
        """Whether the target is on a CUDA device."""
        return self._device.type == "cuda"

    def bytes_per_token(self, role: str) -> int:
        """Bytes that one token of a model reads."""
        return model_bytes(self._models[role])

    def generate(self, work: Workload, *, assisted: bool = False, compiled: bool = False) -> int:
        """The target's ``generate`` for all prompts as one batch. Returns the number of tokens written.

        Args:
            work: what to answer.
            assisted: the draft guesses tokens (transformers' assisted generation).
            compiled: a static cache, which transformers compiles the model for.
        """
        return apart(self._device, lambda: self._generate(work, assisted, compiled))

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._models["target"].device
        return device

    @torch.inference_mode()
    def _generate(self, work: Workload, assisted: bool, compiled: bool) -> int:
        model = self._models["target"]
        inputs = self._batch(work.prompts).to(model.device)
        options: dict[str, Any] = {"assistant_model": self._models["draft"]} if assisted else {}
        if compiled:
            options["cache_implementation"] = "static"
        with _quiet():
            output = model.generate(**inputs, do_sample=False, max_new_tokens=work.max_tokens, **options)
        new = output[:, inputs["input_ids"].shape[1] :]
        return int((new != self._tokenizer.pad_token_id).sum())

    def reference(self, work: Workload, weighting: Weighting) -> int:
        """RSD as the reference code has it: each step sends the whole text to draft, PRM and target again.

        Steps are forced to length. That its servers take text and tokenise it anew is left out, in its
        favour. Returns the number of tokens written.

        Args:
            work: one prompt.
            weighting: what the PRM said of a step -> 1.0 if it is kept, 0.0 if the target rewrites it.
        """
        return len(self.reference_times(work, weighting)) * work.step_tokens

    def reference_times(self, work: Workload, weighting: Weighting) -> list[float]:
        """The same: seconds at which each step was done."""
        return apart(self._device, lambda: self._reference_times(work, weighting))

    @torch.inference_mode()
    def _reference_times(self, work: Workload, weighting: Weighting) -> list[float]:
        (prompt,) = work.prompts
        start, times = perf_counter(), []
        tokens = self._batch([prompt])["input_ids"].to(self._models["draft"].device)
        for _ in range(work.max_tokens // work.step_tokens):
            drafted = self._step("draft", tokens, work.step_tokens)
            # The host reads the reward.
            *_, good = self._models["prm"](input_ids=drafted).logits[0, -1].tolist()
            tokens = drafted if weighting(good) else self._step("target", tokens, work.step_tokens)
            times.append(perf_counter() - start)
        return times

    def _step(self, role: str, tokens: torch.Tensor, length: int) -> torch.Tensor:
        made: torch.Tensor = self._models[role].generate(
            tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=length
        )
        if made.shape[1] != tokens.shape[1] + length:
            raise RuntimeError(f"the {role} ended a step that was to have {length} tokens")
        return made

    def _batch(self, prompts: Sequence[str]) -> Any:
        texts = [
            self._tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
        self._tokenizer.padding_side = "left"
        return self._tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")


@contextmanager
def _quiet() -> Iterator[None]:
    """Assisted generation warns of what it passes to itself."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
