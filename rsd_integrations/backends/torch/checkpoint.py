"""Loads models from checkpoints that hold all of their weights.

transformers fills in at random what a checkpoint lacks, with no more than a warning.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from rsd_integrations.errors import ModelError


def load_complete(
    model_class: Any, name: str, *, meant: str, hint: str, whole: tuple[str, ...] = (), **options: Any
) -> PreTrainedModel:
    """Load a model none of whose weights is made up.

    Args:
        model_class: what has ``from_pretrained``: a model class or one of the auto classes.
        name: a hub id or a folder.
        meant: what the checkpoint is taken for, for the message.
        hint: what to do if it is something else.
        whole: modules of which the model must take all weights; what else it does not take is left out.
        options: for ``from_pretrained`` (dtype, device_map, quantization_config, ...).

    Raises:
        ModelError: the checkpoint lacks weights, has them in other shapes, or has more in ``whole``.
    """
    model: PreTrainedModel
    model, info = model_class.from_pretrained(name, **{**options, "output_loading_info": True})
    # Tied weights are not among these: transformers has tied them by now.
    missing = sorted(map(str, info["missing_keys"]))
    if getattr(model, "hf_quantizer", None) is not None:
        # Scales, zero points and the like may be made while loading; embeddings, norms and heads may not.
        missing = [name for name in missing if name.endswith(".weight")]
    lacking = missing + sorted(str(entry[0]) for entry in info.get("mismatched_keys") or ())
    if lacking:
        count = f"{len(lacking)} weight{'s' if len(lacking) > 1 else ''}"
        listed = f"{', '.join(lacking[:4])}{', ...' if len(lacking) > 4 else ''}"
        raise ModelError(f"the checkpoint {name!r} lacks {count} of {meant}: {listed}.", hint=hint)
    surplus = [key for key in map(str, info.get("unexpected_keys") or ()) if key.partition(".")[0] in whole]
    if surplus:
        raise ModelError(f"the checkpoint {name!r} has {surplus[0]!r}, which {meant} has not.", hint=hint)
    return model


def check_language_model(model: Any, name: str, hint: str) -> None:
    """Refuse a loaded model that has no head over the vocabulary; a classifier has logits too.

    Raises:
        ModelError: it has none.
    """
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        raise ModelError(f"{name!r} ({type(model).__name__}) has no language-model head.", hint=hint)


def check_adapters(model: Any, name: str) -> None:
    """Refuse a loaded model in PEFT's wrapper whose adapters are no part of its layers.

    Raises:
        ModelError: it learnt a prompt.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ModelError(
            f"{name!r} puts learnt tokens before each text (prompt or prefix tuning).",
            hint="Use a model with adapters within its layers (LoRA), or without any.",
        )


def check_embeddings(model: Any, name: str) -> None:
    """Refuse a loaded model whose token embeddings are not in memory: they tell where tokens go.

    Raises:
        ModelError: they are offloaded, or nothing was loaded at all.
    """
    weight = getattr(model.get_input_embeddings(), "weight", None)
    if isinstance(weight, torch.Tensor) and weight.is_meta:
        raise ModelError(
            f"the token embeddings of {name!r} are not in memory (device 'meta').",
            hint="Give them a device in device_map, or pass a model that has its weights. "
            "Layers and heads may be offloaded.",
        )
